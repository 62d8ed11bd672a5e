"""Mesh -> Gaussians: every point rides on its parent triangle (GaussianAvatars, Qian et al. 2024; HeadGAP's T).

point_frames and local_to_global say it readably, in torch; carry and carry_means are the same on the fastest path of the
device: one compiled kernel on a CPU, torch elsewhere.

Shape legend: ... batch, V vertices, F triangles, N points, I identities, B meshes (a multiple of I, grouped by identity).
Local quantities live in the triangle's frame, in units of its scale; global ones in metres in the frame of the vertices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from avtool import jit
from avtool.gaussians.cpu_rig import Carry
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


def carry(
    local_means: Tensor, local_quats: Tensor, local_scales: Tensor, vertices: Tensor, faces: Tensor, binding: PointBinding
) -> tuple[Tensor, Tensor, Tensor]:
    """local_to_global on the frames of B meshes: local fields (I, N, .), vertices (B, V, 3) -> (B, N, .)."""
    if _is_compiled(vertices, local_means):
        return Carry.apply(
            True, vertices, faces, binding.face_idx, binding.barycentrics, local_means, local_quats, local_scales
        )
    views = len(vertices) // len(local_means)
    local = (_repeat(field, views) for field in (local_means, local_quats, local_scales))
    return local_to_global(*local, point_frames(vertices, faces, binding))


def carry_means(local_means: Tensor, vertices: Tensor, faces: Tensor, binding: PointBinding) -> Tensor:
    """The means of carry alone, (B, N, 3), vertices (B, V, 3) or (V, 3): without the quaternions, the dearest part."""
    vertices = vertices.reshape(-1, *vertices.shape[-2:])
    if _is_compiled(vertices, local_means):
        none = local_means.new_zeros(len(local_means), 0, 4)
        return Carry.apply(
            False, vertices, faces, binding.face_idx, binding.barycentrics, local_means, none, none[..., :3]
        )[0]
    a, b, c = (take_rows(vertices, faces[binding.face_idx, k]) for k in range(3))
    weights = binding.barycentrics
    edge, other = b - a, c - a
    first = F.normalize(edge, dim=-1, eps=1e-9)
    normal = F.normalize(torch.linalg.cross(first, other), dim=-1, eps=1e-9)
    third = torch.linalg.cross(first, normal)
    scale = 0.5 * ((first * edge).sum(-1, keepdim=True) - (third * other).sum(-1, keepdim=True))
    x, y, z = _repeat(local_means, len(vertices) // len(local_means)).split(1, dim=-1)
    return a + weights[:, 1:2] * edge + weights[:, 2:3] * other + scale * (first * x + normal * y + third * z)


def _is_compiled(vertices: Tensor, local_means: Tensor) -> bool:
    """Whether the compiled kernel can be used: float32 on a CPU."""
    kinds = {(t.device.type, t.dtype) for t in (vertices, local_means)}
    if kinds != {("cpu", torch.float32)}:
        return False
    jit.choose_threading_layer()
    return True


def _repeat(field: Tensor, views: int) -> Tensor:
    """(I, N, .) -> (B, N, .); one identity broadcasts without a copy."""
    return field if views == 1 or len(field) == 1 else field.repeat_interleave(views, dim=0)
