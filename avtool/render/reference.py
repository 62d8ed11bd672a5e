"""The readable torch twin of the rasterizer: slow, exact, in any float type; the truth in tests.

It states gsplat's meaning (EWA splatting, Zwicker et al. 2002; Kerbl et al. 2023) with dense tensors: every pixel
looks at every visible Gaussian in depth order. The fast backends must agree with it, forward and backward.

Shape legend: N Gaussians (M of them visible), C channels, P pixels, H x W image. Frames: world metres -> camera
(OpenCV, x right, y down, z forward) -> pixels with centres at +0.5.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

EPS2D = 0.3
"""Variance in px^2 added to every projected Gaussian: an anti-aliasing floor (gsplat eps2d, "classic" mode)."""
NEAR_PLANE = 0.01
"""Metres; centres nearer than this are culled."""
FRUSTUM_MARGIN = 0.3
"""The Jacobian is evaluated at most this share of tan(fov/2) outside the image (1.3 x the field of view)."""
ALPHA_THRESHOLD = 1.0 / 255.0
"""Contributions below one 8-bit step are skipped."""
ALPHA_CAP = 0.999
"""Highest alpha of one Gaussian at one pixel: keeps 1 - alpha away from zero in the backward pass."""
TRANSMITTANCE_CUT = 1e-4
"""The first Gaussian that would take the transmittance to this or below ends the pixel and is itself dropped."""

_MAX_PAIRS = 1 << 24
"""Pixel x Gaussian pairs evaluated at once; bounds the memory of one band of rows."""


@dataclass(frozen=True)
class Projection:
    """Gaussians in the image: means2d (N, 2) px, depths (N,) m, conics (N, 3) (xx, xy, yy of the inverse covariance),
    radii (N, 2) px (half extents of the visible ellipse), visible (N,) bool."""

    means2d: Tensor
    depths: Tensor
    conics: Tensor
    radii: Tensor
    visible: Tensor

    def __getitem__(self, points: Tensor) -> Projection:
        """Pick Gaussians by index (M,)."""
        return Projection(*(getattr(self, field.name)[points] for field in fields(self)))


def quats_to_matrices(quats: Tensor) -> Tensor:
    """(N, 4) wxyz of any length -> (N, 3, 3)."""
    w, x, y, z = functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, -1).reshape(*quats.shape[:-1], 3, 3)


def projection_jacobian(points: Tensor, K: Tensor, width: int, height: int) -> Tensor:
    """Derivative of the pinhole projection at camera points (N, 3) -> (N, 2, 3), with gsplat's clamp.

    Far outside the image the linearization degenerates, so it is evaluated at the border of a slightly wider
    frustum; the clamped direction, not the depth, is what is held (gsplat persp_proj).
    """
    x, y, z = points.unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = FRUSTUM_MARGIN * 0.5 * width / fx, FRUSTUM_MARGIN * 0.5 * height / fy
    x = z * torch.clamp(x / z, -(cx / fx + margin_x), (width - cx) / fx + margin_x)
    y = z * torch.clamp(y / z, -(cy / fy + margin_y), (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    rows = [fx / z, zero, -fx * x / z**2, zero, fy / z, -fy * y / z**2]
    return torch.stack(rows, -1).reshape(-1, 2, 3)


def project_gaussians(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, viewmat: Tensor, K: Tensor, width: int, height: int
) -> Projection:
    """EWA projection of N Gaussians into one camera; rows that are not visible hold harmless numbers.

    Args: means (N, 3) m, quats (N, 4) wxyz, scales (N, 3) m, opacities (N,), viewmat (4, 4), K (3, 3).
    """
    rotation = viewmat[:3, :3]
    points = means @ rotation.T + viewmat[:3, 3]
    in_front = (points[:, 2] >= NEAR_PLANE) & (opacities >= ALPHA_THRESHOLD)
    # Replace what is culled before dividing: a where() after the division would still give NaN gradients.
    points = torch.where(in_front[:, None], points, points.new_tensor([0.0, 0.0, 1.0]))
    factor = projection_jacobian(points, K, width, height) @ rotation @ quats_to_matrices(quats) * scales[:, None, :]
    covars = factor @ factor.transpose(-1, -2) + EPS2D * torch.eye(2, dtype=means.dtype, device=means.device)
    xx, xy, yy = covars[:, 0, 0], covars[:, 0, 1], covars[:, 1, 1]
    determinant = xx * yy - xy * xy
    invertible = determinant > 0
    determinant = torch.where(invertible, determinant, torch.ones_like(determinant))
    conics = torch.stack([yy, -xy, xx], -1) / determinant[:, None]
    depths = points[:, 2]
    means2d = points[:, :2] / depths[:, None] * torch.stack([K[0, 0], K[1, 1]]) + K[:2, 2]
    extent = torch.sqrt(2 * torch.log((opacities.detach() / ALPHA_THRESHOLD).clamp_min(1)))
    radii = torch.ceil(extent[:, None] * torch.stack([xx, yy], -1).detach().clamp_min(0).sqrt())
    size = means2d.new_tensor([width, height])
    on_image = ((means2d + radii > 0) & (means2d - radii < size)).all(-1)
    return Projection(means2d, depths, conics, radii, in_front & invertible & on_image)


def _composite(projection: Projection, opacities: Tensor, colors: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Front-to-back blending of depth-sorted Gaussians (M,) at pixel centres (P, 2) -> (P, C), (P,)."""
    offset = projection.means2d[:, None, :] - pixels[None, :, :]
    conic = projection.conics[:, None, :]
    sigma = 0.5 * (conic[..., 0] * offset[..., 0] ** 2 + conic[..., 2] * offset[..., 1] ** 2)
    sigma = sigma + conic[..., 1] * offset[..., 0] * offset[..., 1]
    alpha = (opacities[:, None] * torch.exp(-sigma)).clamp_max(ALPHA_CAP)
    alpha = torch.where((sigma >= 0) & (alpha >= ALPHA_THRESHOLD), alpha, torch.zeros_like(alpha))
    with torch.no_grad():
        alive = torch.cumprod(1 - alpha, 0) > TRANSMITTANCE_CUT
    alpha = torch.where(alive, alpha, torch.zeros_like(alpha))
    # One row more than Gaussians: the transmittance before each of them, and the final one.
    transmittance = torch.cat([alpha.new_ones(1, len(pixels)), torch.cumprod(1 - alpha, 0)])
    return (alpha * transmittance[:-1]).T @ colors, 1 - transmittance[-1]


