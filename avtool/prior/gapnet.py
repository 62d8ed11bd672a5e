"""GAPNet (HeadGAP section 3.2): shared point features and part codes -> Gaussians, by per-part MLPs.

M1: (f, z) -> A^g, the 11 numbers of local position, rotation, scale and opacity.
M2: (f, z, e, A^g) -> h, the 32 channels of appearance: 3 rgb and 29 latent.

Shape legend: N points sorted by part, P parts, I identities, B samples (a multiple of I, grouped by identity),
C1 = 48 feature channels, C2 = 128 code channels. Inside the MLPs tensors are point-major, (N, I or B, C): a part is
then one contiguous block of rows and one matrix product a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GEOMETRY_CHANNELS = 11  # mu' 3, r' 4, S' 3, alpha 1
LEAK = 0.1  # leaky ReLU: a part of few points must not die, and SiLU costs three times as much on a CPU

# Start of training: a tangential sigma of 0.8 of the point spacing closes the surface, thin along the normal.
TANGENT_SIGMA, NORMAL_SIGMA = 0.8, 0.25
OPACITY_LOGIT = 2.2  # sigmoid 0.9
SKIN_LOGIT = (0.85, 0.25, 0.0)  # sigmoid of it is a mid skin tone: 0.70, 0.56, 0.50
# A network output of 1 means this many local units (scale of the parent triangle, a few millimetres): hair stands
# several of them off the scalp, so 1 would make the last layer work too hard.
POSITION_UNIT = 2.0


@dataclass(frozen=True)
class GapNetConfig:
    """Sizes of GAPNet; the paper gives feature, code and depth, widths are ours (see PRESETS)."""

    feature_channels: int = 48
    code_channels: int = 128
    hidden: int = 64
    layers: int = 4
    latent_channels: int = 29  # 3 + 29 = 32 is one pass of gsplat; the paper's 34 would take two
    num_parts: int = 11
    dynamics: bool = True  # False drops the signal e: the ablation "without dynamics"

    @property
    def appearance_channels(self) -> int:
        """rgb and latent channels together."""
        return 3 + self.latent_channels

    def to_dict(self) -> dict[str, int | float | bool]:
        """For the metadata of an artifact."""
        return asdict(self)


PRESETS = {
    "tiny": GapNetConfig(feature_channels=16, code_channels=16, hidden=16),  # tests: a step in milliseconds
    "default": GapNetConfig(hidden=64),  # 10k points cost a CPU step less than the rasterizer; f carries the detail
    "large": GapNetConfig(hidden=128),  # 256 UV on a GPU: the width at which the prior still fits 20 MB
    "paper": GapNetConfig(hidden=256),  # the usual width of such decoders; the paper does not state its own
}


class Geometry(NamedTuple):
    """Local Gaussians of I identities: raw (N, I, 11) as M2 reads it, and activated (I, N, .) in triangle units."""

    raw: Tensor
    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor


class PartMlp(nn.Module):
    """P multilayer perceptrons side by side. The first layer is split by input, so that a code is multiplied once a
    part instead of once a point, and inputs that do not change between frames can be summed up once."""

    def __init__(self, inputs: Sequence[int], hidden: int, outputs: int, layers: int, num_parts: int) -> None:
        super().__init__()
        widths = [sum(inputs), *[hidden] * (layers - 1), outputs]
        self.splits = list(inputs)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in zip(widths[:-1], widths[1:]):
            weight = torch.empty(num_parts, fan_in, fan_out)
            nn.init.normal_(weight, std=(2 / ((1 + LEAK**2) * fan_in)) ** 0.5)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(num_parts, fan_out)))
        # A zero last layer makes the initial Gaussians exactly those of the seeding.
        nn.init.zeros_(self.weights[-1])

    def first_weight(self, index: int) -> Tensor:
        """(P, C_index, hidden): the rows of the first layer that read input `index`."""
        return self.weights[0].split(self.splits, dim=1)[index]

    def first_code(self, index: int, code: Tensor) -> Tensor:
        """Code (I, P, C) -> its share of the first layer (P, I, hidden), bias included."""
        return torch.bmm(code.transpose(0, 1), self.first_weight(index)) + self.biases[0][:, None]

    def first_points(self, index: int, points: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Point input (N, I, C) -> its share of the first layer, one block (n, I, hidden) a part."""
        weight = self.first_weight(index)
        return [rows @ weight[part] for part, rows in enumerate(points.split(sizes))]

    def rest(self, pre_activation: Sequence[Tensor]) -> Tensor:
        """Everything after the first layer's sum: a block (n, B, hidden) a part -> (N, B, outputs)."""
        blocks = []
        for part, rows in enumerate(pre_activation):
            hidden = rows.reshape(-1, rows.shape[-1])
            for weight, bias in zip(self.weights[1:], self.biases[1:]):
                # In place: nothing else reads the sum, and a step is bound by memory.
                hidden = torch.addmm(bias[part], F.leaky_relu(hidden, LEAK, inplace=True), weight[part])
            # Not -1: a part without points (FLAME has no teeth) leaves it undetermined.
            blocks.append(hidden.reshape(*rows.shape[:-1], hidden.shape[-1]))
        return torch.cat(blocks).to(self.biases[-1].dtype)  # whatever precision the products had: positions need all digits


