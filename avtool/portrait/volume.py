"""Volume rendering of a field inside a box: rays, stratified and importance samples, front-to-back compositing.

Shape legend: B pictures, R rays, S samples a ray, F features. Distances along a ray are depths along the camera's view
axis, meters, so that the expected distance is a depth map; a ray's direction is therefore not of unit length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Points (B, N, 3) -> density per meter (B, N), features (B, F, N).
Field = Callable[[Tensor], tuple[Tensor, Tensor]]

_NEAREST = 0.01  # meters before the camera: nothing is drawn closer


@dataclass(frozen=True)
class Rays:
    """Rays from a camera: origins (B, 1, 3), directions (B, R, 3) with a depth of 1, near and far (B, R) depths.

    A ray with near == far misses the box.
    """

    origins: Tensor
    directions: Tensor
    near: Tensor
    far: Tensor

    def take(self, idx: Tensor) -> Rays:
        """The rays of idx (B, R')."""
        directions = self.directions.gather(1, idx[..., None].expand(-1, -1, 3))
        return Rays(self.origins, directions, self.near.gather(1, idx), self.far.gather(1, idx))


@dataclass(frozen=True)
class Rendered:
    """What rays met: features (B, F, R) premultiplied by alpha, alpha (B, R), depth (B, R) expected, 0 where alpha is."""

    features: Tensor
    alpha: Tensor
    depth: Tensor


def pixel_rays(viewmats: Tensor, Ks: Tensor, size: int, low: int, center: Tensor, half: Tensor) -> Rays:
    """Rays through the pixel centers of a low x low picture, rows first, cut to a box.

    Args:
        viewmats: (B, 4, 4). Ks: (B, 3, 3) in pixels of the full picture, size x size.
        center, half: (3,) or (B, 1, 3) of the box in world space, meters.
    """
    pixel = (torch.arange(low, device=Ks.device, dtype=Ks.dtype) + 0.5) * (size / low)
    v, u = torch.meshgrid(pixel, pixel, indexing="ij")
    plane = torch.stack((u, v, torch.ones_like(u)), dim=-1).reshape(-1, 3)
    rotation = viewmats[:, :3, :3]
    directions = plane @ torch.linalg.inv(Ks).mT @ rotation  # rows: R^T K^-1 (u, v, 1), of depth 1
    origins = -(viewmats[:, None, :3, 3] @ rotation)
    near, far = box_crossing(origins, directions, center, half)
    return Rays(origins, directions, near, far)


def box_crossing(origins: Tensor, directions: Tensor, center: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave an axis-aligned box: near, far (B, R), equal where they miss it."""
    safe = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    a, b = ((center + sign * half - origins) / safe for sign in (-1, 1))
    near = torch.minimum(a, b).amax(-1).clamp_min(_NEAREST)
    far = torch.maximum(a, b).amin(-1)
    return near, torch.maximum(near, far)


def render_rays(field: Field, rays: Rays, coarse: int, fine: int, generator: torch.Generator | None = None) -> Rendered:
    """Integrates a field along rays: `coarse` stratified samples, then `fine` ones where those found something.

    With a generator the samples are jittered; without one they lie at the middle of their strata, and the same input
    gives the same picture. Rays that miss the box cost nothing: each picture's hits are packed together.
    """
    hit = rays.far > rays.near
    count = max(1, int(hit.sum(1).max())) if hit.numel() else 1
    if count >= hit.shape[1]:
        return _render_hits(field, rays, coarse, fine, generator)
    # Stable: the same hits in the same order on every run.
    idx = hit.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
    found = _render_hits(field, rays.take(idx), coarse, fine, generator)
    shape = hit.shape
    features = found.features.new_zeros(shape[0], found.features.shape[1], shape[1])
    features = features.scatter(2, idx[:, None].expand(-1, features.shape[1], -1), found.features)
    zeros = found.alpha.new_zeros(shape)
    return Rendered(features, zeros.scatter(1, idx, found.alpha), zeros.scatter(1, idx, found.depth))


def _render_hits(field: Field, rays: Rays, coarse: int, fine: int, generator: torch.Generator | None) -> Rendered:
    depths = _stratified(rays, coarse, generator)
    density, features = _evaluate(field, rays, depths)
    if fine:
        with torch.no_grad():
            weights, _ = integration_weights(density, depths, rays)
            more = importance_depths(weights, rays, fine, generator)
        density_fine, features_fine = _evaluate(field, rays, more)
        depths, density = torch.cat((depths, more), dim=-1), torch.cat((density, density_fine), dim=-1)
        features = torch.cat((features, features_fine), dim=-1)
        # Only depths and densities are sorted; the weights go back to the order of the features, which are many more.
        order = depths.argsort(dim=-1)
        back = order.argsort(dim=-1)
        sorted_weights, alpha = integration_weights(density.gather(-1, order), depths.gather(-1, order), rays)
        weights = sorted_weights.gather(-1, back)
    else:
        weights, alpha = integration_weights(density, depths, rays)
    depth = (weights * depths).sum(-1) / alpha.clamp_min(1e-6)
    return Rendered((weights[:, None] * features).sum(-1), alpha, depth)


def _evaluate(field: Field, rays: Rays, depths: Tensor) -> tuple[Tensor, Tensor]:
    """Density (B, R, S) and features (B, F, R, S) at depths (B, R, S)."""
    points = rays.origins[:, :, None] + rays.directions[:, :, None] * depths[..., None]
    density, features = field(points.flatten(1, 2))
    return density.unflatten(1, depths.shape[1:]), features.unflatten(2, depths.shape[1:])


def integration_weights(density: Tensor, depths: Tensor, rays: Rays) -> tuple[Tensor, Tensor]:
    """Weights (B, R, S) of samples in ascending depth, front to back, and their sum, alpha (B, R).

    A sample stands for the stretch up to the middle between it and its neighbors, the outer ones up to near and far.
    """
    middle = 0.5 * (depths[..., 1:] + depths[..., :-1])
    borders = torch.cat((rays.near[..., None], middle, rays.far[..., None]), dim=-1)
    lengths = borders.diff(dim=-1) * rays.directions.norm(dim=-1, keepdim=True)
    optical = (density * lengths).cumsum(-1)
    through = torch.exp(-optical)  # transmittance behind each sample
    before = torch.cat((torch.ones_like(through[..., :1]), through[..., :-1]), dim=-1)
    return before - through, 1 - through[..., -1]


def _stratified(rays: Rays, count: int, generator: torch.Generator | None) -> Tensor:
    """Depths (B, R, count): one in each of `count` equal strata between near and far."""
    position = _strata((*rays.near.shape, count), rays.near, generator)
    return rays.near[..., None] + (rays.far - rays.near)[..., None] * position


def importance_depths(weights: Tensor, rays: Rays, count: int, generator: torch.Generator | None) -> Tensor:
    """Depths (B, R, count), ascending, by the weights (B, R, S) of equal strata: the inverse of their distribution.

    The weights are spread to the neighboring strata first (mip-NeRF's blur): a surface may lie at a stratum's border.
    """
    padded = torch.cat((weights[..., :1], weights, weights[..., -1:]), dim=-1)
    larger = torch.maximum(padded[..., :-1], padded[..., 1:])
    blurred = 0.5 * (larger[..., :-1] + larger[..., 1:]) + 0.01 / weights.shape[-1]
    total = blurred.cumsum(-1)
    cdf = torch.cat((torch.zeros_like(total[..., :1]), total / total[..., -1:]), dim=-1)
    u = _strata((*weights.shape[:-1], count), weights, generator)
    upper = torch.searchsorted(cdf, u, right=True).clamp(1, weights.shape[-1])
    low, high = cdf.gather(-1, upper - 1), cdf.gather(-1, upper)
    position = (upper - 1 + ((u - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)) / weights.shape[-1]
    return rays.near[..., None] + (rays.far - rays.near)[..., None] * position


def _strata(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Ascending numbers in [0, 1] of `shape`, one in each of shape[-1] strata: its middle, or a random place in it."""
    start = torch.arange(shape[-1], device=like.device, dtype=like.dtype)
    if generator is None:
        return ((start + 0.5) / shape[-1]).expand(shape).contiguous()
    jitter = torch.rand(shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)
    return (start + jitter) / shape[-1]
