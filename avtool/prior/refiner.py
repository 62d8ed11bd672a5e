"""The screen-space CNN f^C (HeadGAP section 3.2): rendered rgb and latent channels -> the final image, same resolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Width of the hidden layers. On two CPU cores a 256 x 256 frame takes about 9 ms at 16 and 20 ms at 24 (channels last).
REFINER_WIDTHS = {
    "none": 0,  # splats alone: what can be exported to a standard viewer
    "tiny": 8,  # tests
    "default": 16,  # the widest that leaves a CPU training step to the rasterizer
    "large": 32,  # GPU training and real-time GPU rendering
    "paper": 64,  # a usual width; the paper does not state its own
}
REFINER_LAYERS = 6
GATE = 8
"""Power of the coverage that the residual is multiplied by: a pixel covered to 0.9 takes 0.43 of it. What is behind the outline is unknown
to the network, so that it can only guess there; with a power of 1 it learned little else than to sharpen outlines, which are
misplaced by a pixel or two on people it has not seen."""


class Refiner(nn.Module):
    """Six 3 x 3 convolutions that add a residual to the splatted rgb.

    Inputs are premultiplied by coverage, and the residual is multiplied by a power of it: nothing is painted outside the
    head, little on its outline, and the background can be put behind the result afterwards.
    """

    def __init__(self, channels: int, width: int, layers: int = REFINER_LAYERS) -> None:
        super().__init__()
        widths = [channels, *[width] * (layers - 1), 3]
        blocks: list[nn.Module] = []
        for fan_in, fan_out in zip(widths[:-1], widths[1:]):
            blocks += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.LeakyReLU(0.1, inplace=True)]
        self.net = nn.Sequential(*blocks[:-1])
        # The first refined image is the splatted one.
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)
        # A quarter to a half less time on a CPU than the default layout.
        self.to(memory_format=torch.channels_last)

    @property
    def width(self) -> int:
        """Channels between the layers."""
        return self.net[0].out_channels

    def residual(self, colors: Tensor, alphas: Tensor) -> Tensor:
        """Premultiplied channels (B, H, W, C) and coverage (B, H, W, 1) -> what to add to the premultiplied rgb."""
        return alphas.pow(GATE) * self.net(colors.movedim(-1, 1)).movedim(1, -1)

    def forward(self, colors: Tensor, alphas: Tensor) -> Tensor:
        """Premultiplied channels (B, H, W, C) and coverage (B, H, W, 1) -> premultiplied rgb (B, H, W, 3)."""
        return colors[..., :3] + self.residual(colors, alphas)
