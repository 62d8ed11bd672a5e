"""Parameters and result of a head model.

Shape legend: ... batch, I identity, E expression, V vertices, J joints.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from avtool.head.model import HeadModel

_EVENT_DIMS = {"identity": 1, "expression": 1, "neck": 1, "head": 1, "jaw": 1, "eyes": 2, "offsets": 2}


@dataclass(frozen=True)
class HeadParams:
    """What a head model is driven by. Fields may have different batch shapes as long as they broadcast:
    one identity (I,) beside many expressions (B, E) is the fast way to pose one person many times.

    Attributes:
        identity: (..., I) coefficients, unit variance.
        expression: (..., E) weights; ARKit-named, in [0, 1], for the anny model.
        neck: (..., 3) axis-angle, radians, of the neck joint.
        head: (..., 3) axis-angle of the head joint.
        jaw: (..., 3) axis-angle of the jaw joint.
        eyes: (..., 2, 3) axis-angle of the left and the right eye.
        offsets: (V, 3) or (..., V, 3) meters added to the rest shape, or None.
    """

    identity: Tensor
    expression: Tensor
    neck: Tensor
    head: Tensor
    jaw: Tensor
    eyes: Tensor
    offsets: Tensor | None = None

    @staticmethod
    def zeros(head: HeadModel, batch_shape: tuple[int, ...] = ()) -> HeadParams:
        """The mean person, neutral, in the rest pose, for `head`."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*batch_shape, *shape, device=head.template.device)

        return HeadParams(zeros(head.num_identity), zeros(head.num_expression), zeros(3), zeros(3), zeros(3), zeros(2, 3))

    @property
    def batch_shape(self) -> torch.Size:
        """The broadcast batch shape of all fields."""
        return torch.broadcast_shapes(*(t.shape[: t.dim() - _EVENT_DIMS[n]] for n, t in self._tensors().items()))

    def to(self, device: torch.device | str) -> HeadParams:
        """All fields on `device`."""
        return replace(self, **{n: t.to(device) for n, t in self._tensors().items()})

    def detach(self) -> HeadParams:
        """All fields cut from the autograd graph."""
        return replace(self, **{n: t.detach() for n, t in self._tensors().items()})

    def neutral(self) -> HeadParams:
        """The same person (identity and offsets) without expression and in the rest pose."""
        zeroed = ("expression", "neck", "head", "jaw", "eyes")
        return replace(self, **{n: torch.zeros_like(getattr(self, n)) for n in zeroed})

    def unposed(self) -> HeadParams:
        """The same expression, jaw and eyes with neck and head in the rest pose."""
        return replace(self, neck=torch.zeros_like(self.neck), head=torch.zeros_like(self.head))

    def index(self, idx: int | slice | Tensor | list[int]) -> HeadParams:
        """Select along the first batch dimension; fields without a batch dimension are shared and stay."""

        def select(name: str, tensor: Tensor) -> Tensor:
            if tensor.dim() == _EVENT_DIMS[name]:
                return tensor
            if tensor.shape[0] == 1 and self.batch_shape[0] != 1:
                return tensor[0]
            return tensor[idx]

        return replace(self, **{n: select(n, t) for n, t in self._tensors().items()})

    def __getitem__(self, idx: int | slice | Tensor | list[int]) -> HeadParams:
        return self.index(idx)

    def __len__(self) -> int:
        shape = self.batch_shape
        if not shape:
            raise TypeError("these parameters have no batch dimension")
        return shape[0]

    def _tensors(self) -> dict[str, Tensor]:
        return {f.name: t for f in fields(self) if (t := getattr(self, f.name)) is not None}


@dataclass(frozen=True)
class HeadMesh:
    """A posed head: vertices (..., V, 3) and joints (..., J, 3), meters, head-model space."""

    vertices: Tensor
    joints: Tensor


@dataclass(frozen=True)
class HeadStages:
    """Vertices (..., V, 3) of one head: posed; unposed, with its expression but neck and head at rest; neutral. Their
    batch shapes broadcast, and what no parameter changes within a batch has none."""

    posed: Tensor
    unposed: Tensor
    neutral: Tensor
