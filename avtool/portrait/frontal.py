"""The source picture as the front plane sees it: frontalization by the tracked camera, pose and the mean head's surface.

One surface for everybody, as Hassner et al., Effective Face Frontalization, arXiv 1411.7964.

Portrait4D-v2 aligns its pictures before the network sees them. Here the tracker knows camera and pose, and so every texel of the
front plane fetches the color that the source shows of it: the network need not find out first where in the picture the head is,
and its convolutions see source and planes in one frame. What the source does not show is there, too, and wrong: the directions to
the camera tell which.

Shape legend: B pictures, S x S their pixels and the result's, N = S * S texels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import Tensor, nn

from avtool.head import HeadModel, HeadParams
from avtool.portrait.rig import Rig, inverse_transform
from avtool.portrait.triplane import BOX_CENTER, BOX_HALF

SOURCE_BACKGROUND = 0.5
"""Gray behind every source picture, in training and use: one background is one thing less to learn."""

_NEAREST = 0.01  # meters before the camera
_SMOOTHING = 0.006  # meters, of the surface: people's noses are not where the mean head's is
_SUBDIVISIONS = 8  # samples along a triangle's side; a texel that none falls into takes its nearest neighbor's depth


@dataclass(frozen=True)
class SourceView:
    """Source pictures with what was tracked in them: images (B, S, S, 3) in [0, 1] on gray, params (B,), viewmats (B, 4, 4), and
    Ks (B, 3, 3) in pixels of the S x S picture."""

    images: Tensor
    params: HeadParams
    viewmats: Tensor
    Ks: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, idx: slice | Tensor) -> SourceView:
        return SourceView(self.images[idx], self.params.index(idx), self.viewmats[idx], self.Ks[idx])

    def to(self, device: torch.device | str) -> SourceView:
        """Move all of it."""
        return SourceView(self.images.to(device), self.params.to(device), self.viewmats.to(device), self.Ks.to(device))


class Frontalizer(nn.Module):
    """Fetches a source's colors for the texels of the front plane; without weights of its own.

    Buffers (not stored, built from the head model): points (1, N, 3) of the mean head's front at rest, meters; skinning (1, N, 3).
    """

    def __init__(self, head: HeadModel, rig: Rig, size: int) -> None:
        super().__init__()
        points = front_surface(head.to("cpu"), size).reshape(1, -1, 3)
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("skinning", rig.weights_at(points), persistent=False)

    @torch.no_grad()
    def forward(self, source: SourceView, transforms: Tensor) -> Tensor:
        """FRONTAL_CHANNELS (B, 6, S, S): rgb in [0, 1] and unit vectors toward the camera, in the head's rest frame, in the texels of plane 0,
        whose first row is the lowest. transforms (B, 3, 3, 4) are those of Rig."""
        size = source.images.shape[1]
        rgb, toward, _ = colors_at(source, transforms, self.points, self.skinning)
        return torch.cat((rgb, toward), dim=1).unflatten(-1, (size, size))


def colors_at(
    source: SourceView, transforms: Tensor, rest: Tensor, skinning: Tensor, outside: str = "zeros"
) -> tuple[Tensor, Tensor, Tensor]:
    """What sources show where rest points come to lie in them: rgb (B, 3, N), and unit vectors (B, 3, N) toward the
    camera in the head's rest frame; and the places themselves (B, N, 3): picture coordinates in [-1, 1], and depth in meters.

    Args:
        transforms: (B, 3, 3, 4) of Rig for the source's pose. rest: (B or 1, N, 3) meters. skinning: (B or 1, N, 3) of root, neck and head.
        outside: of the picture are "zeros", gray, or the nearest pixel of its "border".
    """
    blended = (skinning @ transforms.flatten(-2)).unflatten(-1, (3, 4))
    posed = (blended[..., :3] @ rest[..., None])[..., 0] + blended[..., 3]
    seen = posed @ source.viewmats[:, :3, :3].mT + source.viewmats[:, None, :3, 3]
    pixels = (seen @ source.Ks.mT)[..., :2] / seen[..., 2:].clamp_min(_NEAREST)
    pictures = source.images.movedim(-1, 1) - SOURCE_BACKGROUND
    at = (2 / source.images.shape[1]) * pixels - 1
    rgb = F.grid_sample(pictures, at[:, None], padding_mode=outside, align_corners=False)[:, :, 0] + SOURCE_BACKGROUND
    eye = -(source.viewmats[:, None, :3, 3] @ source.viewmats[:, :3, :3])
    toward = F.normalize(inverse_transform(transforms[:, 2][:, None], eye) - rest, dim=-1).mT
    return rgb, toward, torch.cat((at, seen[..., 2:]), dim=-1)


def front_surface(head: HeadModel, size: int) -> Tensor:
    """Points (S, S, 3) in meters at rest: what the texels of plane 0 see of the mean head from the front.

    Beside the head the surface goes on at the depth of its outline, where hair and shoulders are more likely than anywhere else.
    """
    center, half = np.array(BOX_CENTER), np.array(BOX_HALF)
    steps = np.linspace(0, 1, _SUBDIVISIONS + 1)
    a, b = (grid.ravel() for grid in np.meshgrid(steps, steps))
    inside = a + b <= 1 + 1e-9
    mixture = np.stack((a, b, 1 - a - b), axis=-1)[inside]
    dense = np.einsum("mk,fkd->fmd", mixture, head.template[head.faces].double().numpy()).reshape(-1, 3)
    at = np.floor(((dense - center) / half + 1) * size / 2)[:, :2].astype(int)
    within = ((at >= 0) & (at < size)).all(-1)
    depth = np.full((size, size), -np.inf)
    np.maximum.at(depth, (at[within, 1], at[within, 0]), dense[within, 2])
    nearest = distance_transform_edt(~np.isfinite(depth), return_distances=False, return_indices=True)
    sigma = _SMOOTHING * size / (2 * half[[1, 0]])  # texels, rows first
    smooth = gaussian_filter(depth[tuple(nearest)], sigma, mode="nearest")
    x, y = (center[k] + half[k] * ((np.arange(size) + 0.5) * (2 / size) - 1) for k in (0, 1))
    grid = np.stack((*np.broadcast_arrays(x[None], y[:, None]), smooth), axis=-1)
    return torch.from_numpy(grid).float()
