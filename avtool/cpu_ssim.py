"""Structural similarity per pixel on the CPU, forward and backward, in one pass over the rows (its twin is losses.ssim_map_torch).

The window is separable: every row of the five moments x, y, x^2, y^2, xy is blurred along the row once and kept until the
eleven rows of a window are there. Colors stay interleaved: a row is one vector, and a neighbor lies C further.

Shape legend: B images of H x W pixels, C channels; maps (B, H - 10, W - 10, C); T threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from avtool import jit
from avtool.jit import inlined, threaded
from avtool.render.simd import broadcast, load, load_broadcast, store

WINDOW = 11
REACH = WINDOW - 1
f32 = np.float32
TWO = f32(2)
MOMENTS, DERIVATIVES = 5, 3


def _padded(floats: int) -> int:
    """Of a row in scratch memory: whole vectors, and what the window reads beyond the last one."""
    return (floats + 7) // 8 * 8 + 8


def scratch_floats(width: int, channels: int) -> int:
    """Scratch a thread needs: rows before the blur, rows of a window, rows of results."""
    return (MOMENTS * (1 + WINDOW) + 1 + DERIVATIVES) * _padded((width + REACH) * channels)


@inlined
def _blur_row(scratch, first, step, window, out, count):
    """Blur ``count`` floats along a row: out[j] = sum_k window[k] scratch[first + j + k step] (the window is symmetric)."""
    w0, w1, w2 = load_broadcast(window, 0), load_broadcast(window, 1), load_broadcast(window, 2)
    w3, w4, w5 = load_broadcast(window, 3), load_broadcast(window, 4), load_broadcast(window, 5)
    for j in range(0, count, 8):
        at = first + j
        far = at + 10 * step
        total = w0 * (load(scratch, at) + load(scratch, far))
        total = total + w1 * (load(scratch, at + step) + load(scratch, far - step))
        total = total + w2 * (load(scratch, at + 2 * step) + load(scratch, far - 2 * step))
        total = total + w3 * (load(scratch, at + 3 * step) + load(scratch, far - 3 * step))
        total = total + w4 * (load(scratch, at + 4 * step) + load(scratch, far - 4 * step))
        store(scratch, out + j, total + w5 * load(scratch, at + 5 * step))


@inlined
def _blur_column(scratch, ring, rows, row, window, j):
    """Blur down a column: the vector at j of the eleven rows from ``row`` on, which lie ``rows`` apart in a ring."""
    total = load_broadcast(window, 5) * load(scratch, ring + (row + 5) % WINDOW * rows + j)
    for k in range(5):
        upper = load(scratch, ring + (row + k) % WINDOW * rows + j)
        lower = load(scratch, ring + (row + REACH - k) % WINDOW * rows + j)
        total = total + load_broadcast(window, k) * (upper + lower)
    return total


@inlined
def _similarity(mean_x, mean_y, xx, yy, xy, c1, c2):
    """SSIM and its derivatives by the blurred x, x^2 and xy (Wang et al. 2004)."""
    two = broadcast(TWO)
    square_x, square_y, both = mean_x * mean_x, mean_y * mean_y, mean_x * mean_y
    a1, b1 = two * both + c1, square_x + square_y + c1
    a2, b2 = two * (xy - both) + c2, (xx - square_x) + (yy - square_y) + c2
    inverse = broadcast(f32(1)) / (b1 * b2)
    value = a1 * a2 * inverse
    by_xx = -value * b1 * inverse
    by_mean = two * mean_y * (a2 - a1) * inverse - two * mean_x * (value * b2 * inverse + by_xx)
    return value, by_mean, by_xx, two * a1 * inverse


@threaded
def ssim_forward(num_threads, x, y, height, width, channels, window, c1, c2, keep, value, derivatives, scratches):
    """Flat images x, y (B H W C,) -> value (B (H - 10) (W - 10) C,), and if ``keep`` derivatives (3, the same)."""
    rows, wide, narrow = height - REACH, width * channels, (width - REACH) * channels
    images = len(x) // (height * wide)
    stride = scratches.shape[1] // (MOMENTS * (1 + WINDOW) + 1 + DERIVATIVES)
    ring, results = MOMENTS * stride, MOMENTS * (1 + WINDOW) * stride
    for thread in prange(num_threads):
        scratch = scratches[thread]
        first, last = rows * thread // num_threads, rows * (thread + 1) // num_threads
        stabilizer1, stabilizer2 = broadcast(c1), broadcast(c2)
        for image in range(images):
            for row in range(first, last + REACH if last > first else first):
                at = (image * height + row) * wide
                for j in range(wide):
                    p, q = x[at + j], y[at + j]
                    scratch[j], scratch[stride + j], scratch[2 * stride + j] = p, q, p * p
                    scratch[3 * stride + j], scratch[4 * stride + j] = q * q, p * q
                place = ring + row % WINDOW * MOMENTS * stride
                for moment in range(MOMENTS):
                    _blur_row(scratch, moment * stride, channels, window, place + moment * stride, narrow)
                top = row - REACH
                if top < first:
                    continue
                for j in range(0, narrow, 8):
                    mean_x = _blur_column(scratch, ring, MOMENTS * stride, top, window, j)
                    mean_y = _blur_column(scratch, ring + stride, MOMENTS * stride, top, window, j)
                    xx = _blur_column(scratch, ring + 2 * stride, MOMENTS * stride, top, window, j)
                    yy = _blur_column(scratch, ring + 3 * stride, MOMENTS * stride, top, window, j)
                    xy = _blur_column(scratch, ring + 4 * stride, MOMENTS * stride, top, window, j)
                    found, by_mean, by_xx, by_xy = _similarity(mean_x, mean_y, xx, yy, xy, stabilizer1, stabilizer2)
                    store(scratch, results + j, found)
                    store(scratch, results + stride + j, by_mean)
                    store(scratch, results + 2 * stride + j, by_xx)
                    store(scratch, results + 3 * stride + j, by_xy)
                out = (image * rows + top) * narrow
                value[out : out + narrow] = scratch[results : results + narrow]
                if keep:
                    for k in range(DERIVATIVES):
                        begin = results + (k + 1) * stride
                        derivatives[k, out : out + narrow] = scratch[begin : begin + narrow]


@threaded
def ssim_backward(num_threads, x, y, height, width, channels, window, derivatives, v_value, v_x, scratches):
    """The gradient of x (B H W C,) from that of the map, v_value: the transposed blur of three weighted maps."""
    rows, wide, narrow = height - REACH, width * channels, (width - REACH) * channels
    images = len(x) // (height * wide)
    stride = scratches.shape[1] // (MOMENTS * (1 + WINDOW) + 1 + DERIVATIVES)
    ring, margin = MOMENTS * stride, REACH * channels
    for thread in prange(num_threads):
        scratch = scratches[thread]
        first, last = height * thread // num_threads, height * (thread + 1) // num_threads
        two = broadcast(TWO)
        scratch[: DERIVATIVES * stride] = f32(0)
        for image in range(images):
            for row in range(first - REACH, last):
                place = ring + (row + WINDOW) % WINDOW * MOMENTS * stride
                if row < 0 or row >= rows:
                    scratch[place : place + DERIVATIVES * stride] = f32(0)
                else:
                    at = (image * rows + row) * narrow
                    for k in range(DERIVATIVES):
                        for j in range(narrow):
                            scratch[k * stride + margin + j] = derivatives[k, at + j] * v_value[at + j]
                        _blur_row(scratch, k * stride, channels, window, place + k * stride, wide)
                if row < first:
                    continue
                at, inputs, top = (image * height + row) * wide, 3 * stride, row + 1
                scratch[inputs : inputs + wide] = x[at : at + wide]
                scratch[inputs + stride : inputs + stride + wide] = y[at : at + wide]
                for j in range(0, wide, 8):
                    by_mean = _blur_column(scratch, ring, MOMENTS * stride, top, window, j)
                    by_xx = _blur_column(scratch, ring + stride, MOMENTS * stride, top, window, j)
                    by_xy = _blur_column(scratch, ring + 2 * stride, MOMENTS * stride, top, window, j)
                    total = by_mean + two * load(scratch, inputs + j) * by_xx + load(scratch, inputs + stride + j) * by_xy
                    store(scratch, inputs + j, total)
                v_x[at : at + wide] = scratch[inputs : inputs + wide]


class SsimMap(torch.autograd.Function):
    """Images x and y (B, H, W, C), float32 on the CPU -> SSIM (B, H - 10, W - 10, C); differentiable in x alone.

    window (11,) float32; c1, c2 are the stabilizers.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, window: Tensor, c1: float, c2: float) -> Tensor:
        x, y = x.contiguous(), y.contiguous()
        images, height, width, channels = x.shape
        value = torch.empty(images, height - REACH, width - REACH, channels)
        keep = ctx.needs_input_grad[0]
        derivatives = torch.empty(DERIVATIVES, value.numel() * keep)
        with jit.LOCK:
            threads = jit.num_threads()
            scratches = np.zeros((threads, scratch_floats(width, channels)), np.float32)
            ssim_forward(
                threads, _flat(x), _flat(y), height, width, channels, window.numpy(), f32(c1), f32(c2), keep,
                _flat(value), derivatives.numpy(), scratches,
            )  # fmt: skip
        ctx.save_for_backward(x, y, window, derivatives)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v_value: Tensor) -> tuple[Tensor | None, ...]:
        x, y, window, derivatives = ctx.saved_tensors
        _, height, width, channels = x.shape
        v_x = torch.empty_like(x)
        with jit.LOCK:
            threads = jit.num_threads()
            scratches = np.zeros((threads, scratch_floats(width, channels)), np.float32)
            ssim_backward(
                threads, _flat(x), _flat(y), height, width, channels, window.numpy(), derivatives.numpy(),
                _flat(v_value.contiguous()), _flat(v_x), scratches,
            )  # fmt: skip
        return v_x, None, None, None, None


def _flat(tensor: Tensor) -> np.ndarray:
    return tensor.detach().reshape(-1).numpy()
