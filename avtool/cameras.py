"""Pinhole cameras in OpenCV axes: x right, y down, z forward.

viewmats (..., 4, 4) map world points to camera points; Ks (..., 3, 3) map camera points to pixels whose centers lie
at +0.5. Lengths are metres, angles radians. The world is the head model's space: x to the person's left, y up,
z out of the face, so a frontal camera has the rotation diag(1, -1, -1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

UP = (0.0, 1.0, 0.0)


def look_at(eye: Tensor | Sequence[float], target: Tensor | Sequence[float], up: Tensor | Sequence[float] = UP) -> Tensor:
    """Camera at ``eye`` that looks at ``target``.

    Args:
        eye, target, up: (..., 3) in world space; ``up`` points to the image's top and must not lie along the view.

    Returns:
        viewmat (..., 4, 4).
    """
    eye = torch.as_tensor(eye, dtype=torch.float32)
    target = torch.as_tensor(target, dtype=eye.dtype, device=eye.device)
    up = torch.as_tensor(up, dtype=eye.dtype, device=eye.device)
    eye, target, up = torch.broadcast_tensors(eye, target, up)
    forward = torch.nn.functional.normalize(target - eye, dim=-1)
    right = torch.linalg.cross(forward, up)
    if bool((right.norm(dim=-1) < 1e-6).any()):
        raise ValueError("look_at: the view direction must not lie along the up vector")
    right = torch.nn.functional.normalize(right, dim=-1)
    down = torch.linalg.cross(forward, right)
    rotation = torch.stack([right, down, forward], dim=-2)
    viewmat = torch.zeros(*eye.shape[:-1], 4, 4, dtype=eye.dtype, device=eye.device)
    viewmat[..., :3, :3] = rotation
    viewmat[..., :3, 3] = -(rotation @ eye[..., None])[..., 0]
    viewmat[..., 3, 3] = 1.0
    return viewmat


def orbit_viewmats(
    yaws: Tensor | Sequence[float],
    pitches: Tensor | Sequence[float],
    radius: float,
    center: Tensor | Sequence[float] = (0.0, 0.0, 0.0),
) -> Tensor:
    """Cameras on a sphere around ``center``; yaw 0, pitch 0 is straight in front of the face.

    Args:
        yaws: (C,) radians, positive moves the camera to the person's left.
        pitches: (C,) radians, positive moves the camera up.
        radius: distance to ``center`` in metres.
        center: (3,) world point every camera looks at.

    Returns:
        viewmats (C, 4, 4).
    """
    yaws = torch.as_tensor(yaws, dtype=torch.float32)
    pitches = torch.as_tensor(pitches, dtype=torch.float32)
    yaws, pitches = torch.broadcast_tensors(yaws, pitches)
    center = torch.as_tensor(center, dtype=torch.float32)
    direction = torch.stack([yaws.sin() * pitches.cos(), pitches.sin(), yaws.cos() * pitches.cos()], dim=-1)
    return look_at(center + radius * direction, center.expand_as(direction))


def project(points: Tensor, viewmats: Tensor, Ks: Tensor) -> tuple[Tensor, Tensor]:
    """World points to pixels.

    Args:
        points: (..., N, 3) world metres.
        viewmats: (..., 4, 4) world to camera.
        Ks: (..., 3, 3).

    Returns:
        uv (..., N, 2) in pixels and depth (..., N) in metres along the view axis.
    """
    camera = points @ viewmats[..., :3, :3].mT + viewmats[..., None, :3, 3]
    depth = camera[..., 2]
    homogeneous = camera @ Ks.mT
    safe_depth = torch.where(depth.abs() < 1e-8, torch.full_like(depth, 1e-8), depth)
    return homogeneous[..., :2] / safe_depth[..., None], depth


def crop_intrinsics(Ks: Tensor, crop: Tensor | Sequence[float], out_size: int | tuple[int, int]) -> Tensor:
    """Intrinsics of a resized crop.

    Args:
        Ks: (..., 3, 3) of the full image.
        crop: (..., 3) as x0, y0, size for a square, or (..., 4) as x0, y0, x1, y1; pixels of the full image.
        out_size: side of the square output, or (width, height).

    Returns:
        Ks (..., 3, 3) of the output image.
    """
    crop = torch.as_tensor(crop, dtype=Ks.dtype, device=Ks.device)
    if crop.shape[-1] == 3:
        extent = crop[..., 2:3].expand(*crop.shape[:-1], 2)
    elif crop.shape[-1] == 4:
        extent = crop[..., 2:4] - crop[..., 0:2]
    else:
        raise ValueError(f"crop_intrinsics: crop must have 3 or 4 numbers, found {crop.shape[-1]}")
    width, height = (out_size, out_size) if isinstance(out_size, int) else out_size
    scale = torch.tensor([width, height], dtype=Ks.dtype, device=Ks.device) / extent
    rows = Ks[..., :2, :].clone()
    shift = torch.zeros_like(rows)
    shift[..., 2] = crop[..., :2]
    rows = (rows - shift) * scale[..., None]
    last = Ks[..., 2:, :].expand(*rows.shape[:-2], 1, 3)
    return torch.cat([rows, last], dim=-2)


def intrinsics(focal: float, width: int, height: int) -> Tensor:
    """K (3, 3) with square pixels, ``focal`` in pixels and the principal point in the image's middle."""
    return torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
