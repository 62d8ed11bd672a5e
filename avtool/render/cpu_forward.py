"""The forward raster kernel: blends each block's list front to back, sixteen pixels at a time.

Up to three channels are accumulated in registers; more are gathered as (weights, channels) and multiplied as small
matrix products, so that channels run along the lanes.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from avtool.jit import inlined, threaded
from avtool.render.cpu_project import (
    BLOCK,
    HALF,
    ONE,
    RECORD_PEAK,
    RECORD_SIZE,
    RECORD_X,
    RECORD_XX,
    RECORD_XY,
    RECORD_Y,
    RECORD_YY,
    ZERO,
    f32,
)
from avtool.render.simd import (
    alpha_from_log2,
    any_positive,
    broadcast,
    load,
    load_broadcast,
    prefetch,
    store,
    where_greater,
)

TRANSMITTANCE_CUT = f32(1e-4)
PIXELS = BLOCK * BLOCK
CHUNK = 64
"""Gaussians whose weights are gathered before they are multiplied with their colors."""

# A thread's scratch, in floats: pixel centers, sum of weights, up to three channels, then per-channel-count areas.
PIXEL_X, PIXEL_Y, WEIGHT_SUM, REGISTER_CHANNELS, PRODUCTS = 0, 16, 32, 48, 128


def scratch_floats(padded_channels: int) -> int:
    """Scratch a thread needs in the forward pass."""
    return PRODUCTS + PIXELS * padded_channels + (CHUNK + 4) * PIXELS


@inlined
def place_pixels(scratch, block_x, block_y):
    """Pixel centers of a block."""
    for pixel in range(PIXELS):
        scratch[PIXEL_X + pixel] = f32(block_x * BLOCK + pixel % BLOCK) + HALF
        scratch[PIXEL_Y + pixel] = f32(block_y * BLOCK + pixel // BLOCK) + HALF


@inlined
def block_alphas(records, point, x, y_upper, y_lower):
    """Alpha of one Gaussian at the block's two vectors of pixels (x is the same for both)."""
    at = point * RECORD_SIZE
    dx = x - load_broadcast(records, at + RECORD_X)
    peak = load_broadcast(records, at + RECORD_PEAK)
    yy, mean_y = load_broadcast(records, at + RECORD_YY), load_broadcast(records, at + RECORD_Y)
    slope = load_broadcast(records, at + RECORD_XY) * dx
    middle = peak - load_broadcast(records, at + RECORD_XX) * dx * dx
    upper, lower = y_upper - mean_y, y_lower - mean_y
    alpha_upper = alpha_from_log2(middle - upper * (yy * upper + slope), peak)
    return alpha_upper, alpha_from_log2(middle - lower * (yy * lower + slope), peak)


