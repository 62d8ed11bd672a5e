"""Training in several processes: torch's DistributedDataParallel, started by torchrun.

Every process draws the same global batch and computes an equal slice of it, whole identities, so the mean of the
processes' gradients is the gradient of one process with the same batch. The first process alone writes and speaks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from avtool.errors import AvtoolError


class StepLoss(nn.Module):
    """A loss as a module, as DistributedDataParallel wants it: all tensors that training moves are its parameters."""

    def __init__(self, moved: Sequence[nn.Parameter], loss: Callable[..., Any]) -> None:
        super().__init__()
        self.moved = nn.ParameterList(moved)
        self.loss = loss

    def forward(self, *args: object) -> Any:
        """Whatever the loss returns."""
        return self.loss(*args)


@dataclass(frozen=True)
class World:
    """Which of `size` processes this is; `local_rank` counts the processes of one machine. One process by default."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @staticmethod
    def from_environment() -> World:
        """What torchrun says; one process without it."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        # Schedulers set some of these for every job; only torchrun sets where to meet as well.
        if not all(os.environ.get(name, "").isdigit() for name in names) or "MASTER_ADDR" not in os.environ:
            return World()
        return World(*(int(os.environ[name]) for name in names))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process: "cuda" becomes one device a process of a machine."""
        place = torch.device(name)
        if self.size == 1 or place.type != "cuda":
            return name
        if place.index is not None:
            raise AvtoolError(f"{name}: one device for {self.size} processes", "name cuda: every process takes its own")
        if self.local_rank >= torch.cuda.device_count():
            raise AvtoolError(
                f"process {self.local_rank + 1} of this machine found {torch.cuda.device_count()} CUDA devices",
                "start one process a device: torchrun --nproc-per-node",
            )
        return f"cuda:{self.local_rank}"

    @contextmanager
    def joined(self, device: str) -> Iterator[None]:
        """Inside, the processes can talk to each other: nccl for tensors on CUDA, gloo for those on the CPU."""
        if self.size == 1:
            yield
            return
        if not (dist.is_available() and dist.is_gloo_available()):
            raise AvtoolError("this build of torch cannot train in several processes", "start avtool without torchrun")
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu:
            torch.cuda.set_device(torch.device(device))
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
        failed = True
        try:
            yield
            failed = False
        except RuntimeError as error:
            if _lost_connection(error):
                raise AvtoolError("another process of this training has ended", "its own line says why") from error
            raise
        finally:
            # nccl waits for the others' part of what is under way, which never comes; the process ends at once instead.
            if not (failed and on_gpu):
                dist.destroy_process_group()

    def wrapped(self, moved: Sequence[nn.Parameter], loss: Callable[..., Any]) -> nn.Module:
        """The loss as a module whose backward pass leaves the mean gradient of all processes."""
        module = StepLoss(moved, loss)
        # No device_ids: the loss takes its batch to the device itself.
        return module if self.size == 1 else DistributedDataParallel(module)

    def agree(self, value: float) -> float:
        """The first process's value, for decisions that all must take alike (by the clock, say)."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(shared, src=0)
        return shared.item()

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means of scalars over the processes; all must call it, with the same names."""
        if self.size == 1:
            return values
        # Not on the GPU and not ReduceOp.AVG, which gloo does not have.
        stacked = torch.stack([value.detach().double().cpu() for value in values.values()])
        dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.size).unbind()))


def no_reduction(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, gradients add up in this process only: for all but the last part of an accumulated batch."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def _lost_connection(error: RuntimeError) -> bool:
    """Whether a collective failed because its other side is gone; gloo has no type of its own for it."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("connection closed", "connection reset", "broken pipe"))
