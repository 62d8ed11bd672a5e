"""Functional losses: what a picture, a Gaussian or an offset field is judged by.

Everything here is a pure function of tensors, differentiable, and works on any device.

Shape legend: images (..., H, W, C) in [0, 1]; masks (..., H, W, 1) in [0, 1]; V vertices, E edges.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avtool import jit
from avtool.cpu_ssim import SsimMap
from avtool.errors import Unavailable, first_line
from avtool.head.mesh import take_rows

__all__ = [
    "Arap", "l1", "load_lpips", "lpips_network", "mse_to_psnr", "ssim", "ssim_map", "ssim_map_torch", "structure_distance",
    "threshold_l2",
]  # fmt: skip

# Wang et al. 2004: an 11 x 11 Gaussian of sigma 1.5 and the two stabilizers for a dynamic range of 1.
SSIM_WINDOW, SSIM_SIGMA, SSIM_C1, SSIM_C2 = 11, 1.5, 0.01**2, 0.03**2
CONTRAST = 0.2
"""Deviation of the gray values of a head in usual light: what structure_distance() brings every picture to."""
MIN_CONTRAST = 0.05  # of a picture that is almost one color: noise is not to be blown up to structure
STRUCTURE_SCALES = 3


def _weighted_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of values (..., H, W, C), weighted by a mask (..., H, W, 1) when there is one."""
    if mask is None:
        return values.mean()
    weight = mask.expand_as(values)
    return (values * weight).sum() / weight.sum().clamp_min(1.0)


