"""Tri-planes: three feature planes over a fixed metric box of the head model's space, and their decoder.

Planes: 0 is (x, y) seen from the front, 1 is (z, y) seen from the side, 2 is (x, z) seen from above. A texel's row is the
second coordinate's, and the first texel lies at the lower end of both axes (grid_sample, align_corners=False).
Shape legend: B batch, C plane channels, P texels a side, N tokens, D their channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avtool.portrait.config import FRONTAL_CHANNELS, PortraitConfig, doublings
from avtool.portrait.layers import Upsample, activate, convolution
from avtool.portrait.vit import attend

# Meters, about the mean head and bust (0.34 x 0.39 x 0.25 m) with room for hair and clothes.
BOX_CENTER = (0.0, -0.03, -0.01)
BOX_HALF = (0.22, 0.25, 0.20)
_AXES = ((0, 1), (2, 1), (0, 2))


def to_box(points: Tensor) -> Tensor:
    """Head-model space (..., 3) meters -> box coordinates, [-1, 1] inside the box."""
    return (points - points.new_tensor(BOX_CENTER)) / points.new_tensor(BOX_HALF)


def sample_planes(planes: Tensor, points: Tensor) -> Tensor:
    """Features (B, 3, C, N) of planes (B, 3, C, P, P) at box coordinates (B, N, 3)."""
    grid = torch.stack([points[..., list(axes)] for axes in _AXES], dim=1)
    found = F.grid_sample(
        planes.flatten(0, 1), grid.flatten(0, 1)[:, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return found[:, :, 0].unflatten(0, (-1, 3))


class ReducedAttention(nn.Module):
    """A transformer block on a feature map whose keys and values are of a reduced map (SegFormer, arXiv 2105.15203)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.heads = max(1, channels // 32)
        self.heads = self.heads if channels % self.heads == 0 else 1
        self.norm1, self.norm_reduced = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.reduce = nn.Conv2d(channels, channels, reduction, reduction)
        self.query, self.key_value = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.out, self.norm2 = nn.Linear(channels, channels), nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.GELU(approximate="tanh"), nn.Linear(2 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        size = x.shape[-2:]
        tokens = x.flatten(2).mT
        normed = self.norm1(tokens)
        reduced = self.reduce(normed.mT.unflatten(-1, size)).flatten(2).mT
        key, value = self.key_value(self.norm_reduced(reduced)).chunk(2, dim=-1)
        tokens = tokens + self.out(attend(self.query(normed), key, value, self.heads))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.mT.unflatten(-1, size)


class PlaneDecoder(nn.Module):
    """Canonical tokens and detail features -> convolution -> one transformer block -> convolution -> three planes."""

    def __init__(self, config: PortraitConfig) -> None:
        super().__init__()
        width = config.decoder_channels
        self.config = config
        self.embed = nn.Linear(config.dim, width)
        steps = doublings(config.detail_size, config.token_size, "detail_size / token_size")
        self.enlarge = nn.Sequential(*[Upsample(width, width) for _ in range(steps)])
        self.merge = convolution(width + config.detail_channels, width)
        self.block = ReducedAttention(width, config.detail_size // config.token_size)
        steps = doublings(config.plane_size, config.detail_size, "plane_size / detail_size")
        narrow = max(width // 2, 2 * config.plane_channels) if steps else width
        widths = [width, *[narrow] * steps]
        self.refine = nn.Sequential(*[Upsample(a, b) for a, b in zip(widths, widths[1:])])
        # A frontalized source lies texel by texel over the front plane: its colors need not pass the smaller maps.
        self.planes = convolution(narrow + (FRONTAL_CHANNELS if config.frontalize else 0), 3 * config.plane_channels)

    def forward(self, tokens: Tensor, detail: Tensor, front: Tensor | None = None) -> Tensor:
        """Tokens (B, N, D), detail (B, E, Q, Q), a frontalized source (B, 6, S, S) or None -> planes (B, 3, C, P, P)."""
        side = self.config.token_size
        canonical = self.enlarge(self.embed(tokens).mT.unflatten(-1, (side, side)))
        x = activate(self.merge(torch.cat((canonical, detail), dim=1)))
        x = activate(self.refine(self.block(x)))
        if front is not None:
            side = self.config.plane_size
            front = front if front.shape[-1] == side else F.interpolate(front, (side, side), mode="bilinear", align_corners=False)
            x = torch.cat((x, front), dim=1)
        return self.planes(x).unflatten(1, (3, -1))


class PlaneField(nn.Module):
    """The MLP from plane features to a density logit and the features of the low picture."""

    def __init__(self, config: PortraitConfig) -> None:
        super().__init__()
        self.concatenate = config.concatenate_planes
        inputs = config.plane_channels * (3 if self.concatenate else 1)
        self.hidden = nn.Linear(inputs, config.hidden)
        self.out = nn.Linear(config.hidden, 1 + config.feature_channels)
        # Density starts as thin fog (or as the mean head), whatever the planes hold. Colors may vary at once: weights as
        # small as density's would let next to no gradient through to the planes, and the source would be found late.
        nn.init.normal_(self.out.weight, std=config.hidden**-0.5)
        nn.init.normal_(self.out.weight[:1], std=0.02)
        nn.init.zeros_(self.out.bias)

    def forward(self, planes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Planes (B, 3, C, P, P), box coordinates (B, N, 3) -> density logit (B, N), features (B, F, N), rgb first."""
        found = sample_planes(planes, points)
        found = found.flatten(1, 2) if self.concatenate else found.mean(1)
        out = _by_columns(self.out, activate(_by_columns(self.hidden, found)))
        # As EG3D: a little beyond [0, 1], so that black and white are within reach.
        rgb = torch.sigmoid(out[:, 1:4]) * 1.002 - 0.001
        return out[:, 0], torch.cat((rgb, out[:, 4:]), dim=1)


def _by_columns(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer on x (B, C, N): points stay in columns, as grid_sample leaves them, and nothing is transposed."""
    return torch.baddbmm(layer.bias[:, None], layer.weight.expand(len(x), -1, -1), x)
