"""The mouth in a source lookup: what lies behind the lips does not move with them, and lips never become teeth.

The head model's lips say where a mouth is open. There the source is asked for the same place behind its own lips, as the upper teeth do not
move with the face; where those hide it, the mean head's upper teeth and tongue in plain colors stand in, for the network to light and
correct. Lips that a smile has parted in the source are found beside the opening when they are shut.

Shape legend: B pictures, N points, C points of a lip from the person's right to the left, F texels a side, E expressions.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from avtool.head import HeadModel, HeadParams
from avtool.portrait.curves import Curves, height
from avtool.portrait.rig import linear_moves, move_amounts

# MediaPipe's landmarks of the inner rims of both lips.
UPPER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
# Meters.
_BEHIND = 0.012  # from the rims of the lips to the teeth
_CLOSED = 0.0005  # between a rim and the place at which the opening begins
_SOFT = 0.002  # over which it becomes sure
_DEPTH = 0.04  # behind the rims a place is no more of the mouth
_PARTED = 0.001  # lips that are closer hide nothing
_MARGIN = 0.001  # beside the opening, how far away the skin of shut lips is looked for
# The texels of the mean mouth: 0.7 mm.
_SIZE, _CENTER, _HALF = 96, (0.0, -0.032), 0.034
# The lower teeth are left out: the lip is before them in most openings, and the mean head's are gray slabs in the others.
_CAVITY, _COLORS = (0.16, 0.06, 0.06), {"tongue": (0.42, 0.19, 0.18), "teeth_up": (0.62, 0.56, 0.52)}
_HIGHER = (0.0, 0.002, 0.0)  # meters, as the mean head shows more of its teeth than people who speak do
_FIXED, _WITH_JAW = "teeth_up", "teeth_lo"


class Mouth(nn.Module):
    """Knows a head model's lips and what is behind them; without weights of its own.

    Buffers (not stored, built from the head model): parts (1, 2, F, F) coverage of tongue and upper teeth from the front; jaw_moves (E + 3, 3) of
    the lower teeth, and of the tongue with them.
    """

    def __init__(self, head: HeadModel) -> None:
        super().__init__()
        self.rims = Curves(head, (UPPER, LOWER))
        jaw = head.faces[head.region_mask(_WITH_JAW)].unique()
        self.register_buffer("parts", torch.stack([_coverage(head, name) for name in _COLORS])[None], persistent=False)
        self.register_buffer("jaw_moves", linear_moves(head)[:, jaw].mean(1), persistent=False)

    @staticmethod
    def of(head: HeadModel) -> Mouth | None:
        """None where the head model has no inner lips among its landmarks, or no teeth and tongue."""
        complete = Curves.known(head, (UPPER, LOWER)) and {*_COLORS, _WITH_JAW} <= set(head.region_names)
        return Mouth(head) if complete else None

    def opening(self, params: HeadParams, points: Tensor) -> Tensor:
        """How surely (B, N), in [0, 1], rest points (B, N, 3) on the face lie between the lips."""
        gap, _ = self._gap(*self.rims.of(params, len(points)), points)
        return ((gap - _CLOSED) / _SOFT).clamp(0, 1)

    def places(self, source: HeadParams, params: HeadParams, rest: Tensor, there: Tensor, eye: Tensor) -> tuple[Tensor, Tensor]:
        """Where to look in the source, (B, N, 3), and how surely (B, N) that is behind the lips.

        Args:
            source, params: (B,) or one for all. rest: (B, N, 3) places on the face of params. there: (B, N, 3) where the source has them, if they
                are skin. eye: (B, N, 3) unit vectors toward the camera of params.
        """
        opening = self.opening(params, rest)
        skin = self._outside(source, params, there)
        return torch.where(opening[..., None] > 0.5, behind_lips(rest, eye), skin), opening

    def shown(self, source: HeadParams, there: Tensor, toward: Tensor) -> Tensor:
        """How surely (B, N) places (B, N, 3) at the source's teeth are seen between its lips; toward: (B, N, 3) unit vectors to its camera."""
        return self.opening(source, behind_lips(there, -toward))

    def colors(self, params: HeadParams, points: Tensor) -> Tensor:
        """Of an average mouth's inside, (B, N, 3), at rest points (B, N, 3) at its teeth."""
        jaw = (move_amounts(params, len(points)) @ self.jaw_moves)[:, None]
        found = points.new_tensor(_CAVITY).expand_as(points)
        for idx, (name, color) in enumerate(_COLORS.items()):
            place = points - points.new_tensor(_HIGHER) if name == _FIXED else points - jaw
            at = (place[:, None, :, :2] - points.new_tensor(_CENTER)) / _HALF
            part = self.parts[:, idx : idx + 1].expand(len(points), -1, -1, -1)
            coverage = F.grid_sample(part, at, padding_mode="zeros", align_corners=False)[:, 0, 0, :, None]
            found = torch.lerp(found, points.new_tensor(color), coverage)
        return found

    def _outside(self, source: HeadParams, params: HeadParams, there: Tensor) -> Tensor:
        """Rest points (B, N, 3) of the source's skin, moved out of its mouth by the nearer rim, the farther the more it is shut in params."""
        rims = self.rims.of(source, len(there))
        gap, side = self._gap(*rims, there)
        parted, still = (height(a, there[..., 0]) - height(b, there[..., 0]) for a, b in (rims, self.rims.of(params, len(there))))
        shut = torch.where(parted > _PARTED, 1 - still / parted.clamp_min(_PARTED), 0.0).clamp(0, 1)
        push = (gap + _MARGIN * shut).clamp_min(0) * shut * side
        return torch.stack((there[..., 0], there[..., 1] + push, there[..., 2]), dim=-1)

    @staticmethod
    def _gap(upper: Tensor, lower: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Meters (B, N) to the nearer rim along y, negative outside, and its side: 1 the upper, -1 the lower."""
        x, y, z = points.unbind(-1)
        above, below = height(upper, x) - y, y - height(lower, x)
        across = (x > upper[:, :1, 0]) & (x < upper[:, -1:, 0]) & (z > upper[..., 2].mean(1, keepdim=True) - _DEPTH)
        return torch.where(across, torch.minimum(above, below), -1.0), torch.where(above < below, 1.0, -1.0)


def behind_lips(points: Tensor, eye: Tensor) -> Tensor:
    """Where lines of sight (B, N, 3), unit vectors toward a camera, meet the teeth behind rest points (B, N, 3) between the lips."""
    return points - eye * (_BEHIND / eye[..., 2:].abs().clamp_min(0.5))


def _coverage(head: HeadModel, region: str) -> Tensor:
    """(F, F) what texels see of a region from the front; the first row is the lowest."""
    triangles = head.template[head.faces[head.region_mask(region)]][..., :2].double().numpy()
    steps = (np.arange(_SIZE) + 0.5) * (2 / _SIZE) - 1
    x, y = np.meshgrid(_CENTER[0] + _HALF * steps, _CENTER[1] + _HALF * steps)
    texels = np.stack((x, y), axis=-1).reshape(-1, 1, 2)
    sides = []
    for k in range(3):
        a, b = triangles[:, k], triangles[:, (k + 1) % 3]
        edge, to = b - a, texels - a
        sides.append(edge[:, 0] * to[..., 1] - edge[:, 1] * to[..., 0])
    turns = np.stack(sides)
    covered = ((turns > 0).all(0) | (turns < 0).all(0)).any(-1).reshape(_SIZE, _SIZE)
    return torch.from_numpy(gaussian_filter(covered.astype(np.float32), 1.0))