def rasterize_reference(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmat: Tensor,
    K: Tensor,
    width: int,
    height: int,
) -> tuple[Tensor, Tensor]:
    """One image of N Gaussians: colors (H, W, C) over black and alphas (H, W, 1), differentiable in every input.

    Rows of pixels are worked through in bands so that memory stays bounded; a Gaussian that cannot reach a band's
    rows is left out of it, which changes nothing (its alpha there is below the threshold).
    """
    everything = project_gaussians(means, quats, scales, opacities, viewmat, K, width, height)
    order = torch.argsort(everything.depths.detach(), stable=True)
    order = order[everything.visible[order]]
    splats = everything[order]
    opacities, colors = opacities[order], colors[order]
    columns = torch.arange(width, dtype=means.dtype, device=means.device) + 0.5
    rows_per_band = max(1, min(height, _MAX_PAIRS // max(1, len(order) * width)))
    image, alphas = [], []
    for top in range(0, height, rows_per_band):
        bottom = min(height, top + rows_per_band)
        rows = torch.arange(top, bottom, dtype=means.dtype, device=means.device) + 0.5
        y, reach = splats.means2d[:, 1].detach(), splats.radii[:, 1]
        near = torch.nonzero((y + reach >= top) & (y - reach <= bottom)).squeeze(-1)
        shape = (bottom - top, width)
        pixels = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).reshape(-1, 2)
        band_colors, band_alphas = _composite(splats[near], opacities[near], colors[near], pixels)
        image.append(band_colors.reshape(*shape, colors.shape[-1]))
        alphas.append(band_alphas.reshape(*shape, 1))
    return torch.cat(image), torch.cat(alphas)
