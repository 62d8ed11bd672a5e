"""What the source shows of the surface that a new camera sees: its pixels, for the super-resolution head.

Portrait4D-v2 brings the source's detail to the picture through its planes, whose paper sizes a CPU cannot train. The volume's depth says
where on the head every pixel of the new picture lies, the tracked pose and camera where the source shows that place; so a small network,
too, can keep a face sharp where the photo is (pixel-aligned features: PIFu, arXiv 1905.05172; IBRNet, arXiv 2102.13090). What the source
hides is looked up, too, and wrong: both cameras' directions and the depth behind the mean head's front tell.

Shape legend: B pictures, S x S pixels of a result, s x s of the volume's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avtool.head import HeadModel
from avtool.portrait.frontal import SourceView, colors_at, front_surface
from avtool.portrait.layers import enlarge
from avtool.portrait.rig import Rig, inverse_transform, posed_box
from avtool.portrait.triplane import to_box
from avtool.portrait.volume import pixel_rays

_FRONT_SIZE = 128  # texels a side of the mean head's front
_DEEP = 0.05  # meters behind the front at which a place is surely hidden from the front
_FAINT = 1e-3  # coverage under which there is no surface


class SourceLookup(nn.Module):
    """Fetches a source's colors for the pixels of a volume-rendered picture; without weights of its own.

    Buffer (not stored, built from the head model): front (1, 1, F, F), depth z in meters of the mean head's front at rest.
    """

    def __init__(self, head: HeadModel) -> None:
        super().__init__()
        self.register_buffer("front", front_surface(head.to("cpu"), _FRONT_SIZE)[None, None, ..., 2], persistent=False)

    @torch.no_grad()
    def forward(self, source: SourceView, rig: Rig, transforms: Tensor, viewmats: Tensor, Ks: Tensor, depth: Tensor, alpha: Tensor, size: int) -> Tensor:
        """LOOKUP_CHANNELS (B, 10, S, S): rgb in [0, 1], unit vectors toward the source's and the new camera in the head's rest frame, and
        how deep behind the front, in [0, 1].

        Args:
            source: B of them, or one for all. transforms: (B, 3, 3, 4) of `rig` for the new pose. viewmats, Ks: new cameras, Ks in pixels of
                the S x S result. depth, alpha: (B, s, s) of the volume.
        """
        factor = size // depth.shape[-1]
        covered = enlarge(alpha[:, None], factor)
        # Premultiplied, as rays beside the head have no depth.
        depths = (enlarge((depth * alpha)[:, None], factor) / covered.clamp_min(_FAINT)).flatten(1)
        rays = pixel_rays(viewmats, Ks, size, size, *posed_box(transforms))
        points = rays.origins + rays.directions * depths[..., None]
        rest = rig.to_rest(points, transforms)
        rgb, toward = colors_at(source, rig.transforms(source.params), rest, rig.weights_at(rest))
        eye = F.normalize(inverse_transform(transforms[:, 2][:, None], rays.origins) - rest, dim=-1).mT
        front = F.grid_sample(self.front.expand(len(rest), -1, -1, -1), to_box(rest)[:, None, :, :2], padding_mode="border", align_corners=False)
        behind = ((front[:, :, 0] - rest[:, None, :, 2]) / _DEEP).clamp(0, 1)
        return torch.cat((rgb, toward, eye, behind), dim=1).unflatten(-1, (size, size))
