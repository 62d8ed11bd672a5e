"""The losses of a portrait: pictures of both resolutions, coverage, a perceptual distance, identity and a discriminator.

Portrait4D-v2, arXiv 2403.13570, section 3.4. A term with weight 0 is not computed and its network is not loaded.

Shape legend: B samples, S x S pixels of the whole picture, s x s of the volume-rendered one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from avtool.losses import load_lpips, ssim_map
from avtool.prior.objective import pseudo_distance
from avtool.stlpips import load_st_lpips

if TYPE_CHECKING:
    from avtool.portrait.network import PortraitPicture

Perceptual = Callable[[Tensor, Tensor], Tensor]
PERCEPTUAL = ("ssim", "lpips", "st-lpips")


@dataclass(frozen=True)
class PortraitWeights:
    """Weights of the terms; the two that need a file of the user are 0 until it is there, as is the discriminator."""

    l1: float = 1.0
    low: float = 0.5  # L1 of the volume-rendered picture, which carries the geometry
    mask: float = 0.5
    perceptual: float = 0.5
    identity: float = 0.0  # needs a recognizer
    adversarial: float = 0.0


def load_perceptual(name: str, weight: float, device: torch.device, weights_file: str = "") -> Perceptual | None:
    """A distance of pictures (B, S, S, 3) in [0, 1], one of PERCEPTUAL; None without a weight."""
    if weight == 0:
        return None
    if name == "ssim":
        return structural
    return load_lpips(device) if name == "lpips" else load_st_lpips(device, weights_file)


def structural(a: Tensor, b: Tensor) -> Tensor:
    """1 - SSIM, the mean of the picture and of the picture at half the size: needs no file, and sees structure, not color.

    Pictures whose half is smaller than SSIM's window are compared at their own size only.
    """
    distances = [(1 - ssim_map(a, b)).mean()]
    if a.shape[1] >= 24:
        distances.append((1 - ssim_map(*(at_size(x, a.shape[1] // 2) for x in (a, b)))).mean())
    return torch.stack(distances).mean()


def at_size(images: Tensor, side: int) -> Tensor:
    """Pictures (B, S, S, C) at another size: means of pixels where it divides, as the volume renderer's rays see them."""
    planes = images.movedim(-1, 1)
    if images.shape[1] % side == 0:
        return F.avg_pool2d(planes, images.shape[1] // side).movedim(1, -1)
    return F.interpolate(planes, (side, side), mode="bilinear", align_corners=False, antialias=True).movedim(1, -1)


def on_color(image: Tensor, alpha: Tensor, color: Tensor | float) -> Tensor:
    """A premultiplied picture over a color (B, 1, 1, 3), or a gray."""
    return image + (1 - alpha) * color


@dataclass(frozen=True)
class Target:
    """What a picture should be: image (B, S, S, 3) on color (B, 1, 1, 3), matte (B, S, S, 1); pseudo (B,) bool."""

    image: Tensor
    matte: Tensor
    color: Tensor
    pseudo: Tensor


def portrait_terms(
    picture: PortraitPicture, target: Target, weights: PortraitWeights, perceptual: Perceptual | None
) -> dict[str, Tensor]:
    """Weighted terms of a batch: real targets get all of them, pseudo targets the perceptual one on their foreground.

    Sums over the samples are divided by the size of the batch, so that a batch is the mean of its halves.
    """
    shown = on_color(picture.image, picture.alpha, target.color)
    count, parts = len(shown), {}
    real = (~target.pseudo).nonzero()[:, 0]
    made = target.pseudo.nonzero()[:, 0]
    share = len(real) / count
    zero = shown.sum() * 0  # keeps every parameter in the graph, as several processes need it
    if weights.l1 > 0:
        parts["l1"] = weights.l1 * share * _mean((shown - target.image).abs()[real], zero)
    if weights.low > 0:
        side = picture.low.shape[1]
        low, wanted = on_color(picture.low, picture.low_alpha, target.color), at_size(target.image, side)
        parts["low"] = weights.low * share * _mean((low - wanted).abs()[real], zero)
    if weights.mask > 0:
        side = picture.low_alpha.shape[1]
        whole = (picture.alpha - target.matte).abs()[real]
        small = (picture.low_alpha - at_size(target.matte, side)).abs()[real]
        parts["mask"] = weights.mask * share * 0.5 * (_mean(whole, zero) + _mean(small, zero))
    if perceptual is not None:
        term = zero
        if len(real):
            term = term + share * perceptual(shown[real].clamp(0, 1), target.image[real])
        if len(made):
            term = term + (1 - share) * pseudo_distance(shown[made], target.image[made], target.matte[made], perceptual)
        parts["perceptual"] = weights.perceptual * term
    return parts


def _mean(values: Tensor, zero: Tensor) -> Tensor:
    """The mean, or zero of nothing."""
    return values.mean() if values.numel() else zero
