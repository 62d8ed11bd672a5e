"""render(): one call and one meaning for every backend.

Shape legend: ... batch (B after flattening), N Gaussians, C channels, H x W image.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from avtool.gaussians.container import Gaussians
from avtool.render.reference import rasterize_reference

BACKENDS = ("auto", "numba", "torch", "gsplat")

_LOGGER = logging.getLogger(__name__)


class RenderOutput(NamedTuple):
    """colors (..., H, W, C), composited on the background if there is one; alphas (..., H, W, 1) in [0, 1]; depths
    (..., H, W, 1) where they were asked for: metres along the camera's axis, the mean over what is seen, 0 where nothing is."""

    colors: Tensor
    alphas: Tensor
    depths: Tensor | None = None


@dataclass(frozen=True)
class RenderInput:
    """What a backend gets: checked tensors with one flat batch dimension, 1 where a field is shared by all images.

    means (B|1, N, 3), quats (B|1, N, 4), scales (B|1, N, 3), opacities (B|1, N), colors (B|1, N, C),
    viewmats (B|1, 4, 4), Ks (B|1, 3, 3), background (C,) or None.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    viewmats: Tensor
    Ks: Tensor
    width: int
    height: int
    batch_size: int
    background: Tensor | None


def render(
    gaussians: Gaussians,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    background: Tensor | None = None,
    backend: str = "auto",
    depth: bool = False,
) -> RenderOutput:
    """Splat Gaussians into pinhole cameras (gsplat "classic" mode; the meaning is stated in render/reference.py).

    Differentiable in means, quats, scales, opacities, colors, background and viewmats; not in Ks. Batch dimensions
    of the Gaussians' fields, viewmats and Ks broadcast; what is shared by all images is not copied.

    Args:
        gaussians: (..., N, .) world frame, metres.
        viewmats: (..., 4, 4) world-to-camera, OpenCV axes.
        Ks: (..., 3, 3) intrinsics in pixels of a ``width`` x ``height`` image.
        background: (C,) color behind everything; None leaves black, i.e. premultiplied colors.
        backend: "auto" (gsplat on CUDA, else numba), or "numba", "torch" (the readable twin), "gsplat".
        depth: also return depths (gsplat's "ED"), differentiable like a color.

    Raises:
        ValueError: for shapes that do not fit, an unknown backend, or numbers that are not finite.
        AvtoolError: when gsplat is needed and cannot be used.
    """
    if depth:
        return _render_with_depth(gaussians, viewmats, Ks, width, height, background, backend)
    inputs, batch_shape = _check(gaussians, viewmats, Ks, width, height, background)
    name = _choose(backend, inputs.means.device)
    if name == "torch":
        colors, alphas = _render_torch(inputs)
    elif name == "gsplat":
        from avtool.render.cuda import render_gsplat

        colors, alphas = render_gsplat(inputs)
    else:
        from avtool.render.cpu import render_numba

        colors, alphas = render_numba(inputs)
    return RenderOutput(
        colors.reshape(*batch_shape, height, width, gaussians.num_channels),
        alphas.reshape(*batch_shape, height, width, 1),
    )


def _render_with_depth(
    gaussians: Gaussians, viewmats: Tensor, Ks: Tensor, width: int, height: int, background: Tensor | None, backend: str
) -> RenderOutput:
    """Depth is one more color on black: what is blended of it, divided by the coverage."""
    _check(gaussians, viewmats, Ks, width, height, background)
    z = (gaussians.means * viewmats[..., None, 2, :3]).sum(-1, keepdim=True) + viewmats[..., None, 2:3, 3]
    shape = torch.broadcast_shapes(gaussians.colors.shape[:-2], z.shape[:-2])
    colors = torch.cat([t.expand(*shape, *t.shape[-2:]) for t in (gaussians.colors, z)], dim=-1)
    if background is not None:
        background = torch.cat((background, background.new_zeros(1)))
    output = render(
        gaussians.with_colors(colors), viewmats, Ks, width, height, background=background, backend=backend
    )
    depths = output.colors[..., -1:] / output.alphas.clamp_min(1e-10)
    return RenderOutput(output.colors[..., :-1], output.alphas, depths)


@functools.cache
def _note_no_rasterizer(device: str) -> None:
    """Once a process."""
    _LOGGER.warning("no rasterizer for device %s: rendering on the CPU, everything else stays there", device)


def _choose(backend: str, device: torch.device) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"unknown render backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend != "auto":
        return backend
    if device.type == "cuda":
        return "gsplat"
    if device.type != "cpu":
        _note_no_rasterizer(device.type)
    return "numba"


def _render_torch(inputs: RenderInput) -> tuple[Tensor, Tensor]:
    """The twin, image by image: (B, H, W, C), (B, H, W, 1)."""
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
    outputs = []
    for b in range(inputs.batch_size):
        one = [getattr(inputs, name) for name in names]
        one = [tensor[b if tensor.shape[0] > 1 else 0] for tensor in one]
        outputs.append(rasterize_reference(*one, inputs.width, inputs.height))
    colors = torch.stack([colors for colors, _ in outputs])
    alphas = torch.stack([alphas for _, alphas in outputs])
    if inputs.background is not None:
        colors = colors + (1 - alphas) * inputs.background
    return colors, alphas


def _check(
    gaussians: Gaussians, viewmats: Tensor, Ks: Tensor, width: int, height: int, background: Tensor | None
) -> tuple[RenderInput, torch.Size]:
    """Validate and flatten the batch dimensions."""
    if width < 1 or height < 1:
        raise ValueError(f"an image needs at least one pixel, found {width} x {height}")
    if viewmats.shape[-2:] != (4, 4) or Ks.shape[-2:] != (3, 3):
        raise ValueError(
            f"viewmats must be (..., 4, 4) and Ks (..., 3, 3), found {tuple(viewmats.shape)} and {tuple(Ks.shape)}"
        )
    if background is not None and background.shape != (gaussians.num_channels,):
        raise ValueError(f"background must have shape ({gaussians.num_channels},), found {tuple(background.shape)}")
    dims = {"means": 2, "quats": 2, "scales": 2, "opacities": 1, "colors": 2, "viewmats": 2, "Ks": 2}
    tensors = {name: getattr(gaussians, name, None) for name in dims} | {"viewmats": viewmats, "Ks": Ks}
    try:
        batch_shape = torch.broadcast_shapes(*(t.shape[: t.dim() - dims[name]] for name, t in tensors.items()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"batch dimensions do not broadcast: {shapes}") from None
    if batch_shape.numel() == 0:
        raise ValueError(f"nothing to render: the batch shape is {tuple(batch_shape)}")
    _check_finite(tensors | ({} if background is None else {"background": background}))
    flat = {name: _flatten(tensor, dims[name], batch_shape) for name, tensor in tensors.items()}
    batch_size = batch_shape.numel()
    return RenderInput(**flat, width=width, height=height, batch_size=batch_size, background=background), batch_shape


def _flatten(tensor: Tensor, dims: int, batch_shape: torch.Size) -> Tensor:
    """(..., *row) -> (B, *row), or (1, *row) when the tensor is the same for all images."""
    batch, row = tensor.shape[: tensor.dim() - dims], tensor.shape[tensor.dim() - dims :]
    if batch.numel() == 1:
        return tensor.reshape(1, *row)
    return tensor.expand(*batch_shape, *row).reshape(-1, *row)


def _check_finite(tensors: dict[str, Tensor]) -> None:
    """One sum per tensor finds a NaN or infinity; only then is it looked for."""
    with torch.no_grad():
        total = torch.stack([tensor.sum().to(tensors["means"].device) for tensor in tensors.values()]).sum()
        if torch.isfinite(total):
            return
        for name, tensor in tensors.items():
            bad = torch.nonzero(~torch.isfinite(tensor))
            if len(bad):
                first = tuple(bad[0].tolist())
                raise ValueError(f"{name} has {len(bad)} non-finite of {tensor.numel()} values, first at index {first}")
