"""Time the CPU rasterizer beside the readable torch twin: python tests/bench/raster.py [--rounds N] [--quick]

One row a setting, medians of interleaved rounds: every round times every candidate once, so that a busy machine slows
all of them alike, and the ratio (the median over rounds) holds where the times do not. Scene: a head-like shell of
Gaussians that covers half the image. The twin is dense and takes minutes on large scenes; it is timed on the small ones.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable

# As the program does: or torch's idle threads spin while the rasterizer's work.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import torch
from torch import Tensor
from torch.nn import functional

from avtool.gaussians import Gaussians
from avtool.render import render

# (Gaussians, pixels a side, channels, time the twin too)
SETTINGS = (
    (2048, 96, 3, True),
    (2048, 96, 35, True),
    (5120, 256, 32, False),
    (16384, 128, 32, False),
    (16384, 256, 3, False),
    (16384, 256, 8, False),
    (16384, 256, 32, False),
    (16384, 256, 35, False),
    (16384, 512, 3, False),
    (16384, 512, 35, False),
    (16384, 1024, 32, False),
    (65536, 256, 3, False),
    (65536, 256, 35, False),
    (262144, 256, 32, False),
)


def shell(num_points: int, size: int, channels: int) -> tuple[Gaussians, Tensor, Tensor]:
    """Flat, overlapping Gaussians on a jittered ellipsoid 0.9 m from the camera, with gradients switched on."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(num_points, 3, generator=generator)
    direction = functional.normalize(normal, dim=-1)
    radii = torch.tensor([0.085, 0.115, 0.10])
    outward = functional.normalize(direction / radii, dim=-1)
    depth = torch.where(
        torch.rand(num_points, generator=generator) < 0.75,
        0.02 * torch.randn(num_points, generator=generator),
        0.1 * torch.rand(num_points, generator=generator),
    )
    turn = torch.stack([1 + outward[:, 2], -outward[:, 1], outward[:, 0], torch.zeros(num_points)], -1)
    quats = functional.normalize(turn + 0.15 * torch.randn(num_points, 4, generator=generator), dim=-1)
    spacing = math.sqrt(4 * math.pi * 0.01 / num_points)
    spread = torch.exp(0.45 * torch.randn(num_points, 3, generator=generator))
    fields = [
        direction * radii * (1 + depth[:, None]),
        quats,
        spacing * spread * torch.tensor([1.0, 0.7, 0.25]),
        torch.sigmoid(0.7 + 1.6 * torch.randn(num_points, generator=generator)),
        torch.rand(num_points, channels, generator=generator),
    ]
    viewmat = torch.eye(4)
    viewmat[2, 3] = 0.9
    K = torch.tensor([[3.15 * size, 0, size / 2], [0, 3.15 * size, size / 2], [0, 0, 1]])
    return Gaussians(*(field.requires_grad_() for field in fields)), viewmat, K


def candidates(num_points: int, size: int, channels: int, with_twin: bool) -> dict[str, Callable[[], None]]:
    """What is timed on one setting."""
    gaussians, viewmat, K = shell(num_points, size, channels)
    inputs = [gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.colors]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(size, size, count, generator=generator) for count in (channels, 1)]

    def forward(backend: str) -> None:
        with torch.no_grad():
            render(gaussians, viewmat, K, size, size, backend=backend)

    def both(backend: str) -> None:
        torch.autograd.grad(list(render(gaussians, viewmat, K, size, size, backend=backend)), inputs, weights)

    timed = {"forward": lambda: forward("numba"), "step": lambda: both("numba")}
    return timed | ({"twin": lambda: both("torch")} if with_twin else {})


def interleaved(functions: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each candidate in each round, after one call to warm up."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="only the settings up to 16384 Gaussians and 256 pixels")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    gaussians, viewmat, K = shell(64, 16, 4)
    render(gaussians, viewmat, K, 16, 16).colors.sum().backward()
    print(f"{options.threads} threads; first call, compilation or cache included: {time.perf_counter() - start:.1f} s")
    print("   points  pixels  channels   forward ms   forward + backward ms (fastest)   torch twin ms   twin / numba")
    for num_points, size, channels, with_twin in SETTINGS:
        if options.quick and (num_points > 16384 or size > 256):
            continue
        times = interleaved(candidates(num_points, size, channels, with_twin), options.rounds)
        middle = {name: statistics.median(values) for name, values in times.items()}
        row = f"{num_points:9d}  {size:6d}  {channels:8d}   {middle['forward']:10.2f}   "
        row += f"{middle['step']:21.2f} ({min(times['step']):7.2f})"
        if with_twin:
            ratio = statistics.median(a / b for a, b in zip(times["twin"], times["step"], strict=True))
            row += f"   {middle['twin']:13.1f}   {ratio:12.0f}"
        print(row)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
