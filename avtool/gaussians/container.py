"""The set of 3D Gaussians that every room passes around.

Shape legend: ... batch, N Gaussians, C channels (rgb first, then latent channels).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

SH_C0 = 0.28209479177387814
"""Value of the degree-0 real spherical harmonic, 1 / (2 sqrt(pi)): 3DGS files store colour in its units."""

_TRAILING_DIMS = {"means": 2, "quats": 2, "scales": 2, "opacities": 1, "colors": 2}


@dataclass(frozen=True)
class Gaussians:
    """3D Gaussians with activated (linear) parameters, in gsplat's vocabulary.

    Fields may have different batch shapes as long as they broadcast: an avatar whose colours do not move can keep
    ``colors`` (N, C) beside ``means`` (B, N, 3).

    Attributes:
        means: (..., N, 3) centres, metres, world frame.
        quats: (..., N, 4) rotations wxyz, not necessarily of unit length.
        scales: (..., N, 3) standard deviations along the local axes, metres (linear, not log).
        opacities: (..., N) in [0, 1] (linear, not logit).
        colors: (..., N, C) rgb in [0, 1], latent channels after them.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor

    def __post_init__(self) -> None:
        widths = {"means": 3, "quats": 4, "scales": 3}
        for name, width in widths.items():
            shape = tuple(getattr(self, name).shape)
            if len(shape) < 2 or shape[-1] != width:
                raise ValueError(f"{name} must have shape (..., N, {width}), found {shape}")
        if self.colors.dim() < 2 or self.opacities.dim() < 1:
            raise ValueError(
                f"colors must have shape (..., N, C) and opacities (..., N), found {tuple(self.colors.shape)} "
                f"and {tuple(self.opacities.shape)}"
            )
        counts = {name: getattr(self, name).shape[-dims if dims == 1 else -2] for name, dims in _TRAILING_DIMS.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f"every field must describe the same number of Gaussians, found {counts}")

    @property
    def num_points(self) -> int:
        """N."""
        return self.means.shape[-2]

    @property
    def num_channels(self) -> int:
        """C."""
        return self.colors.shape[-1]

    @property
    def device(self) -> torch.device:
        """Device of the centres."""
        return self.means.device

    @property
    def batch_shape(self) -> torch.Size:
        """Common batch shape of all fields after broadcasting."""
        return torch.broadcast_shapes(*(getattr(self, name).shape[:-dims] for name, dims in _TRAILING_DIMS.items()))

    def map(self, function: Callable[[Tensor], Tensor]) -> Gaussians:
        """Apply ``function`` to every field."""
        return Gaussians(**{field.name: function(getattr(self, field.name)) for field in fields(self)})

    def to(self, *args: object, **kwargs: object) -> Gaussians:
        """``Tensor.to`` on every field (device or dtype)."""
        return self.map(lambda tensor: tensor.to(*args, **kwargs))

    def detach(self) -> Gaussians:
        """Cut every field from the autograd graph."""
        return self.map(torch.Tensor.detach)

    def with_colors(self, colors: Tensor) -> Gaussians:
        """The same Gaussians with other channels (..., N, C)."""
        return replace(self, colors=colors)

    def __getitem__(self, index: int | slice | Tensor) -> Gaussians:
        """Index the first batch dimension; fields without one are shared and stay as they are."""
        if not self.batch_shape:
            raise IndexError("these Gaussians have no batch dimension to index")
        rank = len(self.batch_shape)

        def pick(name: str, dims: int) -> Tensor:
            tensor = getattr(self, name)
            if tensor.dim() - dims < rank:
                return tensor
            if tensor.shape[0] != 1:
                return tensor[index]
            return tensor[0] if isinstance(index, int) else tensor

        return Gaussians(**{name: pick(name, dims) for name, dims in _TRAILING_DIMS.items()})
