"""The CUDA backend: one call of gsplat (Ye et al. 2024), compiled by gsplat itself at first use."""

from __future__ import annotations

import functools
import importlib
import subprocess
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from avtool.errors import AvtoolError
from avtool.render.dispatch import RenderInput
from avtool.render.reference import EPS2D, NEAR_PLANE

CHANNELS_PER_PASS = 32
"""gsplat's kernels hold this many channels at once; more take another pass over the same lists."""

_HINT = "use --device cpu, or install gsplat with a CUDA toolkit that matches torch"


@functools.cache
def load_rasterization() -> Callable[..., Any]:
    """gsplat.rasterization, once its CUDA part is known to load.

    Raises:
        AvtoolError: gsplat is not installed, or its CUDA part cannot be compiled or loaded.
    """
    try:
        gsplat = importlib.import_module("gsplat")
        compiled = importlib.import_module("gsplat.cuda._backend")._C
    except ModuleNotFoundError as error:
        raise AvtoolError(f"rendering on CUDA needs gsplat: {error}", _HINT) from error
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AvtoolError(f"gsplat's CUDA part could not be compiled: {reason}", _HINT) from error
    if compiled is None:
        raise AvtoolError("gsplat found no CUDA toolkit to compile its CUDA part with", _HINT)
    return gsplat.rasterization


def render_gsplat(inputs: RenderInput) -> tuple[Tensor, Tensor]:
    """Render checked inputs with gsplat: (B, H, W, C) and (B, H, W, 1).

    Gaussians that all images share become one scene with B cameras, others B scenes with one camera each. Gradients
    flow to means, quats, scales, opacities, colors, background and viewmats. Ks get none.
    """
    if inputs.means.device.type != "cuda":
        raise AvtoolError(f"gsplat renders on CUDA, but these tensors are on {inputs.means.device}", "use --device cpu")
    if inputs.Ks.requires_grad:
        raise ValueError("Ks cannot be optimized by this render backend; use backend='torch' or optimize the viewmats")
    rasterization = load_rasterization()
    size = inputs.batch_size
    fields = [inputs.means, inputs.quats, inputs.scales, inputs.opacities, inputs.colors]
    cameras = [tensor.expand(size, -1, -1) for tensor in (inputs.viewmats, inputs.Ks)]
    shared = all(tensor.shape[0] == 1 for tensor in fields)
    if not shared:
        fields = [tensor.expand(size, *tensor.shape[1:]) for tensor in fields]
        cameras = [tensor[:, None] for tensor in cameras]
    else:
        fields = [tensor[0] for tensor in fields]
    background = inputs.background
    if background is not None:
        background = background.to(inputs.means).expand(*cameras[0].shape[:-2], -1)
    arguments = [tensor.float().contiguous() for tensor in (*fields, *cameras)]
    colors, alphas, _ = rasterization(
        *arguments,
        inputs.width,
        inputs.height,
        near_plane=NEAR_PLANE,
        eps2d=EPS2D,
        packed=False,
        rasterize_mode="classic",
        channel_chunk=CHANNELS_PER_PASS,
        backgrounds=None if background is None else background.float().contiguous(),
    )
    image = (size, inputs.height, inputs.width)
    return colors.reshape(*image, -1).to(inputs.means.dtype), alphas.reshape(*image, 1).to(inputs.means.dtype)


def is_available() -> bool:
    """Whether CUDA and a working gsplat are at hand."""
    if not torch.cuda.is_available():
        return False
    try:
        load_rasterization()
    except AvtoolError:
        return False
    return True
