"""Scenes for the render tests: an easy one, and changes that make it hard."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

FIELDS = ("means", "quats", "scales", "opacities", "colors")
NAMES = (*FIELDS, "viewmats", "background")

Scene = dict[str, Tensor]


def make_scene(num_points: int, channels: int, size: tuple[int, int], seed: int = 0) -> Scene:
    """A fuzzy ball in front of a slightly turned camera, in float64; depths are spread so that no two tie."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    direction = functional.normalize(normal(num_points, 3), dim=-1)
    width, height = size
    angle = 0.3
    viewmat = torch.eye(4, dtype=torch.float64)
    viewmat[0, 0] = viewmat[2, 2] = math.cos(angle)
    viewmat[0, 2], viewmat[2, 0] = math.sin(angle), -math.sin(angle)
    viewmat[:3, 3] = torch.tensor([0.005, -0.004, 0.9])
    means = direction * 0.11 * (1 + 0.1 * normal(num_points, 1))
    # Neighbors in depth end up 1e-5 m apart: float32 and float64 then sort alike.
    depth = means @ viewmat[2, :3]
    spread = (torch.argsort(torch.argsort(depth)) / max(1, num_points) - 0.5) * 0.2
    means = means + (spread - depth)[:, None] * viewmat[2, :3]
    K = torch.tensor([[3.0 * width, 0, width / 2 + 0.7], [0, 3.0 * width, height / 2 - 1.3], [0, 0, 1]])
    return {
        "means": means,
        "quats": normal(num_points, 4),
        "scales": 0.35 / math.sqrt(max(1, num_points)) * torch.exp(0.5 * normal(num_points, 3)),
        "opacities": torch.sigmoid(0.7 + 1.6 * normal(num_points)),
        "colors": uniform(num_points, channels),
        "viewmats": viewmat,
        "background": uniform(channels),
        "Ks": K.double(),
        "size": torch.tensor(size),
    }


def behind(scene: Scene) -> None:
    """A third of the points on or behind the camera."""
    scene["means"][::3] -= 1.2 * scene["viewmats"][2, :3]
    scene["means"][1] = -scene["viewmats"][:3, :3].T @ scene["viewmats"][:3, 3]


def border(scene: Scene) -> None:
    """Points far to the side, where the Jacobian is clamped, and across every border."""
    scene["means"][:, :2] *= 2.0
    scene["means"][:40, 0] += torch.linspace(-0.8, 0.8, 40, dtype=torch.float64)
    scene["scales"][:40] *= 6


def huge(scene: Scene) -> None:
    """A few Gaussians much larger than the image, faint so that the others still show."""
    scene["scales"][:6] = torch.tensor([0.5, 3.0, 20.0], dtype=torch.float64)
    scene["opacities"][:6] = 0.2


def degenerate(scene: Scene) -> None:
    """Points, needles and plates."""
    scene["scales"][:30] = 0.0
    scene["scales"][30:60, 1:] = 0.0
    scene["scales"][60:90, 0] = 1e-9
    scene["scales"][90:100, 0] *= 30


def crowd(scene: Scene) -> None:
    """All on one pixel: the transmittance cut and the longest list."""
    scene["means"][:, :2] *= 1e-3
    scene["scales"] *= 0.2
    scene["opacities"] *= 0.05


def thresholds(scene: Scene) -> None:
    """Opacities at zero, below and just above 1/255, at the cap, at one and beyond."""
    for k, opacity in enumerate((0.0, 0.0039, 0.00393, 0.5, 0.9989, 1.0, 1.2)):
        scene["opacities"][20 * k : 20 * k + 20] = opacity


def nothing(scene: Scene) -> None:
    """No Gaussians at all."""
    for name in FIELDS:
        scene[name] = scene[name][:0]


def off_screen(scene: Scene) -> None:
    """All of them outside of the image."""
    scene["means"][:, 0] += 5.0


HARD = (behind, border, huge, degenerate, crowd, thresholds, nothing, off_screen)