@inlined
def multiply_add(a, a_first, a_row, a_step, b, b_first, b_row, rows, use_rows, count, vectors, out, out_first, out_row):
    """out[r, :] += sum_k a[r, k] b[row(k), :] for four rows r and ``vectors`` x 8 columns, in register tiles.

    Flat arrays: a[a_first + r a_row + k a_step], b[b_first + row(k) b_row + column], row(k) = rows[k] or k.
    """
    v = 0
    while v < vectors:
        left = vectors - v
        at = out_first + v * 8
        if left >= 3 and left != 4:
            p0, p1, p2 = load(out, at), load(out, at + 8), load(out, at + 16)
            at += out_row
            q0, q1, q2 = load(out, at), load(out, at + 8), load(out, at + 16)
            at += out_row
            r0, r1, r2 = load(out, at), load(out, at + 8), load(out, at + 16)
            at += out_row
            s0, s1, s2 = load(out, at), load(out, at + 8), load(out, at + 16)
            for k in range(count):
                row = b_first + (np.int64(rows[k]) if use_rows else k) * b_row + v * 8
                b0, b1, b2 = load(b, row), load(b, row + 8), load(b, row + 16)
                weight = a_first + k * a_step
                w = load_broadcast(a, weight)
                p0, p1, p2 = p0 + w * b0, p1 + w * b1, p2 + w * b2
                w = load_broadcast(a, weight + a_row)
                q0, q1, q2 = q0 + w * b0, q1 + w * b1, q2 + w * b2
                w = load_broadcast(a, weight + 2 * a_row)
                r0, r1, r2 = r0 + w * b0, r1 + w * b1, r2 + w * b2
                w = load_broadcast(a, weight + 3 * a_row)
                s0, s1, s2 = s0 + w * b0, s1 + w * b1, s2 + w * b2
            store(out, at, s0), store(out, at + 8, s1), store(out, at + 16, s2)
            at -= out_row
            store(out, at, r0), store(out, at + 8, r1), store(out, at + 16, r2)
            at -= out_row
            store(out, at, q0), store(out, at + 8, q1), store(out, at + 16, q2)
            at -= out_row
            store(out, at, p0), store(out, at + 8, p1), store(out, at + 16, p2)
            v += 3
        elif left >= 2:
            p0, p1 = load(out, at), load(out, at + 8)
            q0, q1 = load(out, at + out_row), load(out, at + out_row + 8)
            r0, r1 = load(out, at + 2 * out_row), load(out, at + 2 * out_row + 8)
            s0, s1 = load(out, at + 3 * out_row), load(out, at + 3 * out_row + 8)
            for k in range(count):
                row = b_first + (np.int64(rows[k]) if use_rows else k) * b_row + v * 8
                b0, b1 = load(b, row), load(b, row + 8)
                weight = a_first + k * a_step
                w = load_broadcast(a, weight)
                p0, p1 = p0 + w * b0, p1 + w * b1
                w = load_broadcast(a, weight + a_row)
                q0, q1 = q0 + w * b0, q1 + w * b1
                w = load_broadcast(a, weight + 2 * a_row)
                r0, r1 = r0 + w * b0, r1 + w * b1
                w = load_broadcast(a, weight + 3 * a_row)
                s0, s1 = s0 + w * b0, s1 + w * b1
            store(out, at, p0), store(out, at + 8, p1)
            store(out, at + out_row, q0), store(out, at + out_row + 8, q1)
            store(out, at + 2 * out_row, r0), store(out, at + 2 * out_row + 8, r1)
            store(out, at + 3 * out_row, s0), store(out, at + 3 * out_row + 8, s1)
            v += 2
        else:
            # Two sums a row: four alone would wait for one another.
            p0, q0 = load(out, at), load(out, at + out_row)
            r0, s0 = load(out, at + 2 * out_row), load(out, at + 3 * out_row)
            p1 = q1 = r1 = s1 = broadcast(ZERO)
            for k in range(0, count - 1, 2):
                b0 = load(b, b_first + (np.int64(rows[k]) if use_rows else k) * b_row + v * 8)
                b1 = load(b, b_first + (np.int64(rows[k + 1]) if use_rows else k + 1) * b_row + v * 8)
                one = a_first + k * a_step
                two = one + a_step
                p0, p1 = p0 + load_broadcast(a, one) * b0, p1 + load_broadcast(a, two) * b1
                q0, q1 = q0 + load_broadcast(a, one + a_row) * b0, q1 + load_broadcast(a, two + a_row) * b1
                r0, r1 = r0 + load_broadcast(a, one + 2 * a_row) * b0, r1 + load_broadcast(a, two + 2 * a_row) * b1
                s0, s1 = s0 + load_broadcast(a, one + 3 * a_row) * b0, s1 + load_broadcast(a, two + 3 * a_row) * b1
            if count % 2 == 1:
                k = count - 1
                b0 = load(b, b_first + (np.int64(rows[k]) if use_rows else k) * b_row + v * 8)
                one = a_first + k * a_step
                p0, q0 = p0 + load_broadcast(a, one) * b0, q0 + load_broadcast(a, one + a_row) * b0
                r0, s0 = r0 + load_broadcast(a, one + 2 * a_row) * b0, s0 + load_broadcast(a, one + 3 * a_row) * b0
            p0, q0, r0, s0 = p0 + p1, q0 + q1, r0 + r1, s0 + s1
            store(out, at, p0), store(out, at + out_row, q0)
            store(out, at + 2 * out_row, r0), store(out, at + 3 * out_row, s0)
            v += 1


