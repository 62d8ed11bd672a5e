"""Time the CPU rasterizer beside its peers: python tests/bench/raster.py [--rounds N] [--quick] [--markdown FILE]

Against peers, twice: medians of interleaved rounds, every round timing every candidate once, so that a busy machine
slows all of them alike, and the ratio (the median over rounds) holds where the times do not; peers are the dense torch twin and
gsplat's torch reference made to run on a CPU (gsplat_torch.py), left out where gsplat is not installed. Stages: where the time
of one call goes, and what share of the sampled peak of fused multiply-adds the two raster kernels reach, by a hand count of
27 + 2 C operations a pair of Gaussian and pixel forward and 48 + 4 C backward. Cost model: time against Gaussians, pixels and
channels, with the exponents of a fit. Scene: a head-like shell of Gaussians that covers half the image.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from avtool.runtime import keep_memory, set_threads

set_threads()  # as the program does, before torch is imported

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
from gsplat_torch import gsplat_torch  # noqa: E402
from peak import sample_peak  # noqa: E402

from avtool.gaussians import Gaussians  # noqa: E402
from avtool import jit  # noqa: E402
from avtool.render import cpu, cpu_backward, cpu_bin, cpu_forward, cpu_project, render  # noqa: E402

# (Gaussians, pixels a side, channels, peer)
PEERS = (
    (2048, 96, 3, "twin"),
    (2048, 96, 35, "twin"),
    (16384, 256, 3, "gsplat"),
    (16384, 256, 35, "gsplat"),
    (16384, 512, 3, "gsplat"),
    (16384, 512, 35, "gsplat"),
    (65536, 256, 3, "gsplat"),
    (65536, 256, 35, "gsplat"),
)
STAGES = ((16384, 256, 32), (16384, 256, 35), (65536, 256, 32), (16384, 512, 32))
POINTS, PIXELS, CHANNELS = (5120, 16384, 65536, 262144), (128, 256, 512, 1024), (3, 8, 32)
CENTER = (16384, 256, 32)
"""The cost model varies one of the three and holds the others here."""

KERNELS = (
    (cpu_project, "project"), (cpu_bin, "sort_by_depth"), (cpu_bin, "find_spans"),
    (cpu_bin, "count_pairs"), (cpu_bin, "fill_lists"),
    (cpu_forward, "raster_forward"), (cpu_backward, "raster_backward"), (cpu_project, "project_backward"),
)  # fmt: skip


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


def candidates(num_points: int, size: int, channels: int, peer: str | None = None) -> dict[str, Callable[[], None]]:
    """What is timed on one setting: the forward pass, forward and backward, and the peer's forward and backward."""
    gaussians, viewmat, K = shell(num_points, size, channels)
    inputs = [gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.colors]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(size, size, count, generator=generator) for count in (channels, 1)]
    draw = {
        "numba": lambda: list(render(gaussians, viewmat, K, size, size, backend="numba")[:2]),
        "twin": lambda: list(render(gaussians, viewmat, K, size, size, backend="torch")[:2]),
        "gsplat": lambda: list(gsplat_torch(gaussians, viewmat, K, size, size)),
    }

    def forward() -> None:
        with torch.no_grad():
            draw["numba"]()

    def both(name: str) -> None:
        torch.autograd.grad(draw[name](), inputs, weights)

    timed: dict[str, Callable[[], None]] = {"forward": forward, "step": lambda: both("numba")}
    return timed | ({} if peer is None else {"peer": lambda: both(peer)})


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


def ratio(times: dict[str, list[float]]) -> float:
    """How many times as long as ours the peer takes, median over the rounds."""
    return statistics.median(a / b for a, b in zip(times["peer"], times["step"], strict=True))


def peer_table(rounds: int, quick: bool, memory: str) -> list[str]:
    """Ours against the peers. memory: what the C library does with freed pictures, for the heading."""
    lines = [say(f"memory {memory}:\n"), "| points | pixels | channels | forward ms | forward + backward ms | peer | its ms | ratio |", "|---" * 8 + "|"]
    installed = importlib.util.find_spec("gsplat") is not None
    for num_points, size, channels, peer in PEERS:
        if (peer == "gsplat" and not installed) or (quick and num_points * size > 16384 * 256):
            continue
        times = interleaved(candidates(num_points, size, channels, peer), rounds)
        forward, step, other = (statistics.median(times[name]) for name in ("forward", "step", "peer"))
        name = {"twin": "dense torch twin", "gsplat": "gsplat, torch"}[peer]
        row = f"| {num_points} | {size} | {channels} | {forward:.2f} | {step:.2f} | {name} | {other:.0f} | {ratio(times):.0f} |"
        lines.append(say(row))
    return lines


