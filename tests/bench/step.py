"""Where the time of a training step and of a reenacted frame goes: python tests/bench/step.py [--rounds N] [--size 256]

A training step is one picture of a synthetic person (drawn for the purpose) through the default preset: forward, backward and
Adam. The autograd engine's own records say how long each kind of operation takes; kinds are summed to parts. A frame is what
reenact does between two writes, without encoding. Two threads; medians; the shares are of the profiled run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from avtool.runtime import prepare

prepare()  # as the program does, before torch is imported

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from avtool.artifacts.track import Track
from avtool.head import load_head_model
from avtool.prior.avatar import Avatar
from avtool.prior.config import TrainConfig
from avtool.prior.dataset import load_training_set
from avtool.prior.prior import Prior
from avtool.prior.train import Trainer, TrainOptions
from avtool import jit
from avtool.synth.dataset import DatasetOptions, make_dataset

# The first part whose words occur in an operation's name has its time.
PARTS = (
    ("rasterizer", ("_Rasterize",)),
    ("points on the mesh", ("Carry",)),
    ("SSIM", ("Ssim",)),
    ("screen-space CNN", ("conv", "Conv", "mkldnn", "leaky_relu", "LeakyRelu")),
    ("matrix products: MLPs, bases", ("addmm", "Addmm", "aten::mm", "MmBackward", "bmm", "Bmm", "matmul")),
    ("optimizer", ("Optimizer", "_foreach", "lerp", "addcdiv", "addcmul")),
)
REST = "head model, ARAP, pictures, the rest"


def part_of(name: str) -> str:
    """The part that an operation belongs to."""
    return next((part for part, words in PARTS if any(word in name for word in words)), REST)


def shares(call: Callable[[], None], rounds: int) -> dict[str, float]:
    """Share of each part in the time of all operations."""
    # As many rounds unrecorded first: the profiler's own memory moves ours about, and fresh pages would count as work.
    plan = schedule(wait=0, warmup=rounds, active=rounds)
    found = []
    with profile(activities=[ProfilerActivity.CPU], schedule=plan, on_trace_ready=lambda record: found.extend(record.key_averages())) as record:
        for _ in range(2 * rounds):
            call()
            record.step()
    times: dict[str, float] = {}
    for event in found:
        if event.key.startswith("ProfilerStep"):
            continue
        part = part_of(event.key)
        times[part] = times.get(part, 0.0) + event.self_cpu_time_total
    total = sum(times.values())
    return {part: time / total for part, time in sorted(times.items(), key=lambda item: -item[1])}


def milliseconds(call: Callable[[], None], rounds: int) -> list[float]:
    """Of each call, after three to warm up."""
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def training_step(folder: Path, size: int) -> Callable[[], None]:
    """One step of batch 1 of the shipped prior's networks."""
    make_dataset(folder / "people", DatasetOptions(identities=1, views=2, size=size, texture_size=256))
    head = load_head_model()
    config = TrainConfig(steps=10_000, batch_size=1, views_per_identity=1, image_size=size)
    data = load_training_set([folder / "people"], head, size, None)
    trainer = Trainer(Prior.create(head, 1), data, config, TrainOptions())
    for group in trainer.groups.values():
        for tensor in group:
            tensor.requires_grad_()

    def step() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        loss, _ = trainer.loss(0)
        loss.backward()
        trainer.optimizer.step()
        trainer.after_step()

    return step


def frames(folder: Path, size: int, refine: bool) -> Callable[[], None]:
    """Eight frames of a person of the shipped prior."""
    prior = Prior.load("default")
    track = Track.load(folder / "people" / "person_0000" / "track.json")
    identity = torch.as_tensor(track.identity, dtype=torch.float32)
    avatar = Avatar(prior.head, prior.binding, prior.gapnet, prior.refiner, prior.codebook.codes[:1].detach(), identity, None, {})
    params, viewmats, Ks = track.params([0] * 8), track.viewmats([0] * 8), track.Ks([0] * 8)

    def draw() -> None:
        with torch.no_grad():
            motion = avatar.params_for(params.expression, params.neck, params.head, params.jaw, params.eyes)
            avatar.render(motion, viewmats, Ks, size, size, refine=refine)

    return draw


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    jit.choose_threading_layer()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        step = training_step(folder, options.size)
        rows = [("training step, batch 1", step, 1)]
        rows += [(f"frame, {label}", frames(folder, options.size, refine), 8) for label, refine in (("CNN", True), ("no CNN", False))]
        for label, call, count in rows:
            middle = statistics.median(milliseconds(call, options.rounds)) / count
            rate = f", {1000 / middle:.0f} frames/s before encoding" if count > 1 else ""
            print(f"{label}: {middle:.1f} ms{rate}")
            for part, share in shares(call, 5).items():
                print(f"  {100 * share:5.1f} %  {part}", flush=True)


if __name__ == "__main__":
    main()
