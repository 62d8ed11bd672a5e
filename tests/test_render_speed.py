"""The rasterizer's speed as a ratio to gsplat's torch reference in the same run; tests/bench/raster.py prints the whole table."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "bench"))
from gsplat_torch import gsplat_torch  # noqa: E402
from raster import candidates, interleaved, ratio, shell  # noqa: E402

from avtool.render import render  # noqa: E402

pytest.importorskip("gsplat")


def test_the_peer_draws_the_same_picture_with_the_same_gradients() -> None:
    """What it is compared with does the same work."""
    gaussians, viewmat, K = shell(1500, 64, 5)
    inputs = [gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.colors]
    weights = [torch.randn(64, 64, count, generator=torch.Generator().manual_seed(0)) for count in (5, 1)]
    theirs, ours = list(gsplat_torch(gaussians, viewmat, K, 64, 64)), list(render(gaussians, viewmat, K, 64, 64, backend="numba")[:2])
    for a, b in zip(theirs, ours):
        assert (a - b).abs().max() < 1e-4
    pairs = zip(torch.autograd.grad(theirs, inputs, weights), torch.autograd.grad(ours, inputs, weights))
    assert all((a - b).norm() < 1e-3 * b.norm() for a, b in pairs)


@pytest.mark.parametrize(
    ("points", "pixels", "channels", "least"), [(16384, 256, 3, 20), (16384, 256, 35, 22), (16384, 512, 3, 32), (65536, 256, 35, 12)]
)
def test_forward_and_backward_are_many_times_faster(points: int, pixels: int, channels: int, least: float) -> None:
    """Half of what a quiet machine shows; a busy one gets five rounds to show it."""
    functions = candidates(points, pixels, channels, "gsplat")
    del functions["forward"]
    found = []
    for _ in range(5):
        found.append(ratio(interleaved(functions, 1)))
        if found[-1] >= least:
            return
    pytest.fail(f"gsplat's torch reference takes {max(found):.0f} times as long, expected {least}")
