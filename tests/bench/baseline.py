"""The no-prior row of the ablation: the same points, rigged to the tracked mesh, optimized freely on the photos.

The bar that the prior has to clear. It is treated generously: it is stopped at the step that is best on the TEST frames, which no
real use could know. Usage: python tests/bench/baseline.py train.json test.json [--uv-size 128] [--steps 300]
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avtool.artifacts.track import Track
from avtool.cameras import project
from avtool.capture.samples import Samples, load_samples
from avtool.fit import Stage, run_stage
from avtool.gaussians.container import Gaussians
from avtool.gaussians.rig import carry, point_frames
from avtool.gaussians.seeding import PointBinding, seed_points
from avtool.head import HeadModel, HeadParams, load_head_model
from avtool.losses import l1, mse_to_psnr, ssim
from avtool.prior.evaluate import EvalOptions, Evaluation, Meters, evaluate, spread
from avtool.prior.synthesis import base_scales
from avtool.render import render

EVERY = 25
STOPPING_FRAMES = 8
RATES = {"means": 0.02, "log_scales": 0.01, "quats": 0.005, "opacity_logits": 0.03, "color_logits": 0.02}


@dataclass
class FreeGaussians:
    """N Gaussians of one person in their triangles' frames, every number free; an `evaluate.Subject`."""

    head: HeadModel
    binding: PointBinding
    identity: Tensor
    offsets: Tensor | None
    params: dict[str, Tensor]

    def params_for(self, expression: Tensor, neck: Tensor, head: Tensor, jaw: Tensor, eyes: Tensor) -> HeadParams:
        return HeadParams(self.identity, expression, neck, head, jaw, eyes, self.offsets)

    def render(
        self, params: HeadParams, viewmats: Tensor, Ks: Tensor, width: int, height: int,
        background: Tensor | None = None, refine: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Pictures (B, H, W, 3) and coverage (B, H, W, 1)."""
        p = self.params
        local = (p["means"][None], p["quats"][None], p["log_scales"].exp()[None])
        means, quats, scales = carry(*local, self.head(params).vertices, self.head.faces, self.binding)
        gaussians = Gaussians(means, quats, scales, p["opacity_logits"].sigmoid(), p["color_logits"].sigmoid())
        out = render(gaussians, viewmats, Ks, width, height, background=torch.ones(3) if background is None else background)
        return out.colors, out.alphas


def seed_free(head: HeadModel, track: Track, samples: Samples, uv_size: int) -> FreeGaussians:
    """Points at their seeds, colored by projection into the first photo."""
    binding = seed_points(head, uv_size)
    identity, offsets = samples.params.identity[0], samples.params.offsets
    neutral = torch.tensor((1.0, 0.0, 0.0, 0.0)).repeat(binding.num_points, 1)
    params = {
        "means": torch.zeros(binding.num_points, 3),
        "log_scales": base_scales(head, binding).log(),
        "quats": neutral,
        "opacity_logits": torch.full((binding.num_points,), 2.0),
    }
    origins = point_frames(head(samples.params.index(slice(0, 1))).vertices, head.faces, binding).origins[0]
    uv, _ = project(origins, samples.viewmats[0], samples.Ks[0])
    size = samples.images.shape[1]
    x, y = uv.clamp(0, size - 1).long().unbind(-1)
    params["color_logits"] = torch.logit(samples.images[0][y, x].clamp(0.02, 0.98))
    return FreeGaussians(head, binding, identity, offsets, params)


def fit_free(
    head: HeadModel, train: Track, test: Track, uv_size: int = 128, size: int = 256, steps: int = 300, keep_best: bool = True
) -> tuple[FreeGaussians, int, float]:
    """Optimizes on all photos of `train`; returns the state that is best on `test`, its step and the seconds.

    Without `keep_best` it is the last state, as whoever has no test pictures would get it.
    """
    samples = load_samples(train, list(range(len(train.frames))), size, with_matte=True)
    subject = seed_free(head, train, samples, uv_size)
    targets = on_white(samples)
    held_out = load_samples(test, spread(len(test.frames), STOPPING_FRAMES), size, with_matte=True)
    held_out_targets = on_white(held_out)
    start = subject.params["log_scales"].clone()
    best: tuple[float, int, dict[str, Tensor]] = (-1.0, 0, {})

    def loss_fn(step: int) -> tuple[Tensor, dict[str, float]]:
        k = step % len(samples.images)
        one = slice(k, k + 1)
        image, alpha = subject.render(samples.params.index(one), samples.viewmats[one], samples.Ks[one], size, size)
        p = subject.params
        fit = 0.8 * l1(image, targets[one]) + 0.2 * (1 - ssim(image, targets[one])) + 0.3 * l1(alpha, samples.mattes[one])
        hold = 0.01 * p["means"].square().mean() + 0.05 * (p["log_scales"] - start - 1.2).relu().mean()
        return fit + hold, {}

    def on_step(step: int, loss: float, parts: dict[str, float]) -> None:
        nonlocal best
        if (step + 1) % EVERY == 0:
            score = quick_psnr(subject, held_out, held_out_targets)
            if score > best[0] or not keep_best:
                best = (score, step + 1, {name: value.detach().clone() for name, value in subject.params.items()})

    started = time.perf_counter()
    run_stage(Stage("free", steps, RATES, schedule="constant"), subject.params, loss_fn, on_step)
    subject.params = best[2]
    return subject, best[1], time.perf_counter() - started


def quick_psnr(subject: FreeGaussians, held_out: Samples, targets: Tensor) -> float:
    """Mean PSNR on a few test frames: what the baseline is stopped by."""
    size, params = targets.shape[1], held_out.params
    params = subject.params_for(params.expression, params.neck, params.head, params.jaw, params.eyes)
    with torch.no_grad():
        images, _ = subject.render(params, held_out.viewmats, held_out.Ks, size, size)
    return float(np.mean([mse_to_psnr(error) for error in (images - targets).square().mean((1, 2, 3))]))


def on_white(samples: Samples) -> Tensor:
    """(B, S, S, 3): the photos composited by their mattes."""
    return samples.images * samples.mattes + (1 - samples.mattes)


def measure(subject: FreeGaussians, test: Track, size: int, meters: Meters, max_frames: int | None = None) -> Evaluation:
    """The evaluation that avatars get."""
    return evaluate(subject, test, EvalOptions(size=size, modes=("unrefined",), max_frames=max_frames), meters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--uv-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--size", type=int, default=256)
    args = parser.parse_args()
    torch.manual_seed(0)
    test = Track.load(args.test)
    subject, step, seconds = fit_free(load_head_model(), Track.load(args.train), test, args.uv_size, args.size, args.steps)
    report = measure(subject, test, args.size, Meters()).report["unrefined"]
    figures = ", ".join(f"{name} {entry['mean']:.3f}" for name, entry in report.items() if entry["mean"] is not None)
    sys.stdout.write(f"no prior, {subject.binding.num_points} points, best step {step}, {seconds:.0f} s: {figures}\n")


if __name__ == "__main__":
    main()
