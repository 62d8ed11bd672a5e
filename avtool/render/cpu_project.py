"""Projection of Gaussians into one camera on the CPU, and its analytic gradient (the meaning is in reference.py).

Per Gaussian and camera, with J the projection's Jacobian, R the camera's rotation, Q the Gaussian's and S its scales:
factor = J R Q S (2 x 3), covariance = factor factor^T + 0.3 I, conic = covariance^-1.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from avtool.jit import inlined, threaded
from avtool.render.simd import float_bits

BLOCK = 4
"""Side of a block in pixels: its 16 pixels are two vectors of eight lanes."""

f32 = np.float32
ZERO, ONE, TWO, HALF = f32(0), f32(1), f32(2), f32(0.5)
EPS2D, NEAR_PLANE, ALPHA_THRESHOLD = f32(0.3), f32(0.01), f32(1 / 255)
HALF_MARGIN = f32(0.3 * 0.5)
LOG2_255, TWO_LN2 = f32(math.log2(255)), f32(2 * math.log(2))
LARGEST, TINY = f32(1e37), f32(1e-12)

# Columns of the projection table (N, NUM_COLUMNS): mean (px), conic, half extents of the visible ellipse (px), camera
# point, and the ellipse's horizontal span at height y: lean y -+ sqrt(reach - bend y^2), widest to the right at y = widest.
MEAN_X, MEAN_Y, CONIC_XX, CONIC_XY, CONIC_YY, EXTENT_X, EXTENT_Y, X, Y, Z, LEAN, REACH, BEND, WIDEST = range(14)
NUM_COLUMNS = 16

# A record is what the inner loops read of a Gaussian: mean, conic scaled to log2 units, log2 opacity.
RECORD_X, RECORD_Y, RECORD_XX, RECORD_XY, RECORD_YY, RECORD_PEAK = range(6)
RECORD_SIZE = 8
NEVER = f32(-1e30)
"""log2 opacity of the record that pads odd lists."""
LOG2_E = f32(math.log2(math.e))


@inlined
def _unit_quat(quats, i):
    """Normalized quaternion i and the inverse of its length (torch's normalize: length at least 1e-12)."""
    w, x, y, z = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
    inverse = ONE / max(math.sqrt(w * w + x * x + y * y + z * z), TINY)
    return w * inverse, x * inverse, y * inverse, z * inverse, inverse


@inlined
def _rotation(w, x, y, z):
    """Rotation matrix of a unit quaternion, row by row."""
    return (
        ONE - TWO * (y * y + z * z), TWO * (x * y - w * z), TWO * (x * z + w * y),
        TWO * (x * y + w * z), ONE - TWO * (x * x + z * z), TWO * (y * z - w * x),
        TWO * (x * z - w * y), TWO * (y * z + w * x), ONE - TWO * (x * x + y * y),
    )  # fmt: skip


@inlined
def _times(a0, a1, a2, m):
    """Row vector times a 3 x 3 matrix given row by row."""
    return (
        a0 * m[0] + a1 * m[3] + a2 * m[6],
        a0 * m[1] + a1 * m[4] + a2 * m[7],
        a0 * m[2] + a1 * m[5] + a2 * m[8],
    )


@inlined
def _times_transposed(a0, a1, a2, m):
    """Row vector times the transpose of a 3 x 3 matrix given row by row."""
    return (
        a0 * m[0] + a1 * m[1] + a2 * m[2],
        a0 * m[3] + a1 * m[4] + a2 * m[5],
        a0 * m[6] + a1 * m[7] + a2 * m[8],
    )


@inlined
def _camera_rotation(viewmat):
    return (
        viewmat[0, 0], viewmat[0, 1], viewmat[0, 2],
        viewmat[1, 0], viewmat[1, 1], viewmat[1, 2],
        viewmat[2, 0], viewmat[2, 1], viewmat[2, 2],
    )  # fmt: skip


@inlined
def _slope_limits(K, width, height):
    """Least and largest x / z, then y / z, that the Jacobian is evaluated at: the image plus a margin."""
    margin_x, margin_y = HALF_MARGIN * width / K[0, 0], HALF_MARGIN * height / K[1, 1]
    low_x, high_x = -(K[0, 2] / K[0, 0] + margin_x), (width - K[0, 2]) / K[0, 0] + margin_x
    low_y, high_y = -(K[1, 2] / K[1, 1] + margin_y), (height - K[1, 2]) / K[1, 1] + margin_y
    return low_x, high_x, low_y, high_y


@inlined
def _jacobian(x, y, z, K, limits):
    """Nonzero entries (00, 02, 11, 12) of the clamped Jacobian and the clamped slopes."""
    inverse = ONE / z
    slope_x = min(limits[1], max(limits[0], x * inverse))
    slope_y = min(limits[3], max(limits[2], y * inverse))
    scale_x, scale_y = K[0, 0] * inverse, K[1, 1] * inverse
    return scale_x, -scale_x * slope_x, scale_y, -scale_y * slope_y, slope_x, slope_y


@inlined
def _project_one(i, means, quats, scales, opacities, viewmat, camera, K, limits, width, height, table, records):
    """Fill row i of the projection table and record i; True when the Gaussian is visible."""
    mean_x, mean_y, mean_z = means[i, 0], means[i, 1], means[i, 2]
    x = camera[0] * mean_x + camera[1] * mean_y + camera[2] * mean_z + viewmat[0, 3]
    y = camera[3] * mean_x + camera[4] * mean_y + camera[5] * mean_z + viewmat[1, 3]
    z = camera[6] * mean_x + camera[7] * mean_y + camera[8] * mean_z + viewmat[2, 3]
    opacity = opacities[i]
    if not (z >= NEAR_PLANE and opacity >= ALPHA_THRESHOLD):
        return False
    j00, j02, j11, j12, _, _ = _jacobian(x, y, z, K, limits)
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
    image_x, image_y = j00 * x + K[0, 2], j11 * y + K[1, 2]
    table[i, MEAN_X], table[i, MEAN_Y] = image_x, image_y
    a, b, c = yy * inverse, -xy * inverse, xx * inverse
    table[i, CONIC_XX], table[i, CONIC_XY], table[i, CONIC_YY] = a, b, c
    table[i, EXTENT_X], table[i, EXTENT_Y] = extent_x, extent_y
    table[i, X], table[i, Y], table[i, Z] = x, y, z
    # The conic's determinant is the inverse of the covariance's, so bend = inverse / a^2 and widest = -b / c extent_x.
    by_yy = ONE / yy
    table[i, LEAN], table[i, REACH], table[i, BEND] = xy * by_yy, level * determinant * by_yy, determinant * by_yy * by_yy
    table[i, WIDEST] = xy / xx * extent_x
    at = i * RECORD_SIZE
    records[at + RECORD_X], records[at + RECORD_Y] = image_x, image_y
    records[at + RECORD_XX], records[at + RECORD_XY] = HALF * LOG2_E * a, LOG2_E * b
    records[at + RECORD_YY], records[at + RECORD_PEAK] = HALF * LOG2_E * c, log2_opacity
    inside_x = image_x + extent_x >= ZERO and image_x - extent_x <= width
    return inside_x and image_y + extent_y >= ZERO and image_y - extent_y <= height


@inlined
def block_rows(center, extent, height):
    """First and last row of blocks whose pixel centers can lie within center +- extent."""
    top = min(height, max(ZERO, center - extent - HALF))
    bottom = max(f32(-1), min(height - ONE, center + extent - HALF))
    return np.int64(math.floor(top)) // BLOCK, np.int64(math.floor(bottom)) // BLOCK


@threaded
def project(
    num_threads, means, quats, scales, opacities, colors, viewmat, K, width, height, table, records, padded_colors,
    padded, keys, first_row, num_rows,
):  # fmt: skip
    """Project N Gaussians: the table (N, NUM_COLUMNS), records ((N + 1) RECORD_SIZE,), keys (N,) uint32, depth bits or 0
    for what is culled, and the rows of blocks that each may meet: first_row, num_rows (N,) int32.

    padded_colors gets the colors in rows of ``padded``, unless they are used as they are (it is empty then).
    """
    num_points, num_channels = colors.shape
    image_width, image_height = f32(width), f32(height)
    copy = len(padded_colors) > 0
    for thread in prange(num_threads):
        camera, limits = _camera_rotation(viewmat), _slope_limits(K, image_width, image_height)
        for i in range(num_points * thread // num_threads, num_points * (thread + 1) // num_threads):
            visible = _project_one(
                i, means, quats, scales, opacities, viewmat, camera, K, limits, image_width, image_height, table, records
            )
            keys[i] = float_bits(table[i, Z]) if visible else np.uint32(0)
            first_row[i] = num_rows[i] = 0
            if visible:
                top, bottom = block_rows(table[i, MEAN_Y], table[i, EXTENT_Y], image_height)
                first_row[i], num_rows[i] = top, max(0, bottom - top + 1)
            if copy:
                for channel in range(num_channels):
                    padded_colors[i * padded + channel] = colors[i, channel]
                for channel in range(num_channels, padded):
                    padded_colors[i * padded + channel] = ZERO


@inlined
def _gradient_of_covariance(a, b, c, moments):
    """Gradient of the covariance (xx, xy, yy) from the second moments of the pixel gradients: -conic V conic."""
    vxx, vxy, vyy = HALF * moments[3], HALF * moments[4], HALF * moments[5]
    p00, p01 = a * vxx + b * vxy, a * vxy + b * vyy
    p10, p11 = b * vxx + c * vxy, b * vxy + c * vyy
    return -(p00 * a + p01 * b), -(p00 * b + p01 * c), -(p10 * b + p11 * c)


@inlined
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


@inlined
def _point_gradient(x, y, z, K, held_x, held_y, mean_x, mean_y, j00, j02, j11, j12):
    """Gradient of the camera point, through the image point (mean_.) and through the clamped Jacobian (j..)."""
    inverse = ONE / z
    fx, fy = K[0, 0] * inverse, K[1, 1] * inverse
    slope_x, slope_y = x * inverse, y * inverse
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


@inlined
def _scale_gradient(scale, u, v, vxx, vxy, vyy):
    """Gradient of one scale: the factor's column is scale (u, v), and its gradient twice V times it."""
    return TWO * scale * (vxx * u * u + TWO * vxy * u * v + vyy * v * v)


@inlined
def _add_pose_gradient(pose, thread, row, v, x, y, z, a0, a1, a2):
    """Row of the camera's gradient: through the camera point (v), and through J R (a.)."""
    pose[thread, row, 0] += v * x + a0
    pose[thread, row, 1] += v * y + a1
    pose[thread, row, 2] += v * z + a2
    pose[thread, row, 3] += v


@inlined
def _backward_one(
    i, thread, moments, table, means, quats, scales, opacities, camera, K, limits,
    v_means, v_quats, v_scales, v_opacities, pose,
):  # fmt: skip
    """Gradients of Gaussian i from its six moments, added to every v_ array and to pose (T, 3, 4)."""
    v_opacities[i] -= moments[0] / opacities[i]
    x, y, z = table[i, X], table[i, Y], table[i, Z]
    conic_xx, conic_xy, conic_yy = table[i, CONIC_XX], table[i, CONIC_XY], table[i, CONIC_YY]
    vxx, vxy, vyy = _gradient_of_covariance(conic_xx, conic_xy, conic_yy, moments)
    j00, j02, j11, j12, held_x, held_y = _jacobian(x, y, z, K, limits)
    a0, a1, a2 = _times(j00, ZERO, j02, camera)
    b0, b1, b2 = _times(ZERO, j11, j12, camera)
    qw, qx, qy, qz, _ = _unit_quat(quats, i)
    rotation = _rotation(qw, qx, qy, qz)
    u0, u1, u2 = _times(a0, a1, a2, rotation)
    v0, v1, v2 = _times(b0, b1, b2, rotation)
    s0, s1, s2 = scales[i, 0], scales[i, 1], scales[i, 2]
    v_scales[i, 0] += _scale_gradient(s0, u0, v0, vxx, vxy, vyy)
    v_scales[i, 1] += _scale_gradient(s1, u1, v1, vxx, vxy, vyy)
    v_scales[i, 2] += _scale_gradient(s2, u2, v2, vxx, vxy, vyy)
    # gu, gv: gradient of the rows of J R Q, 2 V (J R Q) S S.
    s0, s1, s2 = TWO * s0 * s0, TWO * s1 * s1, TWO * s2 * s2
    gu0, gu1, gu2 = (vxx * u0 + vxy * v0) * s0, (vxx * u1 + vxy * v1) * s1, (vxx * u2 + vxy * v2) * s2
    gv0, gv1, gv2 = (vxy * u0 + vyy * v0) * s0, (vxy * u1 + vyy * v1) * s1, (vxy * u2 + vyy * v2) * s2
    matrix = (
        a0 * gu0 + b0 * gv0, a0 * gu1 + b0 * gv1, a0 * gu2 + b0 * gv2,
        a1 * gu0 + b1 * gv0, a1 * gu1 + b1 * gv1, a1 * gu2 + b1 * gv2,
        a2 * gu0 + b2 * gv0, a2 * gu1 + b2 * gv1, a2 * gu2 + b2 * gv2,
    )  # fmt: skip
    _add_quat_gradient(quats, i, matrix, v_quats)
    a0, a1, a2 = _times_transposed(gu0, gu1, gu2, rotation)
    b0, b1, b2 = _times_transposed(gv0, gv1, gv2, rotation)
    g00, _, g02 = _times_transposed(a0, a1, a2, camera)
    _, g11, g12 = _times_transposed(b0, b1, b2, camera)
    mean_x = -(conic_xx * moments[1] + conic_xy * moments[2])
    mean_y = -(conic_xy * moments[1] + conic_yy * moments[2])
    vx, vy, vz = _point_gradient(x, y, z, K, held_x, held_y, mean_x, mean_y, g00, g02, g11, g12)
    world_x, world_y, world_z = _times(vx, vy, vz, camera)
    v_means[i, 0] += world_x
    v_means[i, 1] += world_y
    v_means[i, 2] += world_z
    x, y, z = means[i, 0], means[i, 1], means[i, 2]
    _add_pose_gradient(pose, thread, 0, vx, x, y, z, j00 * a0, j00 * a1, j00 * a2)
    _add_pose_gradient(pose, thread, 1, vy, x, y, z, j11 * b0, j11 * b1, j11 * b2)
    _add_pose_gradient(
        pose, thread, 2, vz, x, y, z, j02 * a0 + j12 * b0, j02 * a1 + j12 * b1, j02 * a2 + j12 * b2
    )


@inlined
def _sum_of_moment(buffers, num_threads, i, column):
    total = ZERO
    for t in range(num_threads):
        total += buffers[t, i, column]
    return total


@threaded
def project_backward(
    num_threads, keys, buffers, num_channels, table, means, quats, scales, opacities, viewmat, K, width, height, v_means,
    v_quats, v_scales, v_opacities, v_colors, pose,
):  # fmt: skip
    """Sum the threads' buffers (T, N, padded C + 8) and chain them to the inputs; adds to every v_ array.

    A buffer's row holds the color gradients, then the six moments. pose (T, 3, 4) float64 takes the camera's gradient.
    """
    image_width, image_height = f32(width), f32(height)
    first, num_points = buffers.shape[2] - 8, len(keys)
    for thread in prange(num_threads):
        camera, limits = _camera_rotation(viewmat), _slope_limits(K, image_width, image_height)
        pose[thread] = 0.0
        for i in range(num_points * thread // num_threads, num_points * (thread + 1) // num_threads):
            if keys[i] == 0:
                continue
            for t in range(num_threads):
                for k in range(num_channels):
                    v_colors[i, k] += buffers[t, i, k]
            moments = (
                _sum_of_moment(buffers, num_threads, i, first),
                _sum_of_moment(buffers, num_threads, i, first + 1),
                _sum_of_moment(buffers, num_threads, i, first + 2),
                _sum_of_moment(buffers, num_threads, i, first + 3),
                _sum_of_moment(buffers, num_threads, i, first + 4),
                _sum_of_moment(buffers, num_threads, i, first + 5),
            )
            _backward_one(
                i, thread, moments, table, means, quats, scales, opacities, camera, K, limits,
                v_means, v_quats, v_scales, v_opacities, pose,
            )  # fmt: skip
