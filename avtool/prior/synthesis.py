"""From codes and head parameters to Gaussians and pictures: what training, inversion and reenactment share.

Shape legend: I identities, B samples (grouped by identity), N points, V vertices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from avtool.gaussians.container import Gaussians
from avtool.gaussians.rig import PointFrames, local_to_global, point_frames
from avtool.gaussians.seeding import PointBinding
from avtool.head import HeadModel, HeadParams, triangle_frames
from avtool.head.mesh import take_rows
from avtool.prior.gapnet import NORMAL_SIGMA, TANGENT_SIGMA, GapNet, Geometry
from avtool.prior.refiner import Refiner
from avtool.render import render

SIGNAL_UNIT = 0.01
"""Metres per unit of the dynamic signal e: a smile moves a point by half of it, an open mouth by three."""


def base_scales(head: HeadModel, binding: PointBinding) -> Tensor:
    """Initial local scales (N, 3): wide along the triangle, thin along its normal, from the spacing of the points."""
    corners = head.template[head.faces]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    frames = triangle_frames(head.template, head.faces)
    along = (frames.rotations * normals[:, :, None]).sum(1).abs().sum(0)  # which local axis the frames call the normal
    factors = torch.full((3,), TANGENT_SIGMA, device=corners.device)
    factors[along.argmax()] = NORMAL_SIGMA
    # Where the atlas is badly stretched (the back of the ears) the mean spacing would make blobs that stick out.
    scale = frames.scales[binding.face_idx]
    spacing = binding.spacing * scale
    limits = torch.stack([1.5 * spacing[binding.part == part].median() for part in range(int(binding.part.max()) + 1)
                          if (binding.part == part).any()])
    index = torch.unique(binding.part, return_inverse=True)[1]
    return (torch.minimum(spacing, limits[index]) / scale)[:, None] * factors


def bound_points(head: HeadModel, binding: PointBinding) -> Tensor:
    """The points on the mean head (N, 3), metres."""
    return point_frames(head.template, head.faces, binding).origins


def repeat_views(geometry: Geometry, views: int) -> Geometry:
    """Local Gaussians of I identities -> of B = I * views samples; one identity broadcasts without a copy."""
    if views == 1 or geometry.means.shape[0] == 1:
        return geometry
    shared = {name: getattr(geometry, name).repeat_interleave(views, dim=0) for name in geometry._fields[1:]}
    return Geometry(raw=geometry.raw, **shared)


def carried_points(geometry: Geometry, vertices: Tensor, faces: Tensor, binding: PointBinding) -> Tensor:
    """T(mu') alone: local means (I, N, 3) carried by meshes (B, V, 3) -> (B, N, 3), metres.

    The same as rig.local_to_global on triangle frames, but only for the bound points and without their quaternions,
    which cost more than all the rest.
    """
    a, b, c = (take_rows(vertices, faces[binding.face_idx, k]) for k in range(3))
    weights = binding.barycentrics
    edge, other = b - a, c - a
    first = F.normalize(edge, dim=-1, eps=1e-9)
    normal = F.normalize(torch.linalg.cross(first, other), dim=-1, eps=1e-9)
    third = torch.linalg.cross(first, normal)
    scale = 0.5 * ((first * edge).sum(-1, keepdim=True) - (third * other).sum(-1, keepdim=True))
    x, y, z = geometry.means.split(1, dim=-1)
    return a + weights[:, 1:2] * edge + weights[:, 2:3] * other + scale * (first * x + normal * y + third * z)


def dynamic_signal(expressed: Tensor, neutral: Tensor) -> Tensor:
    """e = T(mu') - T(mu'_neutral) (B, N, 3) in units of SIGNAL_UNIT, from carried points of both meshes.

    Both meshes are in the un-posed head space (neck = head = 0), so that turning the head does not look like an
    expression; jaw and eyes do.
    """
    return (expressed - neutral) / SIGNAL_UNIT


def pose_gaussians(geometry: Geometry, frames: PointFrames, channels: Tensor) -> Gaussians:
    """Local Gaussians on the posed mesh's frames, with their channels (B, N, 32)."""
    batch = channels.shape[0]
    means, quats, scales = local_to_global(geometry.means, geometry.quats, geometry.scales, frames)
    opacities = geometry.opacities.expand(batch, -1)
    return Gaussians(means, quats, scales, opacities, channels)


def synthesize(
    head: HeadModel, binding: PointBinding, gapnet: GapNet, code: Tensor, params: HeadParams
) -> tuple[Gaussians, Geometry, Tensor]:
    """The whole of GAPNet: codes (I, P, C2) and params of B samples -> Gaussians (B, N), local geometry, vertices."""
    geometry = gapnet.geometry(code)
    static = gapnet.appearance_static(code, geometry.raw)
    local = repeat_views(geometry, len(params) // code.shape[0])
    vertices = head(params).vertices
    expressed, neutral = (
        carried_points(local, head(p).vertices, head.faces, binding) for p in (params.unposed(), params.neutral())
    )
    channels = gapnet.appearance(static, dynamic_signal(expressed, neutral))
    return pose_gaussians(local, point_frames(vertices, head.faces, binding), channels), geometry, vertices


def render_channels(
    gaussians: Gaussians, viewmats: Tensor, Ks: Tensor, width: int, height: int, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Premultiplied channels (B, H, W, C) and coverage (B, H, W, 1).

    Only means, quats, scales, opacities, colors and cameras visit the CPU when a CPU back end is asked for on a GPU.
    """
    device = gaussians.device
    if backend in ("numba", "torch") and device.type != "cpu":
        output = render(gaussians.to("cpu"), viewmats.cpu(), Ks.cpu(), width, height, backend=backend)
        return output.colors.to(device), output.alphas.to(device)
    output = render(gaussians, viewmats, Ks, width, height, backend=backend)
    return output.colors, output.alphas


def finish(colors: Tensor, alphas: Tensor, refiner: Refiner | None, background: Tensor) -> tuple[Tensor, Tensor]:
    """Composite: refined image and plain splatted image, both (B, H, W, 3), on a background (3,) or (B, 1, 1, 3)."""
    behind = (1 - alphas) * background
    plain = colors[..., :3] + behind
    refined = plain if refiner is None else refiner(colors, alphas) + behind
    return refined, plain
