"""The super-resolution head: volume-rendered features -> the full picture and its alpha."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avtool.portrait.config import PortraitConfig, doublings
from avtool.portrait.layers import Upsample, activate, convolution, enlarge

_SURE = 1e-4  # alpha is kept this far from 0 and 1 before its logit is taken


class Upsampler(nn.Module):
    """Stages of twice the size; the result is a residual on the enlarged low picture.

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

    def forward(self, features: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Premultiplied features (B, C, s, s), rgb first, and alpha (B, 1, s, s) -> rgb (B, 3, S, S), alpha (B, 1, S, S)."""
        x = activate(self.first(torch.cat((features, alpha), dim=1)))
        for stage in self.body:
            x = stage(x)
        residual = self.last(x)
        factor = 1 << self.stages
        rgb, coverage = enlarge(features[:, :3], factor), enlarge(alpha, factor)
        logit = torch.logit(coverage.clamp(_SURE, 1 - _SURE))
        coverage = torch.sigmoid(logit + residual[:, 3:])
        return rgb + coverage * residual[:, :3], coverage
