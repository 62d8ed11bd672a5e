"""The super-resolution head: volume-rendered features -> the full picture and its alpha."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avtool.portrait.config import LOOKUP_CHANNELS, PortraitConfig, doublings
from avtool.portrait.layers import Upsample, activate, convolution, enlarge

_BLEND_WIDTH = 16  # channels at full size, where they cost most: no more than the last stage has
_FIRST_GATE = -2.0  # logit of the share of the source's own pixels before training
_SURE = 1e-4  # alpha is kept this far from 0 and 1 before its logit is taken


class Upsampler(nn.Module):
    """Stages of twice the size; the result is a residual on the enlarged low picture, into which the source's own pixels are blended
    where they fit.

    Colors are premultiplied by alpha and so is the residual: nothing is painted outside the person.
    """

    def __init__(self, config: PortraitConfig) -> None:
        super().__init__()
        self.stages = doublings(config.size, config.low_size, "size / low_size")
        width = config.upsampler_channels
        self.first = convolution(config.feature_channels + 1, width)
        widths = [max(width >> idx, min(width, 16)) for idx in range(self.stages + 1)]
        self.body = nn.ModuleList(Upsample(a, b) for a, b in zip(widths, widths[1:]))
        self.last = nn.Conv2d(widths[-1], 4, 3, padding=1)
        # The first full picture is nearly the enlarged low one.
        nn.init.normal_(self.last.weight, std=1e-3)
        nn.init.zeros_(self.last.bias)
        self.blend = Blend(widths[-1]) if config.source_lookup else None

    def forward(self, features: Tensor, alpha: Tensor, looked_up: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Premultiplied features (B, C, s, s), rgb first, and alpha (B, 1, s, s) -> rgb (B, 3, S, S), alpha (B, 1, S, S).

        looked_up: (B, 12, S, S) of SourceLookup, where the configuration has it.
        """
        x = activate(self.first(torch.cat((features, alpha), dim=1)))
        for stage in self.body:
            x = stage(x)
        residual = self.last(x)
        factor = 1 << self.stages
        rgb, coverage = enlarge(features[:, :3], factor), enlarge(alpha, factor)
        logit = torch.logit(coverage.clamp(_SURE, 1 - _SURE))
        coverage = torch.sigmoid(logit + residual[:, 3:])
        rgb = rgb + coverage * residual[:, :3]
        return rgb if self.blend is None else self.blend(x, rgb, coverage, looked_up), coverage


class Blend(nn.Module):
    """The source's own pixels in the place of drawn ones: a gate and a correction at every pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = convolution(width + 4 + LOOKUP_CHANNELS, _BLEND_WIDTH), convolution(_BLEND_WIDTH, _BLEND_WIDTH)
        self.last = nn.Conv2d(_BLEND_WIDTH, 4, 3, padding=1)
        nn.init.normal_(self.last.weight, std=1e-3)
        nn.init.zeros_(self.last.bias)
        self.last.bias.data[0] = _FIRST_GATE

    def forward(self, x: Tensor, rgb: Tensor, coverage: Tensor, looked_up: Tensor) -> Tensor:
        """Features (B, W, S, S), drawn rgb (B, 3, S, S) premultiplied by coverage (B, 1, S, S), and what the source shows (B, 12, S, S) -> rgb."""
        y = activate(self.first(torch.cat((x, rgb, coverage, looked_up), dim=1)))
        found = self.last(activate(self.second(y)))
        gate, correction = torch.sigmoid(found[:, :1]), found[:, 1:]
        return rgb + gate * (coverage * (looked_up[:, :3] + correction) - rgb)
