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

from avtool.jit import inlined, kernel, threaded
from avtool.render.cpu_project import (
    BEND,
    BLOCK,
    EXTENT_X,
    EXTENT_Y,
    HALF,
    LEAN,
    MEAN_X,
    MEAN_Y,
    REACH,
    WIDEST,
    ZERO,
    f32,
)

THREE = f32(3)
BLOCK_OVERHEAD = 4
"""Cost of visiting a block, in list entries, for balancing the threads."""

_RADIX_BITS = 11
_RADIX = 1 << _RADIX_BITS
_MASK = np.uint64(_RADIX - 1)


@kernel
def sort_by_depth(num_threads, keys, num_rows, order, first_span, first_listed, pairs, spare):
    """Stable radix sort of the visible Gaussians: order (M,) indices front to back. Returns (M, number of spans).

    A span is a Gaussian's columns of blocks in one row of them. first_span (N,) gets where a Gaussian's spans start,
    first_listed (T,) where each thread's do once they are listed front to back, M / T Gaussians a thread.
    pairs, spare: (N,) uint64 scratch.
    """
    histogram = np.zeros((3, _RADIX), np.int64)
    count, spans = 0, 0
    for i in range(len(keys)):
        key = np.uint64(keys[i])
        first_span[i] = spans
        if key == 0:
            continue
        spans += num_rows[i]
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
    listed, thread = 0, 0
    for j in range(count):
        while thread < num_threads and j == count * thread // num_threads:
            first_listed[thread] = listed
            thread += 1
        i = np.uint32(pairs[j])
        order[j] = i
        listed += num_rows[i]
    first_listed[thread:] = listed
    return count, spans


@threaded
def find_spans(num_threads, first_row, num_rows, first_span, table, width, spans):
    """First and last column of blocks that every Gaussian's ellipse meets in each of its rows of blocks: spans (., 2)
    int16, first > last where it meets none."""
    num_points = len(num_rows)
    for thread in prange(num_threads):
        for i in range(num_points * thread // num_threads, num_points * (thread + 1) // num_threads):
            lean, reach, bend, widest = table[i, LEAN], table[i, REACH], table[i, BEND], table[i, WIDEST]
            extent_y, center_x = table[i, EXTENT_Y], table[i, MEAN_X]
            slack = f32(1e-3) + f32(2e-6) * (table[i, EXTENT_X] + abs(center_x))
            left_end, right_end = center_x - HALF - slack, center_x - HALF + slack
            row, at = first_row[i], first_span[i]
            top = f32(row * BLOCK) + HALF - table[i, MEAN_Y]
            for k in range(num_rows[i]):
                low, high = max(top, -extent_y), min(top + THREE, extent_y)
                top += f32(BLOCK)
                spans[at + k, 0], spans[at + k, 1] = 1, 0
                if low > high:
                    continue
                # Widest where the ellipse's slope is vertical; within a band of rows, at the nearest height to that.
                y_right, y_left = min(max(widest, low), high), min(max(-widest, low), high)
                right = right_end + lean * y_right + math.sqrt(max(ZERO, reach - bend * y_right * y_right))
                left = left_end + lean * y_left - math.sqrt(max(ZERO, reach - bend * y_left * y_left))
                # Rounded up and down by the cast, which cuts: both are at least zero here.
                first = np.int32(min(f32(width), max(ZERO, left)))
                first += np.int32(f32(first) < left)
                last = np.int32(min(f32(width), right + f32(1)) if right >= ZERO else ZERO) - 1
                last = min(last, width - 1)
                if first <= last:
                    spans[at + k, 0], spans[at + k, 1] = first >> 2, last >> 2


@threaded
def count_pairs(
    num_threads, num_visible, order, first_row, num_rows, first_span, spans, first_listed, tiles_x, counts, listed,
    num_listed,
):  # fmt: skip
    """List the spans front to back, listed (., 4): Gaussian, row, first and last column of blocks; and count how many list
    entries each thread will put into each block: counts (T, blocks)."""
    for thread in prange(num_threads):
        at = first_listed[thread]
        count = counts[thread]
        count[:] = 0
        for rank in range(num_visible * thread // num_threads, num_visible * (thread + 1) // num_threads):
            i = np.int64(order[rank])
            row, begin = first_row[i], first_span[i]
            for k in range(num_rows[i]):
                first, last = np.int64(spans[begin + k, 0]), np.int64(spans[begin + k, 1])
                if first > last:
                    continue
                block_row = np.int64(row + k)
                listed[at, 0], listed[at, 1], listed[at, 2], listed[at, 3] = i, block_row, first, last
                at += 1
                base = (block_row >> 2) * tiles_x * 16 + (block_row & 3) * 4
                for column in range(first, last + 1):
                    count[base + (column >> 2) * 16 + (column & 3)] += 1
        num_listed[thread] = at


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
def fill_lists(num_threads, first_listed, num_listed, listed, tiles_x, positions, entries):
    """Write the Gaussians into the blocks' lists; threads hold consecutive ranks, so every list stays in depth order."""
    for thread in prange(num_threads):
        position = positions[thread]
        for at in range(first_listed[thread], num_listed[thread]):
            i, block_row = listed[at, 0], np.int64(listed[at, 1])
            base = (block_row >> 2) * tiles_x * 16 + (block_row & 3) * 4
            for column in range(np.int64(listed[at, 2]), np.int64(listed[at, 3]) + 1):
                block = base + (column >> 2) * 16 + (column & 3)
                entries[position[block]] = i
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
