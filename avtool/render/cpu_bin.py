"""Depth order and lists of Gaussians per block of 4 x 4 pixels, on the CPU.

One global radix sort by depth; then counting sort into blocks, walking the Gaussians front to back, so that every
list is in depth order. A Gaussian enters exactly the blocks that its ellipse (the 1/255 level set) meets: row by row
of blocks, the ellipse's horizontal span is solved for. Blocks are numbered tile by tile of 4 x 4 blocks (16 x 16
pixels), so that neighbors in memory are neighbors in the image.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from avtool.render.cpu_project import (
    BLOCK,
    CONIC_XX,
    CONIC_XY,
    CONIC_YY,
    DET,
    EXTENT_X,
    EXTENT_Y,
    HALF,
    LEVEL,
    LOG2_OPACITY,
    MEAN_X,
    MEAN_Y,
    ONE,
    ZERO,
    block_rows,
    f32,
)
from avtool.jit import inlined, kernel, threaded

QUARTER, THREE = f32(0.25), f32(3)
LOG2_E = f32(math.log2(math.e))
BLOCK_OVERHEAD = 4
"""Cost of visiting a block, in list entries, for balancing the threads."""

# A record is what the inner loop reads of a Gaussian, in depth order: mean, conic scaled to log2 units, log2 opacity.
RECORD_X, RECORD_Y, RECORD_XX, RECORD_XY, RECORD_YY, RECORD_PEAK = range(6)
RECORD_SIZE = 8
NEVER = f32(-1e30)
"""log2 opacity of the record that pads odd lists."""

_RADIX_BITS = 11
_RADIX = 1 << _RADIX_BITS
_MASK = np.uint64(_RADIX - 1)


@kernel
def sort_by_depth(keys, num_rows, order, first_span, pairs, spare):
    """Stable radix sort of the visible Gaussians: order (M,) indices front to back. Returns M.

    first_span (M + 1,) gets where each sorted Gaussian's rows of blocks start in a list of spans (an upper bound).
    pairs, spare: (N,) uint64 scratch.
    """
    histogram = np.zeros((3, _RADIX), np.int64)
    count = 0
    for i in range(len(keys)):
        key = np.uint64(keys[i])
        if key == 0:
            continue
        pairs[count] = (key << np.uint64(32)) | np.uint64(i)
        count += 1
        for digit in range(3):
            histogram[digit, (key >> np.uint64(_RADIX_BITS * digit)) & _MASK] += 1
    for digit in range(3):
        if histogram[digit].max() == count:  # all the same: nothing to sort by
            continue
        start = 0
        for bucket in range(_RADIX):
            size = histogram[digit, bucket]
            histogram[digit, bucket] = start
            start += size
        shift = np.uint64(32 + _RADIX_BITS * digit)
        for j in range(count):
            pair = pairs[j]
            bucket = (pair >> shift) & _MASK
            spare[histogram[digit, bucket]] = pair
            histogram[digit, bucket] += 1
        pairs, spare = spare, pairs
    spans = 0
    for j in range(count):
        i = np.uint32(pairs[j])
        order[j] = i
        first_span[j] = spans
        spans += num_rows[i]
    first_span[count] = spans
    return count


@inlined
def _span(table, i, block_row, width):
    """First and last pixel column of a row of blocks that Gaussian i's ellipse meets (first > last: none)."""
    a, b, c, det = table[i, CONIC_XX], table[i, CONIC_XY], table[i, CONIC_YY], table[i, DET]
    center_x, extent_x, extent_y = table[i, MEAN_X], table[i, EXTENT_X], table[i, EXTENT_Y]
    top = f32(block_row * BLOCK) + HALF - table[i, MEAN_Y]
    low, high = max(top, -extent_y), min(top + THREE, extent_y)
    if low > high:
        return 1, 0
    # The ellipse is widest to the right where its slope is vertical; within a band of rows, at the nearest row to that.
    widest = -b / c * extent_x
    y_right, y_left = min(max(widest, low), high), min(max(-widest, low), high)
    level = a * table[i, LEVEL]
    right = (-b * y_right + math.sqrt(max(ZERO, level - det * y_right * y_right))) / a
    left = (-b * y_left - math.sqrt(max(ZERO, level - det * y_left * y_left))) / a
    slack = f32(1e-3) + f32(2e-6) * (extent_x + abs(center_x))
    first = math.ceil(min(f32(width), max(ZERO, center_x + left - HALF - slack)))
    last = math.floor(max(f32(-1), min(f32(width - 1), center_x + right - HALF + slack)))
    return np.int64(first), np.int64(last)


