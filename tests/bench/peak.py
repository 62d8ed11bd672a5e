"""What the machine could do: fused multiply-adds a second, sampled beside a timing.

A busy or shared machine changes its speed by the second, so a share of the peak only means something when both were measured
in the same moment. The kernel keeps twelve vectors of eight lanes in registers and does nothing else.
"""

from __future__ import annotations

import time

import numpy as np
from numba import prange

from avtool.jit import threaded
from avtool.render.simd import broadcast, load_broadcast, store

LANES, CHAINS = 8, 12


@threaded
def _multiply_add(threads, rounds, factors, out):
    for thread in prange(threads):
        scale, shift = load_broadcast(factors, 0), load_broadcast(factors, 1)
        a = b = c = d = e = f = broadcast(np.float32(1))
        g = h = i = j = k = m = broadcast(np.float32(2))
        for _ in range(rounds):
            a, b, c, d = a * scale + shift, b * scale + shift, c * scale + shift, d * scale + shift
            e, f, g, h = e * scale + shift, f * scale + shift, g * scale + shift, h * scale + shift
            i, j, k, m = i * scale + shift, j * scale + shift, k * scale + shift, m * scale + shift
        total = a + b + c + d + e + f + g + h + i + j + k + m
        store(out, thread * LANES, total)


def sample_peak(threads: int, rounds: int = 400_000) -> float:
    """GFLOP/s of `threads` threads, a fused multiply-add counted as two; takes about a millisecond."""
    factors, out = np.array([0.5, 0.25], np.float32), np.zeros(threads * LANES, np.float32)
    _multiply_add(threads, 1, factors, out)
    start = time.perf_counter()
    _multiply_add(threads, rounds, factors, out)
    return 2 * LANES * CHAINS * rounds * threads / (time.perf_counter() - start) / 1e9
