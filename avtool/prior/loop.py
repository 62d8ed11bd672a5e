"""What every training of networks shares: the running mean of their weights, and the loop with its files and lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from avtool.fit import Stage, run_stage
from avtool.prior.checkpoint import Checkpoint
from avtool.prior.cost import StepCost
from avtool.prior.distributed import World

Progress = Callable[[int, int, str], None]
Log = Callable[[int, dict[str, float]], None]


class RunningMean:
    """Running means of tensors that training moves, which are kept in the same order."""

    def __init__(self, live: Sequence[Tensor], decay: float) -> None:
        self.live, self.decay = list(live), decay
        self.tensors = [tensor.detach().clone() for tensor in live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After `step` steps; the first ones count less, so that the mean does not hold on to the start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.tensors, [tensor.detach() for tensor in self.live], 1 - decay)

    @torch.no_grad()
    def put(self) -> None:
        """Make the live tensors their means, for good."""
        torch._foreach_copy_([tensor.data for tensor in self.live], self.tensors)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Inside, the live tensors are their means."""
        kept = [tensor.detach().clone() for tensor in self.live]
        self.put()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([tensor.data for tensor in self.live], kept)


class Training(Protocol):
    """What the loop moves. config has steps, log_every, checkpoint_every, preview_every; options where files go."""

    config: Any
    options: Any
    world: World
    stage: Stage
    optimizer: torch.optim.Adam
    cost: StepCost
    step: int
    elapsed: float

    @property
    def groups(self) -> Mapping[str, Sequence[Tensor]]: ...

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]: ...

    def after_step(self) -> None: ...

    def summary(self, parts: dict[str, Tensor]) -> dict[str, float]: ...

    def checkpoint(self) -> Checkpoint: ...

    def preview(self, path: Path) -> None: ...


def run_training(training: Training, progress: Progress | None, log: Log | None) -> None:
    """All steps, with checkpoints, previews and log lines; goes on from training.step."""
    config, options, world, cost = training.config, training.options, training.world, training.cost
    began, before = time.monotonic(), training.elapsed

    def clock() -> float:
        training.elapsed = world.agree(before + time.monotonic() - began)
        return training.elapsed

    def on_step(step: int, loss: float, parts: dict[str, Tensor]) -> None:
        training.step, training.elapsed = step + 1, before + time.monotonic() - began
        training.after_step()
        cost.step_done()
        if training.step % config.log_every == 0 or training.step in (1, config.steps):
            parts = world.mean(parts)  # in every process, whoever logs
            if log is not None:
                log(training.step, {**training.summary(parts), "seconds": training.elapsed, **cost.figures()})
        if progress is not None:
            progress(training.step, config.steps, f"loss {loss:.4f}")
        if options.checkpoint is not None and training.step % config.checkpoint_every == 0:
            training.checkpoint().save(options.checkpoint)
        if options.previews is not None and training.step % config.preview_every == 0:
            training.preview(options.previews / f"{training.step:06d}.png")
        cost.go_on()

    cost.go_on()
    run_stage(
        training.stage, training.groups, training.loss, on_step, optimizer=training.optimizer, start=training.step,
        time_limit=options.time_limit, clock=clock, check_every=10,
    )  # fmt: skip
