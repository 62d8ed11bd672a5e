"""From codes and head parameters to Gaussians and pictures: what training, inversion and reenactment share.

Shape legend: I identities, B samples (grouped by identity), N points, V vertices.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from avtool.gaussians.container import Gaussians
from avtool.gaussians.rig import carry, carry_means, point_frames
from avtool.gaussians.seeding import PointBinding
from avtool.head import HeadModel, HeadParams, triangle_frames
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


def dynamic_signal(expressed: Tensor, neutral: Tensor) -> Tensor:
    """e = T(mu') - T(mu'_neutral) (B, N, 3) in units of SIGNAL_UNIT, from carried points of both meshes.

    Both meshes are in the un-posed head space (neck = head = 0), so that turning the head does not look like an
    expression; jaw and eyes do.
    """
    return (expressed - neutral) / SIGNAL_UNIT


def pose_gaussians(
    geometry: Geometry, vertices: Tensor, faces: Tensor, binding: PointBinding, channels: Tensor
) -> Gaussians:
    """Local Gaussians of I identities on B posed meshes (B, V, 3), with their channels (B, N, 32)."""
    means, quats, scales = carry(geometry.means, geometry.quats, geometry.scales, vertices, faces, binding)
    opacities, batch = geometry.opacities, len(channels)
    views = batch // len(opacities)
    opacities = opacities.expand(batch, -1) if len(opacities) == 1 else opacities.repeat_interleave(views, dim=0)
    return Gaussians(means, quats, scales, opacities, channels)


def expression_signal(
    geometry: Geometry, expressed: Tensor, neutral: Tensor, faces: Tensor, binding: PointBinding
) -> Tensor:
    """e (B, N, 3) of local Gaussians of I identities on un-posed meshes (B, V, 3), the neutral one (B, V, 3) or (V, 3)."""
    return dynamic_signal(*(carry_means(geometry.means, mesh, faces, binding) for mesh in (expressed, neutral)))


def network_precision(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Inside, the products of networks are taken in "bf16" or "fp32"; what comes out of a network is fp32 either way."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def synthesize(
    head: HeadModel, binding: PointBinding, gapnet: GapNet, code: Tensor, params: HeadParams, precision: str = "fp32"
) -> tuple[Gaussians, Geometry, Tensor]:
    """The whole of GAPNet: codes (I, P, C2) and params of B samples -> Gaussians (B, N), local geometry, vertices."""
    with network_precision(precision, code.device):
        geometry = gapnet.geometry(code)
        static = gapnet.appearance_static(code, geometry.raw)
    meshes = head.stages(params)
    signal = expression_signal(geometry, meshes.unposed, meshes.neutral, head.faces, binding)
    with network_precision(precision, code.device):
        channels = gapnet.appearance(static, signal)
    return pose_gaussians(geometry, meshes.posed, head.faces, binding, channels), geometry, meshes.posed


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


def finish(
    colors: Tensor, alphas: Tensor, refiner: Refiner | None, background: Tensor, precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """Composite: refined image and plain splatted image, both (B, H, W, 3), on a background (3,) or (B, 1, 1, 3)."""
    # One slice for both pictures: its gradient is as large as all channels.
    plain = colors[..., :3] + (1 - alphas) * background
    if refiner is None:
        return plain, plain
    with network_precision(precision, colors.device):
        return plain + refiner.residual(colors, alphas), plain
