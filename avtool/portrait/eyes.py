"""The eyes in a source lookup: lids slide over them, and the search by which other skin is found there has no one answer.

Each column of an eye is warped piece by piece between four curves that the head model knows, from the fold above to the cheek below: lids
are stretched, and the eye between them stays where the skull has it.

Shape legend: B pictures, N points.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avtool.head import HeadModel, HeadParams
from avtool.portrait.curves import Curves, height

# MediaPipe's landmarks of the fold above, the upper and the lower rim, and the furrow below; the person's right eye first.
CURVES = (
    (
        (247, 30, 29, 27, 28, 56, 190), (33, 246, 161, 160, 159, 158, 157, 173, 133),
        (33, 7, 163, 144, 145, 153, 154, 155, 133), (25, 110, 24, 23, 22, 26, 112),
    ),
    (
        (414, 286, 258, 257, 259, 260, 467), (362, 398, 384, 385, 386, 387, 388, 466, 263),
        (362, 382, 381, 380, 374, 373, 390, 249, 263), (341, 256, 252, 253, 254, 339, 255),
    ),
)  # fmt: skip
# Meters.
_CORNER, _EDGE = 0.003, 0.002  # from the corners, and from the outer curves, over which the warp fades in
_DEPTH = 0.03  # behind the rims, where a place is no more of the eye
_LEAST = 1e-3  # between curves
_LASHES = 0.3  # the least exponent of the share of a stretched lid


class Lids(nn.Module):
    """Knows the curves about a head model's eyes; without weights of its own."""

    def __init__(self, head: HeadModel) -> None:
        super().__init__()
        self.eyes = nn.ModuleList(Curves(head, curves) for curves in CURVES)

    @staticmethod
    def of(head: HeadModel) -> Lids | None:
        """None where the head model lacks one of the landmarks."""
        return Lids(head) if all(Curves.known(head, curves) for curves in CURVES) else None

    def places(self, source: HeadParams, params: HeadParams, rest: Tensor, there: Tensor) -> Tensor:
        """Where to look in the source, (B, N, 3): `there`, but about the eyes at the height that the curves say.

        Args:
            source, params: (B,) or one for all. rest: (B, N, 3) places on the face of params. there: (B, N, 3) where the source has them, by
                the search.
        """
        x, y, z = rest.unbind(-1)
        level = there[..., 1]
        for curves in self.eyes:
            here = curves.of(params, len(rest))
            (top, upper, lower, bottom), own = ([height(c, x) for c in found] for found in (here, curves.of(source, len(rest))))
            above = _between(y, upper, top, own[1], own[0])
            below = _between(y, lower, bottom, own[2], own[3])
            eye = torch.minimum(torch.maximum(y, own[2]), own[1])
            warped = torch.where(y > upper, above, torch.where(y < lower, below, eye))
            rim = here[1]
            across = torch.minimum(x - rim[:, :1, 0], rim[:, -1:, 0] - x) / _CORNER
            along = torch.minimum(top - y, y - bottom) / _EDGE
            near = z > rim[..., 2].mean(1, keepdim=True) - _DEPTH
            level = torch.lerp(level, warped, across.clamp(0, 1) * along.clamp(0, 1) * near)
        return torch.stack((there[..., 0], level, there[..., 2]), dim=-1)


def _between(y: Tensor, rim: Tensor, skin: Tensor, own_rim: Tensor, own_skin: Tensor) -> Tensor:
    """y (B, N) between a rim and the skin beyond, between those of the source.

    At the same share where that strip is as high there; the higher it is here, the more of it is skin: lashes do not grow with a lid.
    """
    strip = (skin - rim).abs().clamp_min(_LEAST)
    share = ((y - rim).abs() / strip).clamp(1e-6, 1)
    power = ((own_skin - own_rim).abs() / strip).clamp(_LASHES, 1)
    return torch.lerp(own_rim, own_skin, share**power)
