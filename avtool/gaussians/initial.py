"""Gaussians before any learning: flat discs on the mesh, colored by one photo.

Shape legend: N points, H x W image. World metres, OpenCV cameras.
"""

from __future__ import annotations

import torch
from torch import Tensor

from avtool.cameras import project
from avtool.gaussians.container import Gaussians
from avtool.gaussians.rig import PointFrames, local_to_global, point_frames
from avtool.gaussians.seeding import PointBinding
from avtool.head import HeadModel, HeadParams

OPACITY = 0.9
DISC = (0.6, 0.1, 0.6)
"""Local scales in units of the spacing: 0.6 leaves no holes between neighbors; axis 1 is the triangle's normal."""
MID_GRAY = 0.5
_FACING = 0.2
"""Cosine to the view below which a surface is too oblique to take its color from the photo."""
_DEPTH_CELLS = 96
_DEPTH_TOLERANCE = 0.012
"""Metres behind the nearest point of its cell at which a point counts as hidden: more than lids, less than a nose."""


def initial_gaussians(head: HeadModel, params: HeadParams, binding: PointBinding, colors: Tensor | None = None) -> Gaussians:
    """Opaque discs on the surface of one head.

    Args: params without batch; colors (N, 3) or None for mid gray.
    """
    frames = point_frames(head(params).vertices, head.faces, binding)
    num_points = binding.num_points
    identity = frames.quats.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(num_points, 4)
    local_scales = binding.spacing[:, None] * frames.scales.new_tensor(DISC)
    means, quats, scales = local_to_global(torch.zeros_like(frames.origins), identity, local_scales, frames)
    if colors is None:
        colors = means.new_full((num_points, 3), MID_GRAY)
    return Gaussians(means, quats, scales, means.new_full((num_points,), OPACITY), colors)


def colors_from_photo(frames: PointFrames, part: Tensor, image: Tensor, viewmat: Tensor, K: Tensor) -> Tensor:
    """Color of each point where a photo shows it; elsewhere the mean of its part, or mid gray.

    Args: frames of N points posed as in the photo, part (N,), image (H, W, 3) RGB in [0, 1], viewmat (4, 4), K (3, 3).
    Returns: (N, 3).
    """
    height, width = image.shape[:2]
    points = frames.origins
    uv, depth = project(points, viewmat, K)
    seen = _facing(frames, viewmat) & (depth > 0) & (uv >= 0).all(-1) & (uv[:, 0] < width) & (uv[:, 1] < height)
    seen &= ~_hidden(uv, depth)
    column, row = (uv[:, k].floor().long().clamp(0, size - 1) for k, size in ((0, width), (1, height)))
    colors = image[row, column].clone()
    for one in torch.unique(part).tolist():
        of_part = part == one
        shown = colors[of_part & seen]
        colors[of_part & ~seen] = shown.mean(0) if len(shown) else image.new_full((3,), MID_GRAY)
    return colors


def _facing(frames: PointFrames, viewmat: Tensor) -> Tensor:
    """Points whose outward normal looks at the camera."""
    center = -viewmat[:3, :3].T @ viewmat[:3, 3]
    towards = torch.nn.functional.normalize(center - frames.origins, dim=-1)
    return (frames.rotations[..., 1] * towards).sum(-1) > _FACING


def _hidden(uv: Tensor, depth: Tensor) -> Tensor:
    """Points with something clearly nearer in the same cell of a coarse depth map."""
    low, high = uv.amin(0), uv.amax(0)
    cell = ((uv - low) / (high - low).clamp_min(1e-6) * (_DEPTH_CELLS - 1)).long()
    cell = cell[:, 1] * _DEPTH_CELLS + cell[:, 0]
    nearest = depth.new_full((_DEPTH_CELLS**2,), float("inf")).scatter_reduce(0, cell, depth, "amin")
    return depth > nearest[cell] + _DEPTH_TOLERANCE
