"""Points riding on a mesh, on the CPU: rig.point_frames and rig.local_to_global in one pass, and its analytic gradient.

In torch the same takes some sixty small operations whose temporaries go through memory. The frame of a triangle is
orthonormal whatever the corners do, so its change is a turn: the gradients of means and quaternions become one torque,
which has a closed form in the corners.

Shape legend: B meshes of V vertices, F triangles, N points, I identities (B is a multiple of I, grouped), T threads.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from avtool import jit
from avtool.jit import inlined, threaded

f32 = np.float32
ZERO, ONE, HALF, MIN_LENGTH = f32(0), f32(1), f32(0.5), f32(1e-9)


@inlined
def _cross(ax, ay, az, bx, by, bz):
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx


@inlined
def _frame(vertices, mesh, a, b, c):
    """Of a triangle: first edge's direction, normal, third axis; the edge's length, the height over it, and how far
    along the edge its foot lies."""
    ax, ay, az = vertices[mesh, a, 0], vertices[mesh, a, 1], vertices[mesh, a, 2]
    edge_x, edge_y, edge_z = vertices[mesh, b, 0] - ax, vertices[mesh, b, 1] - ay, vertices[mesh, b, 2] - az
    other_x, other_y, other_z = vertices[mesh, c, 0] - ax, vertices[mesh, c, 1] - ay, vertices[mesh, c, 2] - az
    length = math.sqrt(edge_x * edge_x + edge_y * edge_y + edge_z * edge_z)
    inverse = ONE / max(length, MIN_LENGTH)
    ex, ey, ez = edge_x * inverse, edge_y * inverse, edge_z * inverse
    nx, ny, nz = _cross(ex, ey, ez, other_x, other_y, other_z)
    height = math.sqrt(nx * nx + ny * ny + nz * nz)
    inverse = ONE / max(height, MIN_LENGTH)
    nx, ny, nz = nx * inverse, ny * inverse, nz * inverse
    tx, ty, tz = _cross(ex, ey, ez, nx, ny, nz)
    foot = ex * other_x + ey * other_y + ez * other_z
    return ex, ey, ez, nx, ny, nz, tx, ty, tz, length, height, foot


@inlined
def _quat(ex, ey, ez, nx, ny, nz, tx, ty, tz):
    """Unit quaternion, w >= 0, of the rotation with these columns (Shepperd 1978; rotations.matrix_to_quat)."""
    ww, xx, yy, zz = ONE + ex + ny + tz, ONE + ex - ny - tz, ONE - ex + ny - tz, ONE - ex - ny + tz
    if ww >= xx and ww >= yy and ww >= zz:
        w, x, y, z = ww, nz - ty, tx - ez, ey - nx
    elif xx >= yy and xx >= zz:
        w, x, y, z = nz - ty, xx, nx + ey, tx + ez
    elif yy >= zz:
        w, x, y, z = tx - ez, nx + ey, yy, nz + ty
    else:
        w, x, y, z = ey - nx, tx + ez, nz + ty, zz
    scale = ONE / max(math.sqrt(w * w + x * x + y * y + z * z), MIN_LENGTH)
    if w < ZERO:
        scale = -scale
    return w * scale, x * scale, y * scale, z * scale


@inlined
def _multiply(aw, ax, ay, az, bw, bx, by, bz):
    """Hamilton product."""
    return (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )


@threaded
def carry_forward(
    num_threads, vertices, faces, face_idx, weights, means, quats, scales, whole, out_means, out_quats, out_scales
):
    """Fill out_means (B, N, 3), and if ``whole`` out_quats (B, N, 4) and out_scales (B, N, 3), from local (I, N, .)."""
    num_points, meshes = len(face_idx), vertices.shape[0]
    views = meshes // means.shape[0]
    for thread in prange(num_threads):
        for n in range(num_points * thread // num_threads, num_points * (thread + 1) // num_threads):
            face = face_idx[n]
            a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
            wa, wb, wc = weights[n, 0], weights[n, 1], weights[n, 2]
            for mesh in range(meshes):
                i = mesh // views
                ex, ey, ez, nx, ny, nz, tx, ty, tz, length, height, foot = _frame(vertices, mesh, a, b, c)
                scale = HALF * (length + height)
                x, y, z = scale * means[i, n, 0], scale * means[i, n, 1], scale * means[i, n, 2]
                first, normal, third = (ex, ey, ez), (nx, ny, nz), (tx, ty, tz)
                for k in range(3):
                    origin = wa * vertices[mesh, a, k] + wb * vertices[mesh, b, k] + wc * vertices[mesh, c, k]
                    out_means[mesh, n, k] = origin + first[k] * x + normal[k] * y + third[k] * z
                if whole:
                    qw, qx, qy, qz = _quat(ex, ey, ez, nx, ny, nz, tx, ty, tz)
                    w, x, y, z = _multiply(
                        qw, qx, qy, qz, quats[i, n, 0], quats[i, n, 1], quats[i, n, 2], quats[i, n, 3]
                    )
                    out_quats[mesh, n, 0], out_quats[mesh, n, 1] = w, x
                    out_quats[mesh, n, 2], out_quats[mesh, n, 3] = y, z
                    for k in range(3):
                        out_scales[mesh, n, k] = scale * scales[i, n, k]


@inlined
def _turned_gradient(quats, v_quats, out_v_quats, i, mesh, n, qw, qx, qy, qz):
    """Adds the local quaternion's gradient; returns the torque that the carried quaternion's gradient puts on the frame."""
    gw, gx, gy, gz = v_quats[mesh, n, 0], v_quats[mesh, n, 1], v_quats[mesh, n, 2], v_quats[mesh, n, 3]
    lw, lx, ly, lz = _multiply(qw, -qx, -qy, -qz, gw, gx, gy, gz)
    out_v_quats[i, n, 0] += lw
    out_v_quats[i, n, 1] += lx
    out_v_quats[i, n, 2] += ly
    out_v_quats[i, n, 3] += lz
    w, x, y, z = _multiply(qw, qx, qy, qz, quats[i, n, 0], quats[i, n, 1], quats[i, n, 2], quats[i, n, 3])
    cx, cy, cz = _cross(x, y, z, gx, gy, gz)
    return HALF * (w * gx - gw * x + cx), HALF * (w * gy - gw * y + cy), HALF * (w * gz - gw * z + cz)


@inlined
def _add_corner_gradient(buffers, thread, mesh, a, b, c, frame, turn, v_scale):
    """Chain a torque on the frame, ``turn`` (along its axes), and a gradient of its scale to the corners."""
    ex, ey, ez, nx, ny, nz, tx, ty, tz, length, height, foot = frame
    if length <= MIN_LENGTH or height <= MIN_LENGTH:  # a collapsed triangle's frame does not follow its corners
        return
    turn_e, turn_n, turn_t = turn
    lean = foot / length
    along_n, along_t = turn_t / length - turn_e * lean / height, HALF * v_scale * lean - turn_n / length
    along_e = HALF * v_scale
    other_n, other_t = turn_e / height, -HALF * v_scale
    first, normal, third = (ex, ey, ez), (nx, ny, nz), (tx, ty, tz)
    for k in range(3):
        v_edge = along_e * first[k] + along_n * normal[k] + along_t * third[k]
        v_other = other_n * normal[k] + other_t * third[k]
        buffers[thread, mesh, b, k] += v_edge
        buffers[thread, mesh, c, k] += v_other
        buffers[thread, mesh, a, k] -= v_edge + v_other


@threaded
def carry_backward(
    num_threads, vertices, faces, face_idx, weights, means, quats, scales, whole, on_mesh, v_means, v_quats, v_scales,
    buffers, out_v_means, out_v_quats, out_v_scales,
):  # fmt: skip
    """Adds the gradients of the local fields to out_v_. (I, N, .), and if ``on_mesh`` those of the vertices to the
    threads' buffers (T, B, V, 3)."""
    num_points, meshes = len(face_idx), vertices.shape[0]
    views = meshes // means.shape[0]
    for thread in prange(num_threads):
        for n in range(num_points * thread // num_threads, num_points * (thread + 1) // num_threads):
            face = face_idx[n]
            a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
            for mesh in range(meshes):
                i = mesh // views
                frame = _frame(vertices, mesh, a, b, c)
                ex, ey, ez, nx, ny, nz, tx, ty, tz, length, height, foot = frame
                scale = HALF * (length + height)
                x, y, z = means[i, n, 0], means[i, n, 1], means[i, n, 2]
                gx, gy, gz = v_means[mesh, n, 0], v_means[mesh, n, 1], v_means[mesh, n, 2]
                local_e, local_n = ex * gx + ey * gy + ez * gz, nx * gx + ny * gy + nz * gz
                local_t = tx * gx + ty * gy + tz * gz
                out_v_means[i, n, 0] += scale * local_e
                out_v_means[i, n, 1] += scale * local_n
                out_v_means[i, n, 2] += scale * local_t
                v_scale = x * local_e + y * local_n + z * local_t
                turn_e, turn_n, turn_t = _cross(scale * x, scale * y, scale * z, local_e, local_n, local_t)
                if whole:
                    qw, qx, qy, qz = _quat(ex, ey, ez, nx, ny, nz, tx, ty, tz)
                    ux, uy, uz = _turned_gradient(quats, v_quats, out_v_quats, i, mesh, n, qw, qx, qy, qz)
                    turn_e += ux * ex + uy * ey + uz * ez
                    turn_n += ux * nx + uy * ny + uz * nz
                    turn_t += ux * tx + uy * ty + uz * tz
                    for k in range(3):
                        out_v_scales[i, n, k] += scale * v_scales[mesh, n, k]
                        v_scale += scales[i, n, k] * v_scales[mesh, n, k]
                if on_mesh:
                    for k in range(3):
                        gradient = v_means[mesh, n, k]
                        buffers[thread, mesh, a, k] += weights[n, 0] * gradient
                        buffers[thread, mesh, b, k] += weights[n, 1] * gradient
                        buffers[thread, mesh, c, k] += weights[n, 2] * gradient
                    _add_corner_gradient(buffers, thread, mesh, a, b, c, frame, (turn_e, turn_n, turn_t), v_scale)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in tensors]


