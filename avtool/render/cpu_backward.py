"""The backward raster kernel: gradients of colors and of six moments per Gaussian.

Per block: alphas are computed again front to back, then swept back to front with one scalar a pixel for everything
behind (behind = sum over later Gaussians of weight x <color, gradient>, minus the final transmittance times the
alpha gradient). The geometry's gradient needs only the moments 1, dx, dy, dx^2, dx dy, dy^2 of the pixels' sigma
gradients; they are summed in block-local coordinates, where they are small, and shifted to the Gaussian's center.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from avtool.jit import inlined, threaded
from avtool.render.cpu_forward import (
    CHUNK,
    PIXEL_X,
    PIXEL_Y,
    PIXELS,
    TRANSMITTANCE_CUT,
    block_alphas,
    block_position,
    multiply_add,
    place_pixels,
)
from avtool.render.cpu_project import BLOCK, ONE, RECORD_SIZE, RECORD_X, RECORD_Y, TWO, ZERO, f32
from avtool.render.simd import any_positive, broadcast, load, load_broadcast, prefetch, store, transpose, where_greater

ALPHA_CAP = f32(0.999)
# Scratch areas in floats: alpha gradients, the moments' basis, then areas whose size depends on the channels:
# gradients channel-major and pixel-major, <color, gradient> of a chunk, sums of four Gaussians, and, as long as the
# longest list, alphas (later weights) and transmittances (later sigma gradients).
V_ALPHA, BASIS, AREAS = 32, 48, 192


def scratch_floats(padded_channels: int, longest_list: int) -> int:
    """Scratch a thread needs in the backward pass."""
    fixed = AREAS + 2 * PIXELS * padded_channels + (CHUNK + 8) * PIXELS + 4 * (padded_channels + 8)
    return fixed + 2 * (longest_list + 8) * PIXELS


@inlined
def _area_offsets(padded, longest):
    """Where the areas start: by channel, by pixel, dots, sums, alphas, transmittances."""
    by_pixel = AREAS + PIXELS * padded
    dots = by_pixel + PIXELS * padded
    sums = dots + (CHUNK + 8) * PIXELS
    alphas = sums + 4 * (padded + 8)
    return AREAS, by_pixel, dots, sums, alphas, alphas + (longest + 8) * PIXELS


@inlined
def _write_basis(scratch):
    """The six monomials at the block's pixels, relative to its center (eight columns, two of them zero)."""
    for pixel in range(PIXELS):
        x, y = f32(pixel % BLOCK) - f32(1.5), f32(pixel // BLOCK) - f32(1.5)
        at = BASIS + pixel * 8
        scratch[at], scratch[at + 1], scratch[at + 2] = ONE, x, y
        scratch[at + 3], scratch[at + 4], scratch[at + 5] = x * x, x * y, y * y
        scratch[at + 6] = scratch[at + 7] = ZERO


@inlined
def _read_gradients(
    scratch, by_channel, by_pixel, block_x, block_y, width, height, num_channels, padded, background, v_image, v_alphas
):
    """Gradients of the block's pixels, in both layouts; zero outside the image. background is padded to whole vectors."""
    zero = broadcast(ZERO)
    for at in range(by_pixel, by_pixel + PIXELS * padded, 8):
        store(scratch, at, zero)
    vectors = num_channels // 8 * 8
    for pixel in range(PIXELS):
        x, y = block_x * BLOCK + pixel % BLOCK, block_y * BLOCK + pixel // BLOCK
        scratch[V_ALPHA + pixel] = ZERO
        if x >= width or y >= height:
            continue
        scratch[V_ALPHA + pixel] = v_alphas[y * width + x]
        at, to = (y * width + x) * num_channels, by_pixel + pixel * padded
        for channel in range(0, vectors, 8):
            store(scratch, to + channel, load(v_image, at + channel))
        for channel in range(vectors, num_channels):
            scratch[to + channel] = v_image[at + channel]
    upper, lower = load(scratch, V_ALPHA), load(scratch, V_ALPHA + 8)
    for first in range(0, padded, 8):
        to = by_channel + first * PIXELS
        transpose(scratch, by_pixel + first, padded, to, PIXELS)
        transpose(scratch, by_pixel + 8 * padded + first, padded, to + 8, PIXELS)
        for channel in range(8):
            behind = load_broadcast(background, first + channel)
            upper = upper - behind * load(scratch, to + channel * PIXELS)
            lower = lower - behind * load(scratch, to + channel * PIXELS + 8)
    store(scratch, V_ALPHA, upper)
    store(scratch, V_ALPHA + 8, lower)


@inlined
def _replay(scratch, ids, records, colors, buffer, padded, entries, first, count, alphas, transmittances):
    """Front to back once more: alphas and transmittances of the Gaussians that count. Returns (how many, padded to a
    multiple of four; minus the alpha gradients times the final transmittances, as two vectors)."""
    zero, cut = broadcast(ZERO), broadcast(TRANSMITTANCE_CUT)
    x, y_upper, y_lower = load(scratch, PIXEL_X), load(scratch, PIXEL_Y), load(scratch, PIXEL_Y + 8)
    t0 = t1 = final0 = final1 = broadcast(ONE)
    kept = 0
    for j in range(count):
        point = np.int64(entries[first + j])
        prefetch(records, np.int64(entries[first + j + 8]) * RECORD_SIZE)
        a0, a1 = block_alphas(records, point, x, y_upper, y_lower)
        after0, after1 = t0 - a0 * t0, t1 - a1 * t1
        a0, a1 = where_greater(after0, cut, a0, zero), where_greater(after1, cut, a1, zero)
        at = kept * PIXELS
        store(scratch, alphas + at, a0)
        store(scratch, alphas + at + 8, a1)
        store(scratch, transmittances + at, t0)
        store(scratch, transmittances + at + 8, t1)
        final0, final1 = where_greater(after0, cut, after0, final0), where_greater(after1, cut, after1, final1)
        t0, t1 = where_greater(after0, cut, after0, zero), where_greater(after1, cut, after1, zero)
        ids[kept] = point
        if any_positive(a0, a1):
            kept += 1
            for at in range(point * padded, (point + 1) * padded, 16):
                prefetch(colors, at)
            for at in range(point * (padded + 8), (point + 1) * (padded + 8), 16):
                prefetch(buffer, at)
    while kept % 4 != 0:
        for at in range(kept * PIXELS, (kept + 1) * PIXELS, 8):
            store(scratch, alphas + at, zero)
            store(scratch, transmittances + at, zero)
        ids[kept] = ids[kept - 1]
        kept += 1
    return kept, -final0 * load(scratch, V_ALPHA), -final1 * load(scratch, V_ALPHA + 8)


@inlined
def _color_dots(scratch, ids, begin, end, colors, num_channels, padded, by_channel, dots):
    """<color, gradient> of Gaussians begin..end at every pixel, four Gaussians at a time."""
    zero = broadcast(ZERO)
    for g in range(begin, end, 4):
        p0 = p1 = q0 = q1 = r0 = r1 = s0 = s1 = zero
        one, two = np.int64(ids[g]) * padded, np.int64(ids[g + 1]) * padded
        three, four = np.int64(ids[g + 2]) * padded, np.int64(ids[g + 3]) * padded
        for channel in range(num_channels):
            v0 = load(scratch, by_channel + channel * PIXELS)
            v1 = load(scratch, by_channel + channel * PIXELS + 8)
            value = load_broadcast(colors, one + channel)
            p0, p1 = p0 + value * v0, p1 + value * v1
            value = load_broadcast(colors, two + channel)
            q0, q1 = q0 + value * v0, q1 + value * v1
            value = load_broadcast(colors, three + channel)
            r0, r1 = r0 + value * v0, r1 + value * v1
            value = load_broadcast(colors, four + channel)
            s0, s1 = s0 + value * v0, s1 + value * v1
        at = dots + (g - begin) * PIXELS
        store(scratch, at, p0), store(scratch, at + 8, p1), store(scratch, at + 16, q0), store(scratch, at + 24, q1)
        at += 32
        store(scratch, at, r0), store(scratch, at + 8, r1), store(scratch, at + 16, s0), store(scratch, at + 24, s1)


@inlined
def _sweep(scratch, alpha_at, transmittance_at, dot_at, behind):
    """One Gaussian at eight pixels: its alpha becomes its weight, its transmittance the gradient of sigma.

    Returns what lies behind the next one in front.
    """
    alpha, transmittance, dot = load(scratch, alpha_at), load(scratch, transmittance_at), load(scratch, dot_at)
    weight = alpha * transmittance
    v_alpha = transmittance * dot - behind / (broadcast(ONE) - alpha)
    store(scratch, alpha_at, weight)
    v_sigma = where_greater(broadcast(ALPHA_CAP), alpha, -alpha * v_alpha, broadcast(ZERO))
    store(scratch, transmittance_at, v_sigma)
    return behind + weight * dot


@inlined
def _add_to_buffer(scratch, sums, buffer, point, records, center_x, center_y, padded):
    """Add a Gaussian's color gradients and its moments, shifted from the block's center to its own."""
    at = point * (padded + 8)
    for column in range(0, padded, 8):
        store(buffer, at + column, load(buffer, at + column) + load(scratch, sums + column))
    at, m = at + padded, sums + padded
    shift_x = center_x - records[point * RECORD_SIZE + RECORD_X]
    shift_y = center_y - records[point * RECORD_SIZE + RECORD_Y]
    m0, m1, m2 = scratch[m], scratch[m + 1], scratch[m + 2]
    first_x, first_y = m1 + shift_x * m0, m2 + shift_y * m0
    buffer[at] += m0
    buffer[at + 1] += first_x
    buffer[at + 2] += first_y
    buffer[at + 3] += scratch[m + 3] + shift_x * (m1 + first_x)
    buffer[at + 4] += scratch[m + 4] + shift_x * m2 + shift_y * first_x
    buffer[at + 5] += scratch[m + 5] + shift_y * (m2 + first_y)


@inlined
def _accumulate(scratch, ids, begin, end, padded, by_pixel, sums, alphas, sigmas, records, buffer, block_x, block_y):
    """Pixel sums of four Gaussians at a time (colors: weights x gradients; moments: sigma gradients x basis)."""
    zero = broadcast(ZERO)
    row = padded + 8
    center_x, center_y = f32(block_x * BLOCK) + TWO, f32(block_y * BLOCK) + TWO
    for g in range(begin, end, 4):
        for at in range(sums, sums + 4 * row, 8):
            store(scratch, at, zero)
        multiply_add(
            scratch, alphas + g * PIXELS, PIXELS, 1, scratch, by_pixel, padded, ids, False, PIXELS, padded // 8,
            scratch, sums, row,
        )  # fmt: skip
        multiply_add(
            scratch, sigmas + g * PIXELS, PIXELS, 1, scratch, BASIS, 8, ids, False, PIXELS, 1,
            scratch, sums + padded, row,
        )  # fmt: skip
        for k in range(4):
            _add_to_buffer(
                scratch, sums + k * row, buffer, np.int64(ids[g + k]), records, center_x, center_y, padded
            )


@threaded
def raster_backward(
    num_threads, first_block, offsets, entries, records, colors, num_points, num_channels, padded, width, height,
    tiles_x, background, v_image, v_alphas, walked, longest, scratches, ids, buffers,
):  # fmt: skip
    """Gradients of every block into the threads' buffers (T, N (padded + 8)): color gradients, then six moments."""
    for thread in prange(num_threads):
        scratch, chosen, buffer = scratches[thread], ids[thread], buffers[thread]
        by_channel, by_pixel, dots, sums, alphas, transmittances = _area_offsets(padded, longest)
        buffer[: num_points * (padded + 8)] = ZERO
        _write_basis(scratch)
        for block in range(first_block[thread], first_block[thread + 1]):
            if walked[block] == 0:
                continue
            block_x, block_y = block_position(block, tiles_x)
            place_pixels(scratch, block_x, block_y)
            _read_gradients(
                scratch, by_channel, by_pixel, block_x, block_y, width, height, num_channels, padded, background,
                v_image, v_alphas,
            )  # fmt: skip
            kept, behind0, behind1 = _replay(
                scratch, chosen, records, colors, buffer, padded, entries, offsets[block], walked[block], alphas,
                transmittances,
            )  # fmt: skip
            end = kept
            while end > 0:
                begin = (end - 1) // CHUNK * CHUNK
                _color_dots(scratch, chosen, begin, end, colors, num_channels, padded, by_channel, dots)
                for g in range(end - 1, begin - 1, -1):
                    at, dot = g * PIXELS, dots + (g - begin) * PIXELS
                    behind0 = _sweep(scratch, alphas + at, transmittances + at, dot, behind0)
                    behind1 = _sweep(scratch, alphas + at + 8, transmittances + at + 8, dot + 8, behind1)
                _accumulate(
                    scratch, chosen, begin, end, padded, by_pixel, sums, alphas, transmittances, records, buffer,
                    block_x, block_y,
                )  # fmt: skip
                end = begin
