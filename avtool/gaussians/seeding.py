"""Where the Gaussians sit: one at every texel center of the head's UV atlas that lies in a triangle (HeadGAP 3.1).

Shape legend: N points, F triangles, T UV coordinates. UV in [0, 1], lengths in metres.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from avtool.head import HeadModel, triangle_frames

UV_SIZES = {"test": 64, "default": 128, "large": 256, "paper": 300}
"""Presets by UV size: a smoke test, laptops, a GPU, and the 300 x 300 of the paper."""

MIN_REGION_POINTS = 12
"""Islands too small for the texel grid (an eyeball at UV size 64) get at least this many points."""


@dataclass(frozen=True)
class PointBinding:
    """N points bound to triangles, sorted by part.

    Attributes:
        face_idx: (N,) int64, the parent triangle.
        barycentrics: (N, 3), sum to one.
        part: (N,) int64 into ``head.PARTS``, ascending.
        uv: (N, 2) place in the atlas.
        spacing: (N,) distance to the neighboring point on the mean head, in units of the triangle's frame scale: a
            good initial local scale.
        uv_size: side of the texel grid the points were drawn from.
    """

    face_idx: Tensor
    barycentrics: Tensor
    part: Tensor
    uv: Tensor
    spacing: Tensor
    uv_size: int

    @property
    def num_points(self) -> int:
        """N."""
        return len(self.face_idx)

    def part_sizes(self, num_parts: int) -> list[int]:
        """Number of points of each part, in the order of the parts (they are contiguous)."""
        return torch.bincount(self.part, minlength=num_parts).tolist()

    def to(self, device: torch.device | str) -> PointBinding:
        """Move every tensor."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return PointBinding(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()})


def seed_points(head: HeadModel, uv_size: int) -> PointBinding:
    """Bind a point to every texel center of a ``uv_size`` grid that a triangle of the atlas covers.

    A texel on the edge of two triangles goes to the first. Regions that the grid misses or barely meets (small
    islands) are filled up with the centers of their largest triangles, so every part and region has points.
    """
    if uv_size < 1:
        raise ValueError(f"uv_size must be at least 1, found {uv_size}")
    corners = head.uv[head.uv_faces].double()
    face_idx, barycentrics, uv = _covered_texels(corners, uv_size)
    template, faces = head.template.double(), head.faces
    face_area = _areas(template[faces])
    uv_area = _areas(torch.nn.functional.pad(corners, (0, 1)))
    spacing = torch.sqrt(face_area[face_idx] / uv_area[face_idx].clamp_min(1e-12)) / uv_size

    extra = _missing_faces(head.face_region, face_idx, face_area)
    face_idx = torch.cat([face_idx, extra])
    barycentrics = torch.cat([barycentrics, torch.full((len(extra), 3), 1 / 3, dtype=torch.float64)])
    uv = torch.cat([uv, corners[extra].mean(1)])
    spacing = torch.cat([spacing, face_area[extra].sqrt()])

    part = head.face_part[face_idx]
    spacing = _without_outliers(spacing, part)
    order = torch.argsort(part, stable=True)
    frame_scale = triangle_frames(template, faces).scales[face_idx]
    return PointBinding(
        face_idx=face_idx[order],
        barycentrics=barycentrics[order].float(),
        part=part[order],
        uv=uv[order].float(),
        spacing=(spacing / frame_scale)[order].float(),
        uv_size=uv_size,
    )


def _without_outliers(spacing: Tensor, part: Tensor) -> Tensor:
    """Spacing at most three times its part's median: slivers of the atlas would stretch over everything around."""
    limited = spacing.clone()
    for one in torch.unique(part).tolist():
        of_part = part == one
        limited[of_part] = spacing[of_part].clamp_max(3 * spacing[of_part].median())
    return limited


def _areas(corners: Tensor) -> Tensor:
    """(F, 3, 3) -> (F,)."""
    return 0.5 * torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1)


def _covered_texels(corners: Tensor, uv_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Texel centers inside UV triangles (F, 3, 2) -> face (N,), barycentrics (N, 3), uv (N, 2), in raster order.

    Every triangle lists the texels of its bounding box; those inside stay, the first face of each texel wins.
    """
    grid = corners * uv_size - 0.5
    low = grid.amin(1).ceil().long().clamp(0, uv_size)
    high = grid.amax(1).floor().long().clamp(-1, uv_size - 1)
    size = (high - low + 1).clamp_min(0)
    counts = size[:, 0] * size[:, 1]
    face = torch.repeat_interleave(torch.arange(len(corners)), counts)
    first = torch.cumsum(counts, 0) - counts
    within = torch.arange(len(face)) - first[face]
    column = low[face, 0] + within % size[face, 0].clamp_min(1)
    row = low[face, 1] + torch.div(within, size[face, 0].clamp_min(1), rounding_mode="floor")
    barycentrics = _barycentrics(torch.stack([column, row], -1).double(), grid[face])
    inside = (barycentrics >= 0).all(-1)
    face, barycentrics = face[inside], barycentrics[inside]
    texel = row[inside] * uv_size + column[inside]
    order = torch.argsort(texel, stable=True)
    keep = torch.ones(len(order), dtype=torch.bool)
    keep[1:] = texel[order][1:] != texel[order][:-1]
    order = order[keep]
    texel = texel[order]
    uv = torch.stack([texel % uv_size, torch.div(texel, uv_size, rounding_mode="floor")], -1)
    return face[order], barycentrics[order], (uv.double() + 0.5) / uv_size


def _barycentrics(points: Tensor, corners: Tensor) -> Tensor:
    """Of points (N, 2) in triangles (N, 3, 2); NaN (so never inside) for triangles without area."""
    a, b, c = corners.unbind(1)
    area = _cross(b - a, c - a)
    second, third = _cross(points - a, c - a) / area, _cross(b - a, points - a) / area
    return torch.stack([1 - second - third, second, third], -1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """Planar cross product of (N, 2) and (N, 2)."""
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _missing_faces(face_region: Tensor, seeded: Tensor, face_area: Tensor) -> Tensor:
    """Faces to add a point to, so that every region has MIN_REGION_POINTS of them or one in each triangle."""
    have = torch.bincount(face_region[seeded], minlength=int(face_region.max()) + 1)
    taken = torch.zeros(len(face_region), dtype=torch.bool)
    taken[seeded] = True
    extra = []
    for region in torch.unique(face_region).tolist():
        free = torch.nonzero((face_region == region) & ~taken).squeeze(-1)
        wanted = max(0, MIN_REGION_POINTS - int(have[region]))
        largest = torch.argsort(face_area[free], descending=True, stable=True)
        extra.append(free[largest[:wanted]])
    return torch.cat(extra)