class Carry(torch.autograd.Function):
    """vertices (B, V, 3), faces (F, 3), face_idx (N,), barycentrics (N, 3), local means, quats and scales (I, N, .) ->
    means (B, N, 3), and if ``whole`` quats (B, N, 4) and scales (B, N, 3), else empty ones. All float32 on the CPU."""

    @staticmethod
    def forward(ctx: Any, whole: bool, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tensors = tuple(tensor.contiguous() for tensor in tensors)
        vertices, face_idx = tensors[0], tensors[2]
        meshes, points = len(vertices), len(face_idx)
        outputs = [torch.empty(meshes, points, 3), torch.empty(meshes, points * whole, 4), torch.empty(meshes, points * whole, 3)]
        with jit.LOCK:
            carry_forward(jit.num_threads(), *_arrays(*tensors), whole, *_arrays(*outputs))
        ctx.whole = whole
        ctx.save_for_backward(*tensors)
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        vertices, *_, means, quats, scales = tensors = ctx.saved_tensors
        on_mesh = ctx.needs_input_grad[1]
        local = [torch.zeros_like(tensor) for tensor in (means, quats, scales)]
        with jit.LOCK:
            threads = jit.num_threads()
            # A buffer a thread: sums in one order, so that a run equals the next bit by bit.
            buffers = torch.zeros(threads, *(vertices.shape if on_mesh else (0, 0, 3)))
            carry_backward(
                threads, *_arrays(*tensors), ctx.whole, on_mesh, *_arrays(*(g.contiguous() for g in gradients)),
                *_arrays(buffers, *local),
            )  # fmt: skip
        return None, buffers.sum(0) if on_mesh else None, None, None, None, *local