@contextlib.contextmanager
def timed_kernels() -> Iterator[dict[str, list[float]]]:
    """Inside, every kernel of the rasterizer writes down how many milliseconds each call took."""
    times: dict[str, list[float]] = {name: [] for _, name in KERNELS}
    originals = [(module, name, getattr(module, name)) for module, name in KERNELS]

    def watched(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            start = time.perf_counter()
            result = function(*args)
            times[name].append((time.perf_counter() - start) * 1e3)
            return result

        return call

    for module, name, function in originals:
        setattr(module, name, watched(name, function))
    try:
        yield times
    finally:
        for module, name, function in originals:
            setattr(module, name, function)


def count_pairs(num_points: int, size: int, channels: int, threads: int) -> int:
    """Pairs of Gaussians and pixels that the kernels evaluate: sixteen pixels a list entry that was walked."""
    gaussians, viewmat, K = shell(num_points, size, channels)
    frame = cpu._Frame()
    fields = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.colors, viewmat, K)
    image, alphas = np.zeros((size, size, channels), np.float32), np.zeros((size, size), np.float32)
    arrays = tuple(field.detach().contiguous().numpy() for field in fields)
    cpu._forward_image(frame, arrays, (size, size), np.zeros(channels + 8, np.float32), image, alphas, threads)
    return int(frame.arrays["walked"].sum()) * 16


def stage_table(rounds: int, threads: int) -> list[str]:
    """Median milliseconds of every kernel, and the raster kernels' share of the peak sampled beside them."""
    names = [name for _, name in KERNELS]
    lines = [f"| points | pixels | channels | {' | '.join(names)} | forward of peak | backward of peak |", "|---" * (5 + len(names)) + "|"]
    for num_points, size, channels in STAGES:
        pairs = count_pairs(num_points, size, channels, threads)
        step, peaks = candidates(num_points, size, channels)["step"], []
        step()
        with timed_kernels() as times:
            for _ in range(rounds):
                peaks.append(sample_peak(threads))
                step()
        shares = []
        for name, operations in (("raster_forward", 27 + 2 * channels), ("raster_backward", 48 + 4 * channels)):
            reached = (pairs * operations / (1e6 * t) / peak for t, peak in zip(times[name], peaks, strict=True))
            shares.append(f"{100 * statistics.median(reached):.0f} %")
        row = " | ".join([str(num_points), str(size), str(channels), *(f"{statistics.median(times[n]):.2f}" for n in names), *shares])
        lines.append(say(f"| {row} |"))
    return lines


def cost_table(rounds: int, quick: bool) -> list[str]:
    """Forward and backward milliseconds along each of the three axes, with the exponent of a power law."""
    lines = ["| axis | values | forward + backward ms | exponent |", "|---|---|---|---|"]
    axes = {"Gaussians": (0, POINTS), "pixels a side": (1, PIXELS), "channels": (2, CHANNELS)}
    for name, (axis, values) in axes.items():
        values = values[:3] if quick else values
        settings = [tuple(value if k == axis else CENTER[k] for k in range(3)) for value in values]
        times = interleaved({str(s): candidates(*s)["step"] for s in settings}, rounds)
        middle = [statistics.median(times[str(s)]) for s in settings]
        slope = np.polyfit(np.log(values), np.log(middle), 1)[0]
        row = f"| {name} | {', '.join(map(str, values))} | {', '.join(f'{m:.1f}' for m in middle)} | {slope:.2f} |"
        lines.append(say(row))
    return lines


def say(row: str) -> str:
    """Show a row as soon as it is known."""
    print(row, flush=True)
    return row


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="only the smaller settings")
    parser.add_argument("--markdown", type=Path, help="write the tables there, too")
    options = parser.parse_args()
    jit.choose_threading_layer()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    gaussians, viewmat, K = shell(64, 16, 4)
    render(gaussians, viewmat, K, 16, 16).colors.sum().backward()
    first = f"{options.threads} threads; first call, compilation or cache included: {time.perf_counter() - start:.1f} s"
    jit.num_threads()
    peak = max(sample_peak(options.threads) for _ in range(20))
    say(f"{first}; peak {peak:.0f} GFLOP/s")
    # Peers first as in any process, then as in the program, which keeps freed memory: it helps them more than us.
    tables = [peer_table(options.rounds, options.quick, "as the C library has it")]
    keep_memory()
    tables.append(peer_table(options.rounds, options.quick, "kept, as the program does"))
    tables += [stage_table(options.rounds, options.threads), cost_table(options.rounds, options.quick)]
    if options.markdown is not None:
        options.markdown.write_text("\n\n".join("\n".join(table) for table in tables) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
