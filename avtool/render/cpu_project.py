"""Projection of Gaussians into one camera on the CPU, and its analytic gradient (the meaning is in reference.py).

Per Gaussian and camera, with J the projection's Jacobian, R the camera's rotation, Q the Gaussian's and S its scales:
factor = J R Q S (2 x 3), covariance = factor factor^T + 0.3 I, conic = covariance^-1.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from avtool.render.jit import kernel, threaded
from avtool.render.simd import float_bits

f32 = np.float32
ZERO, ONE, TWO, HALF = f32(0), f32(1), f32(2), f32(0.5)
EPS2D, NEAR_PLANE, ALPHA_THRESHOLD = f32(0.3), f32(0.01), f32(1 / 255)
HALF_MARGIN = f32(0.3 * 0.5)
LOG2_255, TWO_LN2 = f32(math.log2(255)), f32(2 * math.log(2))
LARGEST, TINY = f32(1e37), f32(1e-12)

# Columns of the projection table (N, NUM_COLUMNS): mean (px), conic, inverse determinant of the covariance,
# half extents of the visible ellipse (px), its level (squared Mahalanobis radius), log2 of the opacity, camera point.
MEAN_X, MEAN_Y, CONIC_XX, CONIC_XY, CONIC_YY, DET, EXTENT_X, EXTENT_Y, LEVEL, LOG2_OPACITY, X, Y, Z = range(13)
NUM_COLUMNS = 16


@kernel
def _unit_quat(quats, i):
    """Normalized quaternion i and the inverse of its length (torch's normalize: length at least 1e-12)."""
    w, x, y, z = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
    inverse = ONE / max(math.sqrt(w * w + x * x + y * y + z * z), TINY)
    return w * inverse, x * inverse, y * inverse, z * inverse, inverse


@kernel
def _rotation(w, x, y, z):
    """Rotation matrix of a unit quaternion, row by row."""
    return (
        ONE - TWO * (y * y + z * z), TWO * (x * y - w * z), TWO * (x * z + w * y),
        TWO * (x * y + w * z), ONE - TWO * (x * x + z * z), TWO * (y * z - w * x),
        TWO * (x * z - w * y), TWO * (y * z + w * x), ONE - TWO * (x * x + y * y),
    )  # fmt: skip


@kernel
def _times(a0, a1, a2, m):
    """Row vector times a 3 x 3 matrix given row by row."""
    return (
        a0 * m[0] + a1 * m[3] + a2 * m[6],
        a0 * m[1] + a1 * m[4] + a2 * m[7],
        a0 * m[2] + a1 * m[5] + a2 * m[8],
    )


@kernel
def _times_transposed(a0, a1, a2, m):
    """Row vector times the transpose of a 3 x 3 matrix given row by row."""
    return (
        a0 * m[0] + a1 * m[1] + a2 * m[2],
        a0 * m[3] + a1 * m[4] + a2 * m[5],
        a0 * m[6] + a1 * m[7] + a2 * m[8],
    )


@kernel
def _camera_rotation(viewmat):
    return (
        viewmat[0, 0], viewmat[0, 1], viewmat[0, 2],
        viewmat[1, 0], viewmat[1, 1], viewmat[1, 2],
        viewmat[2, 0], viewmat[2, 1], viewmat[2, 2],
    )  # fmt: skip


@kernel
def _clamp_slope(slope, focal, center, size):
    """Direction x / z held within the image plus a margin."""
    margin = HALF_MARGIN * size / focal
    return min((size - center) / focal + margin, max(-(center / focal + margin), slope))


@kernel
def _jacobian(x, y, z, K, width, height):
    """Nonzero entries (00, 02, 11, 12) of the clamped Jacobian and the clamped slopes."""
    inverse = ONE / z
    slope_x = _clamp_slope(x * inverse, K[0, 0], K[0, 2], width)
    slope_y = _clamp_slope(y * inverse, K[1, 1], K[1, 2], height)
    scale_x, scale_y = K[0, 0] * inverse, K[1, 1] * inverse
    return scale_x, -scale_x * slope_x, scale_y, -scale_y * slope_y, slope_x, slope_y


@kernel
def _project_one(i, means, quats, scales, opacities, viewmat, camera, K, width, height, table):
    """Fill row i of the projection table; True when the Gaussian is visible."""
    mean_x, mean_y, mean_z = means[i, 0], means[i, 1], means[i, 2]
    x = camera[0] * mean_x + camera[1] * mean_y + camera[2] * mean_z + viewmat[0, 3]
    y = camera[3] * mean_x + camera[4] * mean_y + camera[5] * mean_z + viewmat[1, 3]
    z = camera[6] * mean_x + camera[7] * mean_y + camera[8] * mean_z + viewmat[2, 3]
    opacity = opacities[i]
    if not (z >= NEAR_PLANE and opacity >= ALPHA_THRESHOLD):
        return False
    j00, j02, j11, j12, _, _ = _jacobian(x, y, z, K, width, height)
    a = _times(j00, ZERO, j02, camera)
    b = _times(ZERO, j11, j12, camera)
    qw, qx, qy, qz, _ = _unit_quat(quats, i)
    rotation = _rotation(qw, qx, qy, qz)
    u0, u1, u2 = _times(a[0], a[1], a[2], rotation)
    v0, v1, v2 = _times(b[0], b[1], b[2], rotation)
    s0, s1, s2 = scales[i, 0], scales[i, 1], scales[i, 2]
    u0, u1, u2, v0, v1, v2 = u0 * s0, u1 * s1, u2 * s2, v0 * s0, v1 * s1, v2 * s2
    xx, xy, yy = u0 * u0 + u1 * u1 + u2 * u2, u0 * v0 + u1 * v1 + u2 * v2, v0 * v0 + v1 * v1 + v2 * v2
    # Cauchy-Binet: a sum of squares, where xx yy - xy^2 would cancel for needles.
    m01, m02, m12 = u0 * v1 - u1 * v0, u0 * v2 - u2 * v0, u1 * v2 - u2 * v1
    determinant = m01 * m01 + m02 * m02 + m12 * m12 + EPS2D * (xx + yy) + EPS2D * EPS2D
    xx, yy = xx + EPS2D, yy + EPS2D
    if not determinant < LARGEST:
        return False
    inverse = ONE / determinant
    log2_opacity = f32(math.log2(opacity))
    # A hair more than the exact level, so that rounding never cuts a pixel that passes the alpha test.
    level = TWO_LN2 * (log2_opacity + LOG2_255) * f32(1.0001) + f32(1e-4)
    extent_x, extent_y = math.sqrt(level * xx), math.sqrt(level * yy)
    image_x, image_y = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
    table[i, MEAN_X], table[i, MEAN_Y] = image_x, image_y
    table[i, CONIC_XX], table[i, CONIC_XY], table[i, CONIC_YY] = yy * inverse, -xy * inverse, xx * inverse
    table[i, DET], table[i, EXTENT_X], table[i, EXTENT_Y], table[i, LEVEL] = inverse, extent_x, extent_y, level
    table[i, LOG2_OPACITY], table[i, X], table[i, Y], table[i, Z] = log2_opacity, x, y, z
    inside_x = image_x + extent_x >= ZERO and image_x - extent_x <= width
    return inside_x and image_y + extent_y >= ZERO and image_y - extent_y <= height


@threaded
def project(num_threads, means, quats, scales, opacities, viewmat, K, width, height, table, keys):
    """Project N Gaussians: the table (N, NUM_COLUMNS) and keys (N,) uint32, depth bits or 0 for what is culled."""
    num_points = means.shape[0]
    image_width, image_height = f32(width), f32(height)
    for thread in prange(num_threads):
        camera = _camera_rotation(viewmat)
        for i in range(num_points * thread // num_threads, num_points * (thread + 1) // num_threads):
            visible = _project_one(
                i, means, quats, scales, opacities, viewmat, camera, K, image_width, image_height, table
            )
            keys[i] = float_bits(table[i, Z]) if visible else np.uint32(0)


@kernel
def _gradient_of_covariance(row, moments):
    """Gradient of the covariance (xx, xy, yy) from the second moments of the pixel gradients: -conic V conic."""
    a, b, c = row[CONIC_XX], row[CONIC_XY], row[CONIC_YY]
    vxx, vxy, vyy = HALF * moments[3], HALF * moments[4], HALF * moments[5]
    p00, p01 = a * vxx + b * vxy, a * vxy + b * vyy
    p10, p11 = b * vxx + c * vxy, b * vxy + c * vyy
    return -(p00 * a + p01 * b), -(p00 * b + p01 * c), -(p10 * b + p11 * c)


@kernel
def _add_quat_gradient(quats, i, m, out):
    """Chain the gradient m of the rotation matrix (row by row) to the unnormalized quaternion i."""
    w, x, y, z, inverse = _unit_quat(quats, i)
    gw = TWO * (x * (m[7] - m[5]) + y * (m[2] - m[6]) + z * (m[3] - m[1]))
    gx = TWO * (-TWO * x * (m[4] + m[8]) + y * (m[1] + m[3]) + z * (m[2] + m[6]) + w * (m[7] - m[5]))
    gy = TWO * (x * (m[1] + m[3]) - TWO * y * (m[0] + m[8]) + z * (m[5] + m[7]) + w * (m[2] - m[6]))
    gz = TWO * (x * (m[2] + m[6]) + y * (m[5] + m[7]) - TWO * z * (m[0] + m[4]) + w * (m[3] - m[1]))
    along = gw * w + gx * x + gy * y + gz * z
    out[i, 0] += (gw - along * w) * inverse
    out[i, 1] += (gx - along * x) * inverse
    out[i, 2] += (gy - along * y) * inverse
    out[i, 3] += (gz - along * z) * inverse


@kernel
def _point_gradient(row, K, width, height, moments, j00, j02, j11, j12):
    """Gradient of the camera point, through the mean (first moments) and through the clamped Jacobian (gradients j..)."""
    x, y, z = row[X], row[Y], row[Z]
    inverse = ONE / z
    fx, fy = K[0, 0] * inverse, K[1, 1] * inverse
    a, b, c = row[CONIC_XX], row[CONIC_XY], row[CONIC_YY]
    mean_x, mean_y = -(a * moments[1] + b * moments[2]), -(b * moments[1] + c * moments[2])
    slope_x, slope_y = x * inverse, y * inverse
    _, _, _, _, held_x, held_y = _jacobian(x, y, z, K, width, height)
    vx, vy = mean_x * fx, mean_y * fy
    vz = -(vx * slope_x + vy * slope_y) - (fx * j00 + fy * j11) * inverse
    # J02 = -f/z * slope: the slope moves only while it is not clamped.
    vz += (fx * held_x * j02 + fy * held_y * j12) * inverse
    if held_x == slope_x:
        vx -= fx * inverse * j02
        vz += fx * inverse * slope_x * j02
    if held_y == slope_y:
        vy -= fy * inverse * j12
        vz += fy * inverse * slope_y * j12
    return vx, vy, vz


@kernel
def _backward_one(i, moments, table, means, quats, scales, opacities, camera, K, width, height, grads, pose):
    """Gradients of Gaussian i from its six moments, added to grads (means, quats, scales, opacities) and pose (3, 4)."""
    v_means, v_quats, v_scales, v_opacities = grads
    row = table[i]
    v_opacities[i] -= moments[0] / opacities[i]
    vxx, vxy, vyy = _gradient_of_covariance(row, moments)
    j00, j02, j11, j12, _, _ = _jacobian(row[X], row[Y], row[Z], K, width, height)
    a = _times(j00, ZERO, j02, camera)
    b = _times(ZERO, j11, j12, camera)
    qw, qx, qy, qz, _ = _unit_quat(quats, i)
    rotation = _rotation(qw, qx, qy, qz)
    u = _times(a[0], a[1], a[2], rotation)
    v = _times(b[0], b[1], b[2], rotation)
    # gu, gv: gradient of the rows of J R Q; the factor's gradient is 2 V factor.
    s = (scales[i, 0], scales[i, 1], scales[i, 2])
    for k in range(3):
        v_scales[i, k] += TWO * s[k] * (vxx * u[k] * u[k] + TWO * vxy * u[k] * v[k] + vyy * v[k] * v[k])
    s0, s1, s2 = TWO * s[0] * s[0], TWO * s[1] * s[1], TWO * s[2] * s[2]
    gu = ((vxx * u[0] + vxy * v[0]) * s0, (vxx * u[1] + vxy * v[1]) * s1, (vxx * u[2] + vxy * v[2]) * s2)
    gv = ((vxy * u[0] + vyy * v[0]) * s0, (vxy * u[1] + vyy * v[1]) * s1, (vxy * u[2] + vyy * v[2]) * s2)
    matrix = (
        a[0] * gu[0] + b[0] * gv[0], a[0] * gu[1] + b[0] * gv[1], a[0] * gu[2] + b[0] * gv[2],
        a[1] * gu[0] + b[1] * gv[0], a[1] * gu[1] + b[1] * gv[1], a[1] * gu[2] + b[1] * gv[2],
        a[2] * gu[0] + b[2] * gv[0], a[2] * gu[1] + b[2] * gv[1], a[2] * gu[2] + b[2] * gv[2],
    )  # fmt: skip
    _add_quat_gradient(quats, i, matrix, v_quats)
    ga = _times_transposed(gu[0], gu[1], gu[2], rotation)
    gb = _times_transposed(gv[0], gv[1], gv[2], rotation)
    ja = _times_transposed(ga[0], ga[1], ga[2], camera)
    jb = _times_transposed(gb[0], gb[1], gb[2], camera)
    vx, vy, vz = _point_gradient(row, K, width, height, moments, ja[0], ja[2], jb[1], jb[2])
    for k in range(3):
        v_means[i, k] += camera[k] * vx + camera[3 + k] * vy + camera[6 + k] * vz
        pose[0, k] += vx * means[i, k] + j00 * ga[k]
        pose[1, k] += vy * means[i, k] + j11 * gb[k]
        pose[2, k] += vz * means[i, k] + j02 * ga[k] + j12 * gb[k]
    pose[0, 3] += vx
    pose[1, 3] += vy
    pose[2, 3] += vz


@threaded
def project_backward(
    num_threads, num_visible, order, buffers, num_channels, table, means, quats, scales, opacities, viewmat, K,
    width, height, v_means, v_quats, v_scales, v_opacities, v_colors, pose,
):  # fmt: skip
    """Sum the threads' buffers (T, M, padded C + 8) and chain them to the inputs; adds to every v_ array.

    A buffer's row holds the color gradients, then the six moments. pose (T, 3, 4) float64 takes the camera's gradient.
    """
    image_width, image_height = f32(width), f32(height)
    first = buffers.shape[2] - 8
    for thread in prange(num_threads):
        camera = _camera_rotation(viewmat)
        moments = np.zeros(6, np.float32)
        grads = (v_means, v_quats, v_scales, v_opacities)
        pose[thread] = 0.0
        for rank in range(num_visible * thread // num_threads, num_visible * (thread + 1) // num_threads):
            i = np.int64(order[rank])
            for k in range(6):
                moments[k] = ZERO
            for t in range(num_threads):
                for k in range(num_channels):
                    v_colors[i, k] += buffers[t, rank, k]
                for k in range(6):
                    moments[k] += buffers[t, rank, first + k]
            _backward_one(
                i, moments, table, means, quats, scales, opacities, camera, K, image_width, image_height, grads,
                pose[thread],
            )  # fmt: skip
