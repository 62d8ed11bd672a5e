"""Curves of a head model's face that follow shape and expression: lips and lids, for the source lookup.

Shape legend: B pictures, N points, C points of a curve from the person's right to the left, E expressions, I identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avtool.head import HeadModel, HeadParams
from avtool.portrait.rig import linear_moves, move_amounts


class Curves(nn.Module):
    """Curves through landmarks, named by MediaPipe's numbers; without weights of its own.

    Buffers (not stored, built from the head model), of all curves one after another: rest (C, 3), shapes (I, C, 3) of the identity basis, moves
    (E + 3, C, 3) of linear_moves.
    """

    def __init__(self, head: HeadModel, curves: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.lengths = [len(curve) for curve in curves]
        rows = {int(k): row for row, k in enumerate(head.landmark_ids)}
        at = torch.tensor([rows[k] for curve in curves for k in curve])
        for name, values in (("rest", head.template), ("shapes", head.identity_basis), ("moves", linear_moves(head))):
            self.register_buffer(name, head.landmarks(values)[..., at, :].contiguous(), persistent=False)

    @staticmethod
    def known(head: HeadModel, curves: Sequence[Sequence[int]]) -> bool:
        """Whether a head model has all their landmarks."""
        return {k for curve in curves for k in curve} <= {int(k) for k in head.landmark_ids}

    def of(self, params: HeadParams, count: int) -> tuple[Tensor, ...]:
        """Each curve (B, C, 3) at rest, of B = `count` params or one for all."""
        moved = torch.einsum("be,ecd->bcd", move_amounts(params, count), self.moves)
        shape = torch.einsum("bi,icd->bcd", params.identity.expand(count, -1), self.shapes)
        return (self.rest + moved + shape).split(self.lengths, dim=1)


def height(curve: Tensor, x: Tensor) -> Tensor:
    """y (B, N) of curves (B, C, 3), which go on in x, at x (B, N); the ends' beyond them."""
    knots = curve[..., 0].cummax(1).values.contiguous()
    right = torch.searchsorted(knots, x.contiguous()).clamp(1, curve.shape[1] - 1)
    (x0, x1), (y0, y1) = ((values.gather(1, right - 1), values.gather(1, right)) for values in (knots, curve[..., 1]))
    return torch.lerp(y0, y1, ((x - x0) / (x1 - x0).clamp_min(1e-6)).clamp(0, 1))
