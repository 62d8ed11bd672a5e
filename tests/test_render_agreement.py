"""Every backend must agree with the readable torch twin: image, alpha and all gradients, on easy and hard scenes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from render_scenes import (
    FIELDS,
    HARD,
    NAMES,
    Scene,
    behind,
    border,
    crowd,
    degenerate,
    make_scene,
    off_screen,
    thresholds,
)
from torch import Tensor

from avtool.gaussians import Gaussians
from avtool.render import render
from avtool.render.cuda import is_available

def differentiate(scene: Scene, backend: str, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, list]:
    """Image, alpha and the gradients of a random linear functional of both."""
    inputs = {name: scene[name].to(device, dtype).requires_grad_() for name in NAMES}
    width, height = scene["size"].tolist()
    output = render(
        Gaussians(*(inputs[name] for name in FIELDS)), inputs["viewmats"], scene["Ks"].to(device, dtype), width, height,
        background=inputs["background"], backend=backend,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(device, dtype) for x in output[:2]]
    loss = sum((x * w).sum() for x, w in zip(output[:2], weights, strict=True))
    grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, inputs.values(), strict=True)]
    return output.colors.detach().double().cpu(), output.alphas.detach().double().cpu(), [g.double().cpu() for g in grads]


def rounded(scene: Scene) -> Scene:
    """What float32 can hold, in float64: both precisions then see the same scene."""
    return {name: x.float().double() if x.is_floating_point() else x for name, x in scene.items()}


def assert_agree(actual: tuple, expected: tuple, image: float, gradient: float) -> None:
    """Images within ``image`` but for a few pixels at a threshold; gradients within ``gradient`` of their norm."""
    for name, a, b in zip(("colors", "alphas"), actual[:2], expected[:2], strict=True):
        difference = (a - b).abs()
        assert torch.isfinite(a).all(), name
        assert (difference > image).double().mean() < 2e-3, f"{name} differ by {difference.max():.2e}"
        assert difference.max() < 0.02, f"{name} differ by {difference.max():.2e}"
    for name, a, b in zip(NAMES, actual[2], expected[2], strict=True):
        assert torch.isfinite(a).all(), name
        error = ((a - b).norm() / b.norm().clamp_min(1e-12)).item()
        assert error < gradient or (a - b).norm() < 1e-6, f"gradient of {name} is off by {error:.2e}"


@pytest.mark.parametrize("channels", (1, 3, 4, 8, 32, 35))
def test_numba_agrees_with_the_float64_twin(channels: int) -> None:
    scene = rounded(make_scene(600, channels, (61, 47), seed=channels))
    actual, expected = differentiate(scene, "numba", torch.float32), differentiate(scene, "torch", torch.float64)
    assert_agree(actual, expected, 2e-5, 5e-4)


@pytest.mark.parametrize("harden", HARD, ids=lambda f: f.__name__)
@pytest.mark.parametrize("channels", (3, 12))
def test_numba_agrees_on_hard_scenes(harden: Callable[[Scene], None], channels: int) -> None:
    scene = make_scene(3000 if harden is crowd else 300, channels, (53, 38), seed=5)
    harden(scene)
    scene = rounded(scene)
    expected = differentiate(scene, "torch", torch.float64)
    assert_agree(differentiate(scene, "numba", torch.float32), expected, 5e-5, 5e-3)


@pytest.mark.parametrize("harden", (behind, border, degenerate, thresholds), ids=lambda f: f.__name__)
def test_the_twin_agrees_with_itself_in_float32(harden: Callable[[Scene], None]) -> None:
    scene = make_scene(300, 5, (40, 33), seed=9)
    harden(scene)
    scene = rounded(scene)
    expected = differentiate(scene, "torch", torch.float64)
    assert_agree(differentiate(scene, "torch", torch.float32), expected, 5e-5, 5e-3)


@pytest.mark.parametrize("size", ((1, 1), (3, 70), (17, 4)))
def test_odd_image_sizes(size: tuple[int, int]) -> None:
    scene = rounded(make_scene(200, 3, size))
    expected = differentiate(scene, "torch", torch.float64)
    assert_agree(differentiate(scene, "numba", torch.float32), expected, 2e-5, 1e-3)


def test_bands_do_not_change_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(300, 3, (40, 33))
    whole = differentiate(scene, "torch", torch.float64)
    monkeypatch.setattr("avtool.render.reference._MAX_PAIRS", 300 * 40 * 3)
    bands = differentiate(scene, "torch", torch.float64)
    assert_agree(bands, whole, 1e-12, 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_the_twin_matches_finite_differences(name: str) -> None:
    scene = make_scene(12, 2, (14, 12), seed=3)
    scene["scales"] *= 0.4

    def image(value: Tensor) -> Tensor:
        inputs = {**scene, name: value}
        fields = Gaussians(*(inputs[field] for field in FIELDS))
        output = render(
            fields, inputs["viewmats"], inputs["Ks"], 14, 12, background=inputs["background"], backend="torch"
        )
        return (output.colors.sin().sum() + output.alphas.square().sum())[None]

    value = scene[name].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(image(value), value)
    # The alpha threshold makes the image jump; a small step and the median of several directions step around it.
    generator = torch.Generator().manual_seed(2)
    errors = []
    for _ in range(9):
        direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        step = 1e-8 * direction
        with torch.no_grad():
            numeric = (image(value + step) - image(value - step)) / 2e-8
        analytic = (gradient * direction).sum()
        errors.append(((numeric - analytic).abs() / analytic.abs().clamp_min(1e-3)).item())
    assert sorted(errors)[4] < 1e-4, errors


@pytest.mark.gpu
@pytest.mark.skipif(not is_available(), reason="needs a CUDA device and gsplat")
@pytest.mark.parametrize("channels", (3, 32, 35))
def test_gsplat_agrees_with_the_twin(channels: int) -> None:
    scene = rounded(make_scene(2000, channels, (96, 80), seed=channels))
    expected = differentiate(scene, "torch", torch.float64)
    assert_agree(differentiate(scene, "gsplat", torch.float32, "cuda"), expected, 5e-5, 2e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not is_available(), reason="needs a CUDA device and gsplat")
@pytest.mark.parametrize("harden", (behind, border, degenerate, thresholds, off_screen), ids=lambda f: f.__name__)
def test_gsplat_agrees_on_hard_scenes(harden: Callable[[Scene], None]) -> None:
    scene = make_scene(300, 3, (53, 38), seed=5)
    harden(scene)
    scene = rounded(scene)
    expected = differentiate(scene, "torch", torch.float64)
    assert_agree(differentiate(scene, "gsplat", torch.float32, "cuda"), expected, 1e-4, 1e-2)
