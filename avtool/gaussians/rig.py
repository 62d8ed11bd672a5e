"""Mesh -> Gaussians: every point rides on its parent triangle (GaussianAvatars, Qian et al. 2024; HeadGAP's T).

Shape legend: ... batch, V vertices, F triangles, N points. Local quantities live in the triangle's frame, in units of
its scale; global ones in metres in the frame of the vertices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from avtool.gaussians.seeding import PointBinding
from avtool.head import triangle_frames
from avtool.head.mesh import take_rows
from avtool.rotations import quat_multiply


class PointFrames(NamedTuple):
    """Frame of each point.

    rotations (..., N, 3, 3) local -> global, quats (..., N, 4) the same as wxyz, scales (..., N) metres per local
    unit, origins (..., N, 3) the barycentric point on the triangle, metres.
    """

    rotations: Tensor
    quats: Tensor
    scales: Tensor
    origins: Tensor


def point_frames(vertices: Tensor, faces: Tensor, binding: PointBinding) -> PointFrames:
    """Frames of bound points on a posed mesh, differentiable in the vertices.

    Args: vertices (..., V, 3) metres, faces (F, 3), binding of N points.
    """
    triangles = triangle_frames(vertices, faces)
    face_idx = binding.face_idx
    corners = faces[face_idx]
    origins = sum(
        (binding.barycentrics[:, k, None] * take_rows(vertices, corners[:, k]) for k in range(3)),
        start=torch.zeros((), dtype=vertices.dtype, device=vertices.device),
    )
    return PointFrames(
        rotations=take_rows(triangles.rotations.flatten(-2), face_idx).unflatten(-1, (3, 3)),
        quats=take_rows(triangles.quats, face_idx),
        scales=take_rows(triangles.scales[..., None], face_idx)[..., 0],
        origins=origins,
    )


def local_to_global(
    local_means: Tensor, local_quats: Tensor, local_scales: Tensor, frames: PointFrames
) -> tuple[Tensor, Tensor, Tensor]:
    """mu = s R mu' + t, r = R r', S = s S' (HeadGAP section 3.1): local attributes carried to the posed mesh.

    Args: local_means (..., N, 3), local_quats (..., N, 4) wxyz, local_scales (..., N, 3), all in triangle units.
    Returns: means (..., N, 3) metres, quats (..., N, 4), scales (..., N, 3) metres.
    """
    scale = frames.scales[..., None]
    means = scale * (frames.rotations * local_means[..., None, :]).sum(-1) + frames.origins
    return means, quat_multiply(frames.quats, local_quats), scale * local_scales