class GapNet(nn.Module):
    """Shared features f (N, C1), and the per-part MLPs M1 and M2.

    Args:
        config: sizes.
        part_sizes: number of points of each part, in order; they sum to N.
        base_scales: (N, 3) local scales of the untrained Gaussians, in triangle units.
        positions: (N, 3) points on the mean head in metres; f starts as a Fourier encoding of them.
    """

    def __init__(
        self, config: GapNetConfig, part_sizes: Sequence[int], base_scales: Tensor, positions: Tensor | None = None
    ) -> None:
        super().__init__()
        assert len(part_sizes) == config.num_parts and sum(part_sizes) == len(base_scales)
        self.config = config
        self.part_sizes = list(part_sizes)
        f, z = config.feature_channels, config.code_channels
        features = 0.1 * torch.randn(len(base_scales), f)
        if positions is not None:
            encoded = fourier_features(positions, f)
            features[:, : encoded.shape[1]] = encoded
        self.features = nn.Parameter(features)
        self.geometry_mlp = PartMlp((f, z), config.hidden, GEOMETRY_CHANNELS, config.layers, config.num_parts)
        self.appearance_mlp = PartMlp(
            (f, z, 3, GEOMETRY_CHANNELS), config.hidden, config.appearance_channels, config.layers, config.num_parts
        )
        self.register_buffer("base_scales", base_scales.clone())
        self.register_buffer("skin", torch.tensor(SKIN_LOGIT), persistent=False)

    def _shared_inputs(self, mlp: PartMlp, code: Tensor) -> tuple[list[Tensor], Tensor]:
        """Shares of f and of codes (I, P, C2) in a first layer: a (n, 1, hidden) a part, and (P, I, hidden)."""
        return mlp.first_points(0, self.features[:, None], self.part_sizes), mlp.first_code(1, code)

    def geometry(self, code: Tensor) -> Geometry:
        """M1: codes (I, P, C2) -> local Gaussians of I identities."""
        mlp = self.geometry_mlp
        points, shared = self._shared_inputs(mlp, code)
        raw = mlp.rest([block + row for block, row in zip(points, shared)])
        position, rotation, scale, opacity = raw.transpose(0, 1).split((3, 4, 3, 1), dim=-1)
        identity_quat = rotation.new_tensor((1.0, 0.0, 0.0, 0.0))
        return Geometry(
            raw=raw,
            means=POSITION_UNIT * position,
            quats=F.normalize(rotation + identity_quat, dim=-1),
            # The clamp keeps exp() finite for a wild step; trained scales stay far inside.
            scales=self.base_scales * scale.clamp(-6.0, 4.0).exp(),
            opacities=torch.sigmoid(opacity[..., 0] + OPACITY_LOGIT),
        )

    def appearance_static(self, code: Tensor, raw: Tensor) -> list[Tensor]:
        """What no expression changes in M2's first layer: codes (I, P, C2), raw (N, I, 11) -> a (n, I, hidden) a part."""
        mlp = self.appearance_mlp
        points, shared = self._shared_inputs(mlp, code)
        return [a + row + b for a, row, b in zip(points, shared, mlp.first_points(3, raw, self.part_sizes))]

    def appearance(self, static: Sequence[Tensor], signal: Tensor) -> Tensor:
        """M2: static blocks (n, I, hidden) and the dynamic signal e (B, N, 3) -> channels (B, N, 32), rgb in [0, 1] first."""
        mlp = self.appearance_mlp
        if not self.config.dynamics:
            signal = torch.zeros_like(signal)
        batch, identities = len(signal), static[0].shape[1]
        views = batch // identities
        moving = mlp.first_points(2, signal.transpose(0, 1), self.part_sizes)
        # Samples are grouped by identity: (n, I, 1, hidden) + (n, I, views, hidden).
        pre = [a[:, :, None] + b.unflatten(1, (identities, views)) for a, b in zip(static, moving)]
        out = mlp.rest([block.flatten(1, 2) for block in pre]).transpose(0, 1)
        assert out.shape[0] == batch
        return torch.cat((torch.sigmoid(out[..., :3] + self.skin), out[..., 3:]), dim=-1)


def fourier_features(positions: Tensor, channels: int) -> Tensor:
    """Positions (N, 3) metres -> at most `channels` columns: coordinates, then sines and cosines of rising frequency.

    Neighbors start with similar features, so what a few photos teach one point carries over to those beside it.
    """
    center = positions.mean(0)
    unit = (positions - center) / (positions - center).abs().max()
    columns = [unit]
    for octave in range(max(0, (channels - 3) // 6)):
        angle = unit * (2.0**octave * torch.pi / 2)
        columns += [angle.sin(), angle.cos()]
    return torch.cat(columns, dim=1)[:, :channels]
