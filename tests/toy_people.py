"""A data set of painted heads for tests of training and personalization: exact parameters, a color a part and person."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avtool.artifacts.track import Frame, Track
from avtool.cameras import intrinsics, orbit_viewmats
from avtool.gaussians.container import Gaussians
from avtool.gaussians.rig import local_to_global, point_frames
from avtool.gaussians.seeding import seed_points
from avtool.head import PARTS, HeadModel, HeadParams
from avtool.prior.synthesis import base_scales
from avtool.render import render

FOCAL, DISTANCE, CENTER = 2.4, 0.8, (0.0, 0.05, 0.05)


def toy_cameras(yaws: list[float], size: int) -> tuple[Tensor, Tensor]:
    """Cameras that look at the face from the given yaws (radians): viewmats (C, 4, 4), Ks (C, 3, 3)."""
    angles = torch.tensor(yaws)
    viewmats = orbit_viewmats(angles, torch.zeros_like(angles), DISTANCE, torch.tensor(CENTER))
    return viewmats, intrinsics(FOCAL * size, size, size).expand(len(yaws), 3, 3)


def paint(head: HeadModel, params: HeadParams, colors: Tensor, viewmats: Tensor, Ks: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pictures (B, S, S, 3) on white and coverage (B, S, S, 1) of heads whose parts have colors (P, 3)."""
    binding = seed_points(head, 64)
    scales = base_scales(head, binding)
    frames = point_frames(head(params).vertices, head.faces, binding)
    quats = torch.tensor((1.0, 0.0, 0.0, 0.0)).expand(binding.num_points, 4)
    means, quats, scales = local_to_global(torch.zeros(binding.num_points, 3), quats, scales, frames)
    gaussians = Gaussians(means, quats, scales, torch.full((binding.num_points,), 0.95), colors[binding.part])
    output = render(gaussians, viewmats, Ks, size, size)
    return output.colors + 1 - output.alphas, output.alphas


def toy_colors(seed: int) -> Tensor:
    """(P, 3)"""
    return torch.rand(len(PARTS), 3, generator=torch.Generator().manual_seed(seed)) * 0.8 + 0.1


def make_person(directory: Path, head: HeadModel, seed: int, views: int = 4, size: int = 48, moments: int = 0) -> Path:
    """Write one person's pictures, mattes and track.json; returns the track's path.

    moments: 0 for one a view, else how many there are, each seen by every moments-th camera.
    """
    directory.mkdir(parents=True)
    rng = torch.Generator().manual_seed(1000 + seed)
    params = HeadParams.zeros(head, (views,))
    identity = 0.5 * torch.randn(head.num_identity, generator=rng)
    jaw_open = head.expression_index("jawOpen")
    expression = params.expression.clone()
    expression[:, jaw_open] = torch.linspace(0, 0.7, moments or views)[torch.arange(views) % (moments or views)]
    params = replace(params, identity=identity.expand(views, -1), expression=expression)
    viewmats, Ks = toy_cameras(torch.linspace(-0.5, 0.5, views).tolist(), size)
    images, alphas = paint(head, params, toy_colors(seed), viewmats, Ks, size)
    frames = []
    for i in range(views):
        for name, picture in ((f"{i}.png", images[i]), (f"{i}_matte.png", alphas[i, ..., 0])):
            Image.fromarray((picture.clamp(0, 1) * 255).round().byte().numpy()).save(directory / name)
        zeros = np.zeros(3)
        frames.append(
            Frame(
                image=f"{i}.png", frame_idx=None, width=size, height=size, K=Ks[i].numpy(), viewmat=viewmats[i].numpy(),
                expression=expression[i].numpy(), neck=zeros, head=zeros, jaw=zeros, eyes=np.zeros((2, 3)),
                matte=f"{i}_matte.png", crop=(0.0, 0.0, float(size)),
            )
        )  # fmt: skip
    Track(head_model=head.model_id, identity=identity.numpy(), frames=frames, base=directory).save(directory / "track.json")
    return directory / "track.json"


def make_people(directory: Path, head: HeadModel, count: int = 3, views: int = 4, size: int = 48, moments: int = 0) -> Path:
    """A data set of several people; returns its directory."""
    for k in range(count):
        make_person(directory / f"person{k:02d}", head, k, views, size, moments)
    return directory
