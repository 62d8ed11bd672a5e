"""Rotations as torch tensors: quaternions (wxyz), matrices and axis-angle vectors (radians).

Every function is batched over leading dimensions, differentiable, and has finite gradients at the
identity, where the textbook formulas divide zero by zero.

Shapes: q (..., 4) wxyz, m (..., 3, 3) acting on column vectors, w (..., 3) axis times angle.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Below this squared angle the series replace the quotients: their first dropped term is then
# under float32's resolution.
_SMALL_ANGLE_SQUARED = 1e-6


def quat_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product of wxyz quaternions (..., 4): first rotates by b, then by a."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        (
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ),
        dim=-1,
    )


def quat_to_matrix(q: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of wxyz quaternions (..., 4), which need not have unit length."""
    w, x, y, z = q.unbind(-1)
    s = 2.0 / (q * q).sum(-1)
    rows = (
        1 - s * (y * y + z * z), s * (x * y - w * z), s * (x * z + w * y),
        s * (x * y + w * z), 1 - s * (x * x + z * z), s * (y * z - w * x),
        s * (x * z - w * y), s * (y * z + w * x), 1 - s * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def matrix_to_quat(m: Tensor) -> Tensor:
    """Unit quaternions (..., 4) wxyz with w >= 0 of rotation matrices (..., 3, 3).

    Four times the outer product q q^T can be read off the matrix; its row with the largest
    diagonal entry is the numerically safe one (Shepperd 1978).
    """
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = m.flatten(-2).unbind(-1)
    outer = torch.stack(
        (
            1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01,
            m21 - m12, 1 + m00 - m11 - m22, m01 + m10, m02 + m20,
            m02 - m20, m01 + m10, 1 - m00 + m11 - m22, m12 + m21,
            m10 - m01, m02 + m20, m12 + m21, 1 - m00 - m11 + m22,
        ),
        dim=-1,
    ).unflatten(-1, (4, 4))  # fmt: skip
    best = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = outer.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    q = row / row.norm(dim=-1, keepdim=True)
    return torch.where(q[..., :1] < 0, -q, q)


def axis_angle_to_quat(w: Tensor) -> Tensor:
    """Unit quaternions (..., 4) wxyz of axis-angle vectors (..., 3) in radians."""
    squared = (w * w).sum(-1, keepdim=True)
    small = squared < _SMALL_ANGLE_SQUARED
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    real = torch.where(small, 1 - squared / 8, (angle / 2).cos())
    factor = torch.where(small, 0.5 - squared / 48, (angle / 2).sin() / angle)
    return torch.cat((real, factor * w), dim=-1)


def axis_angle_to_matrix(w: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of axis-angle vectors (..., 3) in radians (Rodrigues)."""
    squared = (w * w).sum(-1)
    small = squared < _SMALL_ANGLE_SQUARED
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    first = torch.where(small, 1 - squared / 6, angle.sin() / angle)[..., None, None]
    second = torch.where(small, 0.5 - squared / 24, (1 - angle.cos()) / angle**2)[..., None, None]
    skew = _skew(w)
    eye = torch.eye(3, dtype=w.dtype, device=w.device)
    return eye + first * skew + second * (skew @ skew)


def matrix_to_axis_angle(m: Tensor) -> Tensor:
    """Axis-angle vectors (..., 3) in radians, angle in [0, pi], of rotation matrices (..., 3, 3)."""
    q = matrix_to_quat(m)
    real, vector = q[..., :1], q[..., 1:]
    squared = (vector * vector).sum(-1, keepdim=True)
    small = squared < _SMALL_ANGLE_SQUARED
    sine = torch.where(small, torch.ones_like(squared), squared).sqrt()
    factor = torch.where(small, 2 + squared / 3, 2 * torch.atan2(sine, real) / sine)
    return factor * vector


def _skew(w: Tensor) -> Tensor:
    x, y, z = w.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1).unflatten(-1, (3, 3))
