"""Geometry of triangle meshes as differentiable torch functions.

Shape legend: ... batch, V vertices, F triangles, E edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from avtool.rotations import matrix_to_quat

# Lengths are divided by at least this much (meters): a collapsed triangle gives a finite frame.
_MIN_LENGTH = 1e-9


@dataclass(frozen=True)
class TriangleFrames:
    """Local frames of triangles, as GaussianAvatars (Qian et al. 2024, section 3.2) defines them.

    Attributes:
        rotations: (..., F, 3, 3), columns: direction of the first edge, normal, their cross product.
        quats: (..., F, 4) wxyz of the rotations.
        scales: (..., F) meters: mean of the first edge's length and the height over it.
        origins: (..., F, 3) centroids.
    """

    rotations: Tensor
    quats: Tensor
    scales: Tensor
    origins: Tensor


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """values[..., index, :] of values (..., V, D) at index (N,): (..., N, D).

    The gradient of plain indexing adds in the order in which threads come by, so that no run equals another in its last
    bits; this one does not, and takes half the time on a CPU.
    """
    return values.gather(-2, index[:, None].expand(*values.shape[:-2], len(index), values.shape[-1]))


def triangle_frames(vertices: Tensor, faces: Tensor, face_idx: Tensor | None = None) -> TriangleFrames:
    """Frames of the triangles `faces` (F, 3), or of faces[face_idx] only, of vertices (..., V, 3)."""
    if face_idx is not None:
        faces = faces[face_idx]
    a, b, c = (take_rows(vertices, faces[:, k]) for k in range(3))
    edge, other = b - a, c - a
    first = _normalize(edge)
    normal = _normalize(torch.linalg.cross(first, other))
    third = torch.linalg.cross(first, normal)
    height = -(third * other).sum(-1)
    rotations = torch.stack((first, normal, third), dim=-1)
    scales = 0.5 * ((first * edge).sum(-1) + height)
    return TriangleFrames(rotations, matrix_to_quat(rotations), scales, (a + b + c) / 3)


def face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Normals (..., F, 3) with length twice the triangle's area, outwards for counter-clockwise triangles."""
    a, b, c = (vertices[..., faces[:, k], :] for k in range(3))
    return torch.linalg.cross(b - a, c - a)


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals (..., V, 3): area-weighted means of the triangles around a vertex."""
    normals = face_normals(vertices, faces)
    summed = torch.zeros_like(vertices)
    for k in range(3):
        summed = summed.index_add(-2, faces[:, k], normals)
    return _normalize(summed)


def unique_edges(faces: Tensor) -> Tensor:
    """Edges (E, 2) int64 of triangles (F, 3), each once, smaller index first."""
    return torch.unique(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).sort(1).values, dim=0)


def laplacian(faces: Tensor, num_vertices: int) -> Tensor:
    """Uniform Laplacian (V, V), sparse: x - mean of neighbors; rows of vertices without edges are zero."""
    edges = unique_edges(faces)
    both = torch.cat((edges, edges.flip(1)))
    degree = torch.bincount(both[:, 0], minlength=num_vertices).float()
    diagonal = torch.arange(num_vertices, device=faces.device)
    indices = torch.cat((torch.stack((diagonal, diagonal)), both.T), dim=1)
    values = torch.cat(((degree > 0).float(), -1 / degree[both[:, 0]]))
    return torch.sparse_coo_tensor(indices, values, (num_vertices, num_vertices), check_invariants=False).coalesce()


def _normalize(v: Tensor) -> Tensor:
    return v / (v * v).sum(-1, keepdim=True).clamp_min(_MIN_LENGTH**2).sqrt()
