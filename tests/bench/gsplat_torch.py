"""gsplat's torch reference on a CPU: the peer that the rasterizer is timed against.

gsplat (Apache License 2.0) carries a torch implementation of its own kernels, but as shipped it does not run on a CPU: the
list of pairs of pixels and Gaussians comes from a CUDA kernel, blending needs the package nerfacc, and tiles are filled by a
Python loop over all Gaussians, which takes seconds. Projection and the tiles' offsets below are gsplat's functions; the three
others are torch operations over all pairs at once, with the same results. So the peer is faster than what one could run.

Shape legend: N Gaussians, C channels, K intersections of Gaussians and tiles, M pairs of Gaussians and pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from avtool.gaussians import Gaussians

TILE = 16
ALPHA_THRESHOLD, ALPHA_CAP, TRANSMITTANCE_CUT = 1 / 255, 0.999, 1e-4


def gsplat_torch(gaussians: Gaussians, viewmat: Tensor, K: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Colors (H, W, C) and coverage (H, W, 1) of one camera, differentiable in everything."""
    from gsplat.cuda import _torch_impl as impl

    covars, _ = impl._quat_scale_to_covar_preci(gaussians.quats, gaussians.scales, True, False)
    radii, means, depths, conics, _ = impl._fully_fused_projection(
        gaussians.means, covars, viewmat[None], K[None], width, height
    )
    tiles = ((width + TILE - 1) // TILE, (height + TILE - 1) // TILE)
    tile_of, gaussian_of = intersect_tiles(means[0].detach(), radii[0], depths[0].detach(), *tiles)
    with torch.no_grad():
        # gsplat wants ids of 64 bits: tile above, depth below.
        offsets = impl._isect_offset_encode(tile_of.to(torch.int64) << 32, 1, *tiles).flatten()
    ends = torch.cat((offsets[1:], offsets.new_tensor([len(gaussian_of)])))
    shown, pixels = visible_pairs(
        means[0].detach(), conics[0].detach(), gaussians.opacities.detach(), offsets, ends, gaussian_of, width, height
    )
    return blend(means[0], conics[0], gaussians.opacities, gaussians.colors, shown, pixels, width, height)


@torch.no_grad()
def intersect_tiles(means: Tensor, radii: Tensor, depths: Tensor, columns: int, rows: int) -> tuple[Tensor, Tensor]:
    """Tile and Gaussian of every intersection (K,), sorted by tile and then by depth; as gsplat's _isect_tiles."""
    limit = torch.tensor([columns, rows])
    low = torch.floor((means - radii) / TILE).long().clamp(min=0).minimum(limit)
    high = torch.ceil((means + radii) / TILE).long().clamp(min=0).minimum(limit)
    extent = torch.where((radii > 0).all(-1, keepdim=True), high - low, 0)
    counts = extent.prod(-1)
    gaussian = torch.repeat_interleave(torch.arange(len(means)), counts)
    within = torch.arange(len(gaussian)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    x = low[gaussian, 0] + within % extent[gaussian, 0]
    y = low[gaussian, 1] + within // extent[gaussian, 0]
    tile = y * columns + x
    # Positive floats sort as their bits do.
    order = ((tile << 32) | depths.contiguous().view(torch.int32).long()[gaussian]).argsort()
    return tile[order], gaussian[order]


@torch.no_grad()
def visible_pairs(
    means: Tensor, conics: Tensor, opacities: Tensor, starts: Tensor, ends: Tensor, gaussian_of: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor]:
    """Gaussian and pixel of every pair that counts (M,), pixel by pixel of a tile, front to back; gsplat's CUDA kernel.

    A pair counts when its alpha reaches the threshold and the transmittance after it does not fall to the cut.
    """
    columns = (width + TILE - 1) // TILE
    local = torch.arange(TILE * TILE)
    chosen, pixels = [], []
    for tile, (start, end) in enumerate(zip(starts.tolist(), ends.tolist())):
        if start == end:
            continue
        index = gaussian_of[start:end]
        x, y = tile % columns * TILE + local % TILE, tile // columns * TILE + local // TILE
        alpha = pair_alphas(means[index][None], conics[index][None], opacities[index][None], x[:, None], y[:, None])
        alpha = torch.where(alpha >= ALPHA_THRESHOLD, alpha, 0)
        alive = (1 - alpha).cumprod(1) > TRANSMITTANCE_CUT
        inside = (x < width) & (y < height)
        pixel, rank = torch.nonzero((alpha > 0) & alive & inside[:, None], as_tuple=True)
        chosen.append(index[rank])
        pixels.append((y * width + x)[pixel])
    empty = torch.zeros(0, dtype=torch.int64)
    return torch.cat([empty, *chosen]), torch.cat([empty, *pixels])


def pair_alphas(means: Tensor, conics: Tensor, opacities: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Alpha of Gaussians at pixel centers, broadcast; 0 where the exponent is positive."""
    dx, dy = x + 0.5 - means[..., 0], y + 0.5 - means[..., 1]
    sigma = 0.5 * (conics[..., 0] * dx * dx + conics[..., 2] * dy * dy) + conics[..., 1] * dx * dy
    return torch.where(sigma >= 0, (opacities * (-sigma).exp()).clamp_max(ALPHA_CAP), 0)


def blend(
    means: Tensor, conics: Tensor, opacities: Tensor, colors: Tensor, shown: Tensor, pixels: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor]:
    """gsplat's `accumulate` on sorted pairs, with nerfacc's products along rays as sums of logarithms."""
    alpha = pair_alphas(means[shown], conics[shown], opacities[shown], pixels % width, pixels // width)
    through = torch.log1p(-alpha).double()
    before = through.cumsum(0) - through
    first = torch.ones_like(pixels, dtype=torch.bool)
    first[1:] = pixels[1:] != pixels[:-1]
    ray = first.cumsum(0) - 1
    transmittance = (before - before[first][ray]).float().exp()
    weight = (alpha * transmittance)[:, None]
    image = colors.new_zeros(height * width, colors.shape[-1]).index_add(0, pixels, weight * colors[shown])
    coverage = colors.new_zeros(height * width, 1).index_add(0, pixels, weight)
    return image.view(height, width, -1), coverage.view(height, width, 1)