@inlined
def _write_record(rank, i, table, colors, records, sorted_colors, padded):
    """Copy what the raster loops need of Gaussian i to its place in depth order."""
    at = rank * RECORD_SIZE
    records[at + RECORD_X], records[at + RECORD_Y] = table[i, MEAN_X], table[i, MEAN_Y]
    records[at + RECORD_XX] = HALF * LOG2_E * table[i, CONIC_XX]
    records[at + RECORD_XY] = LOG2_E * table[i, CONIC_XY]
    records[at + RECORD_YY] = HALF * LOG2_E * table[i, CONIC_YY]
    records[at + RECORD_PEAK] = table[i, LOG2_OPACITY]
    num_channels = colors.shape[1]
    at = rank * padded
    for channel in range(num_channels):
        sorted_colors[at + channel] = colors[i, channel]
    for channel in range(num_channels, padded):
        sorted_colors[at + channel] = ZERO


@threaded
def count_pairs(
    num_threads, num_visible, order, first_span, table, colors, width, height, tiles_x, records, sorted_colors,
    padded, counts, spans, num_spans,
):  # fmt: skip
    """Write the records and colors in depth order, the spans (rank, row, first and last column of blocks), and how
    many list entries each thread puts into each block: counts (T, blocks)."""
    for thread in prange(num_threads):
        begin, end = num_visible * thread // num_threads, num_visible * (thread + 1) // num_threads
        at = first_span[begin]
        count = counts[thread]
        count[:] = 0
        for rank in range(begin, end):
            i = np.int64(order[rank])
            _write_record(rank, i, table, colors, records, sorted_colors, padded)
            top, bottom = block_rows(table[i, MEAN_Y], table[i, EXTENT_Y], f32(height))
            for block_row in range(top, bottom + 1):
                first, last = _span(table, i, block_row, width)
                if first > last:
                    continue
                first, last = first // BLOCK, last // BLOCK
                spans[at, 0], spans[at, 1], spans[at, 2], spans[at, 3] = rank, block_row, first, last
                at += 1
                base = (block_row >> 2) * tiles_x * 16 + (block_row & 3) * 4
                for column in range(first, last + 1):
                    count[base + (column >> 2) * 16 + (column & 3)] += 1
        num_spans[thread] = at


@kernel
def scan_counts(num_threads, counts, offsets):
    """Turn counts (T, blocks) into each thread's write positions; fills offsets (blocks + 1,).

    Returns the total and the longest list.
    """
    total, longest = np.int64(0), np.int64(0)
    num_blocks = counts.shape[1]
    for block in range(num_blocks):
        offsets[block] = total
        begin = total
        for thread in range(num_threads):
            size = counts[thread, block]
            counts[thread, block] = total
            total += size
        longest = max(longest, total - begin)
    offsets[num_blocks] = total
    return total, longest


@threaded
def fill_lists(num_threads, num_visible, first_span, num_spans, spans, tiles_x, positions, entries):
    """Write the ranks into the blocks' lists; threads hold consecutive ranks, so every list stays in depth order."""
    for thread in prange(num_threads):
        position = positions[thread]
        for at in range(first_span[num_visible * thread // num_threads], num_spans[thread]):
            rank, block_row = spans[at, 0], spans[at, 1]
            base = (block_row >> 2) * tiles_x * 16 + (block_row & 3) * 4
            for column in range(spans[at, 2], spans[at, 3] + 1):
                block = base + (column >> 2) * 16 + (column & 3)
                entries[position[block]] = rank
                position[block] += 1


@kernel
def share_blocks(num_threads, sizes, first_block):
    """Cut the blocks into runs of about equal work: first_block (T + 1,) from list lengths (blocks,)."""
    num_blocks = len(sizes)
    total = np.int64(0)
    for block in range(num_blocks):
        total += sizes[block] + BLOCK_OVERHEAD
    done, thread = np.int64(0), 1
    first_block[0] = 0
    for block in range(num_blocks):
        while thread < num_threads and done >= total * thread // num_threads:
            first_block[thread] = block
            thread += 1
        done += sizes[block] + BLOCK_OVERHEAD
    while thread <= num_threads:
        first_block[thread] = num_blocks
        thread += 1
