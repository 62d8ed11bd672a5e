"""The one optimization loop: a named stage says which parameters move, for how long, how fast, with which weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from avtool.errors import AvtoolError

__all__ = ["Stage", "StageResult", "make_optimizer", "run_stage", "schedule_factor"]

ParameterGroup = Tensor | Iterable[Tensor]
Parts = dict[str, float | Tensor]  # detached tensors are welcome: turning them into numbers would wait for a GPU
LossFunction = Callable[[int], tuple[Tensor, Parts]]
StepCallback = Callable[[int, float, Parts], bool | None]


@dataclass(frozen=True)
class Stage:
    """One stage of a fit. Only parameters named in `learning_rates` move; all others keep requires_grad off."""

    name: str
    steps: int
    learning_rates: Mapping[str, float]
    weights: Mapping[str, float] = field(default_factory=dict)
    schedule: Literal["cosine", "constant"] = "cosine"
    final_factor: float = 0.0  # where the cosine ends, as a fraction of the learning rate
    warmup: int = 0  # steps of linear warm-up, for networks that start far from anything useful
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = None  # gradient norm per group; None leaves gradients as they are


@dataclass(frozen=True)
class StageResult:
    """How a stage went: steps taken, the last loss and its parts, seconds, and whether it ended before its last step."""

    steps: int
    loss: float
    parts: Parts
    seconds: float
    stopped_early: bool


def _tensors(group: ParameterGroup) -> list[Tensor]:
    return [group] if isinstance(group, Tensor) else list(group)


def make_optimizer(stage: Stage, params: Mapping[str, ParameterGroup]) -> torch.optim.Adam:
    """Adam with one group per learning rate of the stage (so that state can be saved and put back in order)."""
    missing = sorted(set(stage.learning_rates) - set(params))
    if missing:
        raise ValueError(f"stage {stage.name!r} names unknown parameters {missing}; known: {sorted(params)}")
    groups = [
        {"params": _tensors(params[name]), "lr": rate, "base_lr": rate, "name": name}
        for name, rate in stage.learning_rates.items()
        if rate > 0
    ]
    # foreach=True: hundreds of small tensors would cost more in Python than in arithmetic.
    return torch.optim.Adam(groups, betas=stage.betas, eps=1e-15, foreach=True)


def schedule_factor(stage: Stage, step: int, progress: float) -> float:
    """Factor on every learning rate at a step, `progress` in [0, 1] being how much of the stage is over."""
    warm = min(1.0, (step + 1) / stage.warmup) if stage.warmup else 1.0
    if stage.schedule == "constant":
        return warm
    cosine = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    return warm * (stage.final_factor + (1 - stage.final_factor) * cosine)


def _check_finite(stage: Stage, step: int, loss: float, parts: Parts) -> None:
    if math.isfinite(loss):
        return
    broken = [name for name, value in parts.items() if not math.isfinite(float(value))]
    where = f" in {', '.join(broken)}" if broken else ""
    raise AvtoolError(
        f"The loss of stage {stage.name!r} became {loss}{where} at step {step}.",
        "Lower the learning rates, or resume from the last checkpoint with another seed.",
    )


def run_stage(
    stage: Stage,
    params: Mapping[str, ParameterGroup],
    loss_fn: LossFunction,
    on_step: StepCallback | None = None,
    *,
    optimizer: torch.optim.Adam | None = None,
    start: int = 0,
    time_limit: float | None = None,
    elapsed: float = 0.0,
    check_every: int = 1,
    clock: Callable[[], float] | None = None,
) -> StageResult:
    """Run a stage: `loss_fn(step)` gives the loss and its named parts, `on_step(step, loss, parts)` may return True to stop.

    Every parameter of `params` is switched to requires_grad exactly when the stage moves it. `optimizer` and `start`
    continue an interrupted run. `time_limit` (seconds) ends the stage on time, the cosine running by whichever of steps
    and time is further along; `elapsed` seconds were spent before an interruption. `clock` gives the seconds spent in their
    place, so that several processes agree on them. `check_every`: how often the loss is read back (each read waits for a
    GPU). `loss_fn` may leave gradients of earlier parts of a batch behind: what is there is added to.
    """
    moving = {name for name, rate in stage.learning_rates.items() if rate > 0}
    for name, group in params.items():
        for tensor in _tensors(group):
            tensor.requires_grad_(name in moving)
    optimizer = optimizer if optimizer is not None else make_optimizer(stage, params)
    began, value, parts, step = time.monotonic(), float("nan"), {}, start
    for step in range(start, stage.steps):
        progress = step / stage.steps
        if time_limit is not None:
            spent = clock() if clock is not None else elapsed + time.monotonic() - began
            if spent >= time_limit:
                return StageResult(step - start, value, parts, spent - elapsed, True)
            progress = max(progress, spent / time_limit)
        factor = schedule_factor(stage, step, progress)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        optimizer.zero_grad(set_to_none=True)
        loss, parts = loss_fn(step)
        last = step == stage.steps - 1
        if step % check_every == 0 or last:
            value = loss.item()
            _check_finite(stage, step, value, parts)
        loss.backward()
        if stage.clip_norm is not None:
            for group in optimizer.param_groups:
                torch.nn.utils.clip_grad_norm_(group["params"], stage.clip_norm)
        optimizer.step()
        if on_step is not None and on_step(step, value, parts):
            return StageResult(step + 1 - start, value, parts, time.monotonic() - began, not last)
    return StageResult(stage.steps - start, value, parts, time.monotonic() - began, False)