@inlined
def _blend(alpha, transmittance, weight_sum, cut):
    """One step of front-to-back blending: (weight, transmittance after, 0 once the pixel has ended, sum of weights)."""
    zero = broadcast(ZERO)
    weight = alpha * transmittance
    after = transmittance - weight
    weight = where_greater(after, cut, weight, zero)
    return weight, where_greater(after, cut, after, zero), weight_sum + weight


@inlined
def _blend_registers(scratch, records, colors, entries, first, count):
    """Blend a block of at most three channels; returns how many entries of the list were walked."""
    zero, cut = broadcast(ZERO), broadcast(TRANSMITTANCE_CUT)
    x, y_upper, y_lower = load(scratch, PIXEL_X), load(scratch, PIXEL_Y), load(scratch, PIXEL_Y + 8)
    t0 = t1 = broadcast(ONE)
    sum0 = sum1 = red0 = red1 = green0 = green1 = blue0 = blue1 = zero
    null = np.int64(len(records) // RECORD_SIZE - 1)
    j = 0
    while j < count:
        # Two at a time: their exponentials are independent and fill the pipeline.
        one = np.int64(entries[first + j])
        two = np.int64(entries[first + j + 1]) if j + 1 < count else null
        prefetch(records, np.int64(entries[first + j + 10]) * RECORD_SIZE)
        prefetch(records, np.int64(entries[first + j + 11]) * RECORD_SIZE)
        a0, a1 = block_alphas(records, one, x, y_upper, y_lower)
        b0, b1 = block_alphas(records, two, x, y_upper, y_lower)
        a0, t0, sum0 = _blend(a0, t0, sum0, cut)
        a1, t1, sum1 = _blend(a1, t1, sum1, cut)
        b0, t0, sum0 = _blend(b0, t0, sum0, cut)
        b1, t1, sum1 = _blend(b1, t1, sum1, cut)
        at = one * 8
        value = load_broadcast(colors, at)
        red0, red1 = red0 + a0 * value, red1 + a1 * value
        value = load_broadcast(colors, at + 1)
        green0, green1 = green0 + a0 * value, green1 + a1 * value
        value = load_broadcast(colors, at + 2)
        blue0, blue1 = blue0 + a0 * value, blue1 + a1 * value
        at = two * 8
        value = load_broadcast(colors, at)
        red0, red1 = red0 + b0 * value, red1 + b1 * value
        value = load_broadcast(colors, at + 1)
        green0, green1 = green0 + b0 * value, green1 + b1 * value
        value = load_broadcast(colors, at + 2)
        blue0, blue1 = blue0 + b0 * value, blue1 + b1 * value
        j += 2
        if not any_positive(t0, t1):
            break
    store(scratch, WEIGHT_SUM, sum0), store(scratch, WEIGHT_SUM + 8, sum1)
    at = REGISTER_CHANNELS
    store(scratch, at, red0), store(scratch, at + 8, red1), store(scratch, at + 16, green0)
    store(scratch, at + 24, green1), store(scratch, at + 32, blue0), store(scratch, at + 40, blue1)
    return min(count, j)


@inlined
def _keep(scratch, weights, kept, ids, point, upper, lower, colors, padded):
    """Put a Gaussian's weights behind the gathered ones; it stays only if any is positive. Returns how many there are."""
    at = weights + kept * PIXELS
    store(scratch, at, upper)
    store(scratch, at + 8, lower)
    ids[kept] = point
    if not any_positive(upper, lower):
        return kept
    at = point * padded
    prefetch(colors, at)
    prefetch(colors, at + 16)
    prefetch(colors, at + 32)
    return kept + 1


@inlined
def _blend_products(scratch, ids, records, colors, padded, entries, first, count):
    """Blend a block of many channels into scratch at PRODUCTS (16, padded); returns how many entries were walked."""
    zero, cut = broadcast(ZERO), broadcast(TRANSMITTANCE_CUT)
    x, y_upper, y_lower = load(scratch, PIXEL_X), load(scratch, PIXEL_Y), load(scratch, PIXEL_Y + 8)
    t0 = t1 = broadcast(ONE)
    sum0 = sum1 = zero
    weights = PRODUCTS + PIXELS * padded
    for at in range(PRODUCTS, weights, 8):
        store(scratch, at, zero)
    null = np.int64(len(records) // RECORD_SIZE - 1)
    kept = j = 0
    while j < count:
        one = np.int64(entries[first + j])
        two = np.int64(entries[first + j + 1]) if j + 1 < count else null
        prefetch(records, np.int64(entries[first + j + 10]) * RECORD_SIZE)
        prefetch(records, np.int64(entries[first + j + 11]) * RECORD_SIZE)
        a0, a1 = block_alphas(records, one, x, y_upper, y_lower)
        b0, b1 = block_alphas(records, two, x, y_upper, y_lower)
        a0, t0, sum0 = _blend(a0, t0, sum0, cut)
        a1, t1, sum1 = _blend(a1, t1, sum1, cut)
        b0, t0, sum0 = _blend(b0, t0, sum0, cut)
        b1, t1, sum1 = _blend(b1, t1, sum1, cut)
        kept = _keep(scratch, weights, kept, ids, one, a0, a1, colors, padded)
        kept = _keep(scratch, weights, kept, ids, two, b0, b1, colors, padded)
        j += 2
        ended = not any_positive(t0, t1)
        if kept >= CHUNK or ended or j >= count:
            for pixel in range(0, PIXELS, 4):
                multiply_add(
                    scratch, weights + pixel, 1, PIXELS, colors, 0, padded, ids, True, kept, padded // 8,
                    scratch, PRODUCTS + pixel * padded, padded,
                )  # fmt: skip
            kept = 0
        if ended:
            break
    store(scratch, WEIGHT_SUM, sum0)
    store(scratch, WEIGHT_SUM + 8, sum1)
    return min(count, j)


@inlined
def _write_block(scratch, block_x, block_y, width, height, num_channels, padded, background, image, alphas):
    """Copy a block's pixels that lie in the image, over the background (padded to whole vectors)."""
    vectors = 0 if num_channels <= 3 else num_channels // 8 * 8
    for pixel in range(PIXELS):
        x, y = block_x * BLOCK + pixel % BLOCK, block_y * BLOCK + pixel // BLOCK
        if x >= width or y >= height:
            continue
        alpha = scratch[WEIGHT_SUM + pixel]
        alphas[y * width + x] = alpha
        out, through = (y * width + x) * num_channels, ONE - alpha
        if num_channels <= 3:
            for channel in range(num_channels):
                value = scratch[REGISTER_CHANNELS + pixel + channel * PIXELS]
                image[out + channel] = value + through * background[channel]
            continue
        at, behind = PRODUCTS + pixel * padded, broadcast(through)
        for channel in range(0, vectors, 8):
            store(image, out + channel, load(scratch, at + channel) + behind * load(background, channel))
        for channel in range(vectors, num_channels):
            image[out + channel] = scratch[at + channel] + through * background[channel]


@inlined
def block_position(block, tiles_x):
    """Column and row of a block from its number."""
    tile, within = block // 16, block % 16
    return (tile % tiles_x) * 4 + within % 4, (tile // tiles_x) * 4 + within // 4


@threaded
def raster_forward(
    num_threads, first_block, offsets, entries, records, colors, num_channels, padded, width, height, tiles_x,
    background, image, alphas, walked, scratches, ids,
):  # fmt: skip
    """Blend all blocks: image (H W C,), alphas (H W,), walked (blocks,) entries looked at before all pixels had ended.

    records and colors are flat, with a null record at the end; entries is padded by 16.
    """
    for thread in prange(num_threads):
        scratch, chosen = scratches[thread], ids[thread]
        for block in range(first_block[thread], first_block[thread + 1]):
            block_x, block_y = block_position(block, tiles_x)
            place_pixels(scratch, block_x, block_y)
            first, count = offsets[block], offsets[block + 1] - offsets[block]
            if num_channels <= 3:
                walked[block] = _blend_registers(scratch, records, colors, entries, first, count)
            else:
                walked[block] = _blend_products(scratch, chosen, records, colors, padded, entries, first, count)
            _write_block(
                scratch, block_x, block_y, width, height, num_channels, padded, background, image, alphas
            )
