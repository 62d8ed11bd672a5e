"""The head as colored points for the photometric stage: which points, how they are shaded, and where skin is.

Shapes: B pictures, S side in pixels, N points, V vertices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..cameras import project
from ..gaussians import Gaussians
from ..gaussians.rig import point_frames
from ..gaussians.seeding import PointBinding, seed_points
from ..head import PARTS, HeadModel, HeadParams

SKIN_PARTS = ("forehead", "nose", "ear", "neck", "face")
FACE_PARTS = ("nose", "face")
"""Where a picture's own skin color is read: hair seldom covers these."""
SKIPPED_REGIONS = ("lash_l", "lash_r", "mouth", "tongue", "teeth_up", "teeth_lo")
POINT_SCALE = 0.7
"""Standard deviation of a point over the distance to its neighbor: closed, and not blurred beyond need."""
THICKNESS = 0.15
OPACITY = 0.95
NORMAL_AXIS = 1
"""Column of a triangle frame that is its normal (GaussianAvatars' order: edge, normal, their cross product)."""
SH_BANDS = (1.0, 0.9, 0.9, 0.9, 0.6, 0.6, 0.4, 0.6, 0.4)
"""Constant, linear and quadratic terms, quadratic ones damped as the clamped cosine damps them."""
SKIN_SPREAD = (0.5, 0.08)
"""How far skin may lie from a picture's own skin: in log luminance (shadows), and in chromaticity."""


class Shape(NamedTuple):
    """What the points look like, apart from where they are: quats (B, N, 4), scales (B, N, 3), normals (B, N, 3), all in
    world space."""

    quats: Tensor
    scales: Tensor
    normals: Tensor


@dataclass(frozen=True)
class Surface:
    """The head's visible surface as points.

    Attributes:
        head: the head model. points: the same with the N points in place of its vertices, for gradients at little cost.
        faces: (N, 3) vertices of each point's triangle. binding: the points, bound to those triangles.
        kind: (N,) kind of surface, num_kinds of them.
    """

    head: HeadModel
    points: HeadModel
    faces: Tensor
    binding: PointBinding
    kind: Tensor
    num_kinds: int

    @staticmethod
    def build(head: HeadModel, uv_size: int) -> Surface:
        """Points of a ``uv_size`` grid, without lashes and the inside of the mouth."""
        binding = seed_points(head, uv_size)
        hidden = [name for name in SKIPPED_REGIONS if name in head.region_names]
        if hidden:
            keep = ~head.region_mask(*hidden)[binding.face_idx]
            names = ("face_idx", "barycentrics", "part", "uv", "spacing")
            binding = replace(binding, **{name: getattr(binding, name)[keep] for name in names})
        # All bare skin is one kind, so that ears are looked for where skin is.
        skin = torch.tensor([PARTS.index(name) for name in SKIN_PARTS])
        kind = torch.where(torch.isin(binding.part, skin), skin[0], binding.part)
        # Each point with a triangle of its own: frames of triangles without a point would cost the most.
        own = replace(binding, face_idx=torch.arange(binding.num_points))
        faces = head.faces[binding.face_idx]
        return Surface(head, _restrict(head, faces, binding.barycentrics), faces, own, kind, len(PARTS))

    def place(self, params: HeadParams) -> Tensor:
        """Points (B, N, 3) of the posed head, differentiable."""
        return self.points(params).vertices

    @torch.no_grad()
    def shape(self, params: HeadParams) -> Shape:
        """The points' shape on the posed head, without gradients: it changes little, and matters less."""
        frames = point_frames(self.head(params).vertices, self.faces, self.binding)
        count = self.binding.num_points
        spread = torch.full((count, 3), POINT_SCALE)
        spread[:, NORMAL_AXIS] = THICKNESS
        return Shape(frames.quats, frames.scales[..., None] * self.binding.spacing[:, None] * spread, frames.rotations[..., NORMAL_AXIS])

    @torch.no_grad()
    def seen_colors(self, params: HeadParams, viewmats: Tensor, Ks: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Colors (B, N, C) of images (B, S, S, C) where the points fall, and which points face the camera there (B, N)."""
        means, normals = self.place(params), self.shape(params).normals
        pixels, _ = project(means, viewmats, Ks)
        height, width = images.shape[1:3]
        limit = torch.tensor([width - 1, height - 1])
        inside = ((pixels > 0) & (pixels < limit)).all(-1) & _facing(normals, means, viewmats)
        index = pixels.clamp(min=0).long().minimum(limit)
        rows = torch.arange(len(pixels))[:, None].expand(inside.shape)
        return images[rows, index[..., 1], index[..., 0]], inside

    def of_parts(self, names: tuple[str, ...]) -> Tensor:
        """(N,) bool: points of the named parts."""
        return torch.isin(self.binding.part, torch.tensor([PARTS.index(name) for name in names]))


def gaussians_of(means: Tensor, shape: Shape, colors: Tensor) -> Gaussians:
    """Gaussians (B, N) at means (B, N, 3) with colors (B, N, 3)."""
    return Gaussians(means, shape.quats, shape.scales, torch.full(means.shape[:2], OPACITY), colors)


def _restrict(head: HeadModel, faces: Tensor, barycentrics: Tensor) -> HeadModel:
    """The head model whose vertices are points on its surface. Bases and weights are mixed as the points are."""

    def mix(values: Tensor) -> Tensor:
        return (values[..., faces, :] * barycentrics[..., None]).sum(-2)

    names = ("template", "identity_basis", "expression_basis", "skin_weights", "pose_basis")
    return replace(head, **{name: mix(getattr(head, name)) for name in names if getattr(head, name) is not None})


def _facing(normals: Tensor, means: Tensor, viewmats: Tensor) -> Tensor:
    camera = means @ viewmats[:, :3, :3].mT + viewmats[:, None, :3, 3]
    return (camera * (normals @ viewmats[:, :3, :3].mT)).sum(-1) < 0


def harmonics(normals: Tensor) -> Tensor:
    """(B, N, 9) real spherical harmonics of degree 2 without their constants, damped by band."""
    x, y, z = normals.unbind(-1)
    basis = [torch.ones_like(x), x, y, z, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y]
    return torch.stack(basis, -1) * torch.tensor(SH_BANDS)


def skin_likelihood(images: Tensor, colors: Tensor, chosen: Tensor) -> Tensor:
    """How much each pixel looks like the skin of its picture.

    Args:
        images: (B, S, S, 3). colors: (B, N, 3) and chosen: (B, N) bool, samples of that skin.

    Returns:
        (B, S, S, 1) in [0, 1]; zero everywhere in a picture with too few samples.
    """
    likelihood = torch.zeros(*images.shape[:3], 1)
    sigma = torch.tensor([SKIN_SPREAD[0], SKIN_SPREAD[1], SKIN_SPREAD[1]])
    for k, image in enumerate(images):
        samples = _opponent(colors[k][chosen[k]])
        if len(samples) < 20:
            continue
        center = samples.median(0).values
        likelihood[k] = torch.exp(-0.5 * (((_opponent(image) - center) / sigma) ** 2).sum(-1, keepdim=True))
    return likelihood


def _opponent(colors: Tensor) -> Tensor:
    """(..., 3) log luminance and two chromaticities of RGB (..., 3)."""
    safe = colors.clamp_min(0.02)
    total = safe.sum(-1)
    return torch.stack([torch.log(total), safe[..., 0] / total, safe[..., 1] / total], -1)
