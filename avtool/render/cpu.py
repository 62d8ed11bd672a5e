"""The CPU backend: numba kernels behind a torch autograd function.

Memory is kept between calls and grows to the largest call seen. What the backward pass needs of an image (a
``_Frame``: projections, records and lists, about 26 N floats plus the lists, and C N more where colors must be padded)
is held by the graph and goes back to a pool afterwards; everything else (``_SCRATCH``) is shared by all images, so one
lock guards the kernels.

Shape legend: B images, N Gaussians, C channels (padded to a multiple of 8), T threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from avtool import jit
from avtool.render import cpu_backward, cpu_bin, cpu_forward, cpu_project
from avtool.render.dispatch import RenderInput

_POOL_SIZE = 8
_LIST_PADDING = 16


class _Buffers:
    """Named flat arrays that only grow."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
        """An uninitialized array; the same name gives the same memory again."""
        size = int(np.prod(shape))
        array = self._arrays.get(name)
        if array is None or array.size < size:
            # A quarter more than needed: list lengths change a little from step to step.
            array = self._arrays[name] = np.zeros(size + size // 4, dtype)
        return array[:size].reshape(shape)


class _Frame(_Buffers):
    """One image's state between its forward and its backward pass."""

    longest: int
    arrays: dict[str, np.ndarray]


_SCRATCH = _Buffers()
_POOL: list[_Frame] = []


class _Lease:
    """Frames of one forward pass; they return to the pool when the graph that holds the lease is gone."""

    def __init__(self, count: int) -> None:
        with jit.LOCK:
            self.frames = [_POOL.pop() if _POOL else _Frame() for _ in range(count)]

    def __del__(self) -> None:
        # The list's append is atomic: a finalizer must not wait for a lock.
        for frame in self.frames:
            if len(_POOL) < _POOL_SIZE:
                _POOL.append(frame)


def _padded(num_channels: int) -> int:
    return (num_channels + 7) // 8 * 8


def _padded_background(background: Tensor) -> np.ndarray:
    """(padded C,), zeros behind."""
    padded = np.zeros(_padded(len(background)), np.float32)
    padded[: len(background)] = background.detach().numpy()
    return padded


def _tiles(width: int) -> int:
    return (width + 15) // 16


def _project_image(
    frame: _Frame, arrays: tuple[np.ndarray, ...], size: tuple[int, int], threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Project the Gaussians into the frame's table, records and keys; returns first_row and num_rows (N,) of each."""
    means, quats, scales, opacities, colors, viewmat, K = arrays
    num_points, num_channels = colors.shape
    padded = _padded(num_channels)
    table = frame.get("table", (num_points, cpu_project.NUM_COLUMNS))
    records = frame.get("records", ((num_points + 1) * cpu_project.RECORD_SIZE,))
    keys = frame.get("keys", (num_points,), np.uint32)
    first_row, num_rows = (_SCRATCH.get(name, (num_points,), np.int32) for name in ("first_row", "num_rows"))
    padded_colors = frame.get("colors", (0 if num_channels == padded else (num_points + 1) * padded,))
    cpu_project.project(
        threads, means, quats, scales, opacities, colors, viewmat, K, *size, table, records, padded_colors, padded, keys,
        first_row, num_rows,
    )  # fmt: skip
    # The null record that pads odd lists.
    records[-cpu_project.RECORD_SIZE :] = 0
    records[-cpu_project.RECORD_SIZE + cpu_project.RECORD_PEAK] = cpu_project.NEVER
    padded_colors[-padded:] = 0
    frame.arrays = {"table": table, "records": records, "keys": keys, "colors": padded_colors}
    return first_row, num_rows


def _list_blocks(
    frame: _Frame, first_row: np.ndarray, num_rows: np.ndarray, size: tuple[int, int], threads: int
) -> None:
    """Fill the frame's list of Gaussians of every block, front to back: offsets (blocks + 1,) into entries."""
    width, height = size
    num_points, tiles_x = len(num_rows), _tiles(width)
    num_blocks = tiles_x * _tiles(height) * 16
    order = _SCRATCH.get("order", (num_points,), np.uint32)
    first_span = _SCRATCH.get("first_span", (num_points,), np.int64)
    first_listed, num_listed = (_SCRATCH.get(name, (threads,), np.int64) for name in ("first_listed", "num_listed"))
    pairs, spare = (_SCRATCH.get(name, (num_points,), np.uint64) for name in ("pairs", "spare"))
    num_visible, num_spans = cpu_bin.sort_by_depth(
        threads, frame.arrays["keys"], num_rows, order, first_span, first_listed, pairs, spare
    )
    spans = _SCRATCH.get("spans", (max(1, num_spans), 2), np.int16)
    cpu_bin.find_spans(threads, first_row, num_rows, first_span, frame.arrays["table"], width, spans)
    counts = _SCRATCH.get("counts", (threads, num_blocks), np.int64)
    listed = _SCRATCH.get("listed", (max(1, num_spans), 4), np.int32)
    cpu_bin.count_pairs(
        threads, num_visible, order, first_row, num_rows, first_span, spans, first_listed, tiles_x, counts, listed,
        num_listed,
    )  # fmt: skip
    offsets = frame.get("offsets", (num_blocks + 1,), np.int64)
    total, frame.longest = cpu_bin.scan_counts(threads, counts, offsets)
    entries = frame.get("entries", (total + _LIST_PADDING,), np.int32)
    entries[total:] = 0
    cpu_bin.fill_lists(threads, first_listed, num_listed, listed, tiles_x, counts, entries)
    frame.arrays |= {"offsets": offsets, "entries": entries}


def _flat_colors(frame: _Frame, colors: np.ndarray) -> np.ndarray:
    """Colors (N, C) in rows of whole vectors, flat: as they are where they fit, else the frame's copy."""
    return colors.reshape(-1) if colors.shape[1] == _padded(colors.shape[1]) else frame.arrays["colors"]


def _forward_image(
    frame: _Frame, arrays: tuple[np.ndarray, ...], size: tuple[int, int], background: np.ndarray,
    image: np.ndarray, alphas: np.ndarray, threads: int,
) -> None:  # fmt: skip
    """Render one image into image (H, W, C) and alphas (H, W)."""
    colors, (width, height) = arrays[4], size
    num_channels = colors.shape[1]
    padded = _padded(num_channels)
    _list_blocks(frame, *_project_image(frame, arrays, size, threads), size, threads)
    kept = frame.arrays
    first_block = _SCRATCH.get("first_block", (threads + 1,), np.int64)
    cpu_bin.share_blocks(threads, np.diff(kept["offsets"]), first_block)
    kept["walked"] = frame.get("walked", (len(kept["offsets"]) - 1,), np.int64)
    scratches = _SCRATCH.get("forward", (threads, cpu_forward.scratch_floats(padded)))
    ids = _SCRATCH.get("forward_ids", (threads, cpu_forward.CHUNK + 8), np.int32)
    cpu_forward.raster_forward(
        threads, first_block, kept["offsets"], kept["entries"], kept["records"], _flat_colors(frame, colors),
        num_channels, padded, width, height, _tiles(width), background, image.reshape(-1), alphas.reshape(-1),
        kept["walked"], scratches, ids,
    )  # fmt: skip


def _backward_image(
    frame: _Frame, arrays: tuple[np.ndarray, ...], size: tuple[int, int], background: np.ndarray,
    v_image: np.ndarray, v_alphas: np.ndarray, grads: tuple[np.ndarray, ...], threads: int,
) -> None:  # fmt: skip
    """Add one image's gradients to grads (means, quats, scales, opacities, colors, viewmat)."""
    means, quats, scales, opacities, colors, viewmat, K = arrays
    v_means, v_quats, v_scales, v_opacities, v_colors, v_viewmat = grads
    (width, height), num_channels = size, colors.shape[1]
    padded, kept = _padded(num_channels), frame.arrays
    first_block = _SCRATCH.get("first_block", (threads + 1,), np.int64)
    cpu_bin.share_blocks(threads, kept["walked"], first_block)
    scratches = _SCRATCH.get("backward", (threads, cpu_backward.scratch_floats(padded, frame.longest)))
    ids = _SCRATCH.get("backward_ids", (threads, frame.longest + 8), np.int32)
    num_points = len(means)
    buffers = _SCRATCH.get("buffers", (threads, num_points, padded + 8))
    cpu_backward.raster_backward(
        threads, first_block, kept["offsets"], kept["entries"], kept["records"], _flat_colors(frame, colors), num_points,
        num_channels, padded, width, height, _tiles(width), background, v_image.reshape(-1), v_alphas.reshape(-1),
        kept["walked"], frame.longest, scratches, ids, buffers.reshape(threads, -1),
    )  # fmt: skip
    pose = _SCRATCH.get("pose", (threads, 3, 4), np.float64)
    cpu_project.project_backward(
        threads, kept["keys"], buffers, num_channels, kept["table"], means, quats, scales, opacities, viewmat, K,
        width, height, v_means, v_quats, v_scales, v_opacities, v_colors, pose,
    )  # fmt: skip
    v_viewmat[:3] += pose.sum(0).astype(np.float32)


def _one_image(tensors: tuple[Tensor, ...], b: int) -> tuple[np.ndarray, ...]:
    """The arrays of image b; tensors with one row are shared by all."""
    return tuple(tensor[b if tensor.shape[0] > 1 else 0].detach().numpy() for tensor in tensors)


class _Rasterize(torch.autograd.Function):
    """(B|1, N, ...) fields, (B|1, 4, 4) viewmats, (B|1, 3, 3) Ks, (C,) background -> (B, H, W, C), (B, H, W, 1)."""

    @staticmethod
    def forward(ctx: Any, batch_size: int, size: tuple[int, int], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        width, height = size
        image = torch.empty(batch_size, height, width, tensors[4].shape[-1])
        alphas = torch.empty(batch_size, height, width, 1)
        *fields, background = tensors
        lease, behind = _Lease(batch_size), _padded_background(background)
        with jit.LOCK:
            threads = jit.num_threads()
            for b, frame in enumerate(lease.frames):
                arrays = _one_image(tuple(fields), b)
                _forward_image(frame, arrays, size, behind, image[b].numpy(), alphas[b].numpy(), threads)
        if any(ctx.needs_input_grad):
            ctx.lease, ctx.size = lease, size
            ctx.save_for_backward(*tensors, alphas)
        return image, alphas

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v_image: Tensor, v_alphas: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, alphas = ctx.saved_tensors
        *fields, background = tensors
        grads = [torch.zeros_like(tensor) for tensor in fields[:6]]
        v_image, v_alphas, behind = v_image.contiguous(), v_alphas.contiguous(), _padded_background(background)
        with jit.LOCK:
            threads = jit.num_threads()
            for b, frame in enumerate(ctx.lease.frames):
                one = _one_image(tuple(grads), b)
                arrays = _one_image(tuple(fields), b)
                _backward_image(
                    frame, arrays, ctx.size, behind, v_image[b].numpy(), v_alphas[b].numpy(), one, threads
                )
        v_background = None
        if ctx.needs_input_grad[-1]:
            v_background = (v_image * (1 - alphas)).sum((0, 1, 2))
        return None, None, *grads, None, v_background


def render_numba(inputs: RenderInput) -> tuple[Tensor, Tensor]:
    """Render checked inputs on the CPU in float32; results return on the inputs' device and in their float type.

    Gradients flow to means, quats, scales, opacities, colors, background and viewmats. Ks get none.
    """
    if inputs.Ks.requires_grad:
        raise ValueError("Ks cannot be optimized by this render backend; use backend='torch' or optimize the viewmats")
    jit.choose_threading_layer()
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
    background = inputs.background
    if background is None:
        background = torch.zeros(inputs.colors.shape[-1])
    tensors = [getattr(inputs, name) for name in names] + [background]
    tensors = [tensor.to(device="cpu", dtype=torch.float32).contiguous() for tensor in tensors]
    colors, alphas = _Rasterize.apply(inputs.batch_size, (inputs.width, inputs.height), *tensors)
    return colors.to(inputs.means), alphas.to(inputs.means)