def l1(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference of two images (..., H, W, C); with a mask, over the masked pixels only."""
    return _weighted_mean((a - b).abs(), mask)


@lru_cache(maxsize=4)
def _window(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The window along one axis (11,), summing to one."""
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    return (window / window.sum()).to(device, dtype)


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity per pixel of two images (..., H, W, C): (..., H - 10, W - 10, C) (Wang et al. 2004)."""
    if min(a.shape[-3:-1]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of at least {SSIM_WINDOW} pixels a side, got {tuple(a.shape)}")
    plain = all(image.device.type == "cpu" and image.dtype == torch.float32 for image in (a, b))
    if not plain or b.requires_grad or a.shape != b.shape:
        return ssim_map_torch(a, b)
    jit.choose_threading_layer()
    window = _window(a.dtype, a.device)
    found = SsimMap.apply(a.reshape(-1, *a.shape[-3:]), b.reshape(-1, *b.shape[-3:]), window, SSIM_C1, SSIM_C2)
    return found.reshape(*a.shape[:-3], *found.shape[-3:])


def ssim_map_torch(a: Tensor, b: Tensor) -> Tensor:
    """ssim_map said readably, for any device and float type, and for gradients of both images."""
    mean_x, mean_y, var_x, var_y, cov = _window_moments(*torch.broadcast_tensors(a.movedim(-1, -3), b.movedim(-1, -3)))
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * cov + SSIM_C2) / (var_x + var_y + SSIM_C2)
    return (luminance * structure).movedim(-3, -1)


def _window_moments(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Means, variances and covariance (..., C, H - 10, W - 10) of two images (..., C, H, W) under the window."""
    window = _window(x.dtype, x.device)

    def blur(images: Tensor) -> Tensor:
        planes = images.reshape(-1, 1, *images.shape[-2:])
        planes = F.conv2d(F.conv2d(planes, window[None, None, None]), window[None, None, :, None])
        return planes.reshape(*images.shape[:-2], *planes.shape[-2:])

    mean_x, mean_y, xx, yy, xy = blur(torch.stack((x, y, x * x, y * y, x * y)))
    return mean_x, mean_y, xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y


def ssim(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean structural similarity of two images (..., H, W, C); a mask (..., H, W, 1) weighs the window centers."""
    border = SSIM_WINDOW // 2
    inner = None if mask is None else mask[..., border:-border, border:-border, :]
    return _weighted_mean(ssim_map(a, b), inner)


def structure_distance(image: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """How differently two images (B, H, W, C) are drawn where a mask (B, H, W, 1) is 1: mean over B, from 0 to about 1.

    The contrast-structure part of SSIM on gray values at up to three scales, as in MS-SSIM (Wang, Simoncelli and Bovik 2003), but
    without its luminance part and with both pictures brought to the same brightness and contrast inside the mask. A tint, an
    exposure or another light on the whole of a picture is no difference; a nose, a lid or an outline at another place is.
    """
    x, y = (_leveled(picture, mask).movedim(-1, -3) for picture in (image, target))
    inside, distances, border = mask.movedim(-1, -3), [], SSIM_WINDOW // 2
    for _ in range(STRUCTURE_SCALES):
        _, _, var_x, var_y, cov = _window_moments(x, y)
        difference = 1 - (2 * cov + SSIM_C2) / (var_x + var_y + SSIM_C2)
        weight = inside[..., border:-border, border:-border]
        sums = (difference * weight).sum((-3, -2, -1)), weight.sum((-3, -2, -1))
        distances.append((sums[0] / sums[1].clamp_min(1.0)).mean())
        if min(x.shape[-2:]) < 2 * (SSIM_WINDOW + 1):
            break
        x, y, inside = (F.avg_pool2d(plane, 2) for plane in (x, y, inside))
    return torch.stack(distances).mean()


def _leveled(images: Tensor, mask: Tensor) -> Tensor:
    """Gray values (..., H, W, 1) with mean 0 and deviation CONTRAST inside a mask, and 0 outside."""
    gray, area = images.mean(-1, keepdim=True), mask.sum((-3, -2, -1), keepdim=True).clamp_min(1.0)
    centered = (gray - (gray * mask).sum((-3, -2, -1), keepdim=True) / area) * mask
    variance = centered.square().sum((-3, -2, -1), keepdim=True) / area
    return centered * (CONTRAST / variance.clamp_min(MIN_CONTRAST**2).sqrt())


def mse_to_psnr(mse: Tensor | float) -> float:
    """Peak signal-to-noise ratio in dB for images in [0, 1]."""
    return float(-10 * torch.log10(torch.as_tensor(mse).clamp_min(1e-10)))


def threshold_l2(values: Tensor, threshold: float) -> Tensor:
    """Mean length of what exceeds a threshold: values (..., D), per row |relu(values - threshold)|_2.

    The max() regularizers of HeadGAP eq. 7, in the form GaussianAvatars uses: below the threshold nothing is pulled.
    """
    excess = F.relu(values - threshold)
    # Not .norm(): its gradient at exactly zero, where nearly all rows are, is NaN on some back ends.
    return (excess.square().sum(-1) + 1e-12).sqrt().mean()


def _inverse_3x3(matrices: Tensor) -> Tensor:
    """Inverses (..., 3, 3) by cofactors: LAPACK takes a second for a head's worth of tiny systems."""
    a, b, c = matrices.unbind(-2)
    cofactors = torch.stack((torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)), dim=-1)
    return cofactors / (a * cofactors[..., 0]).sum(-1)[..., None, None]


class Arap:
    """As-rigid-as-possible energy of offsets of a template (V, 3) with edges (E, 2).

    Sorkine and Alexa 2007 with the local rotation linearized, R = I + [w]x: w then has a closed form whose matrix
    depends on the template alone, so no SVD is needed, and flat neighborhoods stay well conditioned. Good for offsets
    that are small against the head (rotations under about 20 degrees). The energy is divided by the mean squared edge
    length, so it has no unit. What depends on the template is computed once.
    """

    def __init__(self, template: Tensor, edges: Tensor) -> None:
        ends = torch.cat((edges, edges.flip(1)))
        self.center, self.other = ends[:, 0].contiguous(), ends[:, 1].contiguous()
        self.edge = template[self.other] - template[self.center]
        eye = torch.eye(3, dtype=template.dtype, device=template.device)
        square = self.edge.square().sum(-1)
        moment = square[:, None, None] * eye - self.edge[:, :, None] * self.edge[:, None, :]
        normal = torch.zeros(len(template), 3, 3, dtype=template.dtype, device=template.device)
        self.scale = square.mean()
        # The small ridge keeps vertices with collinear or no neighbors solvable.
        self.inverse = _inverse_3x3(normal.index_add(0, self.center, moment) + 1e-3 * self.scale * eye)

    def __call__(self, offsets: Tensor) -> Tensor:
        """Energy of offsets (..., V, 3)."""
        change = take_rows(offsets, self.other) - take_rows(offsets, self.center)
        edge = self.edge.expand_as(change)
        torques = torch.zeros_like(offsets).index_add(-2, self.center, torch.linalg.cross(edge, change, dim=-1))
        spin = (self.inverse * torques[..., None, :]).sum(-1)
        rest = change - torch.linalg.cross(take_rows(spin, self.center), edge, dim=-1)
        return rest.square().sum(-1).mean() / self.scale


def lpips_network(backbone: str, device: torch.device | str) -> torch.nn.Module:
    """The network of LPIPS (Zhang et al. 2018): images (B, 3, H, W) in [-1, 1] -> (B, 1, 1, 1).

    The backbone's ImageNet weights are not part of any package, and nothing is downloaded behind the user's back: they are used
    when torchvision's file already lies in torch.hub's folder, and `Unavailable` names it otherwise.
    """
    files = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}
    if backbone not in files:
        raise ValueError(f"unknown LPIPS backbone '{backbone}': expected one of {', '.join(files)}")
    weights = Path(torch.hub.get_dir()) / "checkpoints" / files[backbone]
    if not weights.is_file():
        raise Unavailable(f"LPIPS' {backbone} backbone is not here (no {weights.name} in torch.hub's checkpoints folder)")
    try:
        import lpips
    except (ImportError, OSError, RuntimeError) as error:  # a torchvision that does not match torch raises RuntimeError
        raise Unavailable(f"lpips cannot be imported ({first_line(error)})") from error
    try:
        return lpips.LPIPS(net=backbone, verbose=False).to(device).eval().requires_grad_(False)
    except Exception as error:  # a damaged torch file fails in ways that have no common type
        raise Unavailable(f"LPIPS' {backbone} backbone cannot be loaded ({first_line(error)})") from error


def load_lpips(device: torch.device | str) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS (VGG) as a loss: two images (B, H, W, 3) in [0, 1] -> mean distance; loaded only when it is asked for."""
    try:
        network = lpips_network("vgg", device)
    except Unavailable as reason:
        hint = "train without it (weight lpips: 0), with st-lpips in its place, or put the VGG16 weights into torch.hub's cache"
        raise Unavailable(f"the LPIPS loss cannot be computed: {reason.message}", hint) from reason

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return network(a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2), normalize=True).mean()

    return distance
