"""What the network sees of the source picture: a global feature map for the transformer, a detail map beside it.

Portrait4D-v2 takes a ResNet-34 (pretrained) and a shallow CNN; these are of our own and start from nothing.
"""

from __future__ import annotations

from torch import Tensor, nn

from avtool.portrait.config import FRONTAL_CHANNELS, PortraitConfig, doublings
from avtool.portrait.layers import ResidualBlock, activate, convolution, normalization


def _inputs(config: PortraitConfig) -> int:
    """rgb, the direction to the camera where a source is frontalized, x and y."""
    return (FRONTAL_CHANNELS if config.frontalize else 3) + 2


class GlobalEncoder(nn.Module):
    """A small ResNet: pictures with coordinates (B, I, S, S) -> tokens (B, N, D), N = token_size^2."""

    def __init__(self, config: PortraitConfig) -> None:
        super().__init__()
        halvings = doublings(config.size, config.global_size, "size / global_size")
        width = config.encoder_widths[0]
        # The stem halves, as ResNet's does; the stages take the rest, the last ones none.
        stages: list[nn.Module] = [convolution(_inputs(config), width, 2 if halvings else 1, 5)]
        left = max(0, halvings - 1)
        for idx, (outputs, blocks) in enumerate(zip(config.encoder_widths, config.encoder_blocks)):
            stride = 2 if idx < left else 1
            stages.append(ResidualBlock(width, outputs, stride))
            stages += [ResidualBlock(outputs, outputs) for _ in range(blocks - 1)]
            width = outputs
        self.body, self.norm = nn.Sequential(*stages), normalization(width)
        patch = config.global_size // config.token_size
        self.embed = nn.Conv2d(width, config.dim, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        """As with_coordinates() makes them (B, I, S, S) -> tokens (B, N, D), rows first."""
        features = activate(self.norm(self.body(images)))
        return self.embed(features).flatten(2).mT


class DetailEncoder(nn.Module):
    """A shallow CNN that keeps what the tokens are too coarse for: (B, I, S, S) -> (B, C, detail_size, detail_size)."""

    def __init__(self, config: PortraitConfig) -> None:
        super().__init__()
        channels = config.detail_channels
        stages: list[nn.Module] = []
        width = _inputs(config)
        for _ in range(doublings(config.size, config.detail_size, "size / detail_size")):
            stages.append(convolution(width, channels, 2, 5))
            width = channels
        stages += [ResidualBlock(width, channels), ResidualBlock(channels, channels)] if stages else [
            convolution(width, channels), ResidualBlock(channels, channels)
        ]  # fmt: skip
        self.body, self.norm = nn.Sequential(*stages), normalization(channels)

    def forward(self, images: Tensor) -> Tensor:
        """As with_coordinates() makes them (B, I, S, S) -> (B, C, detail_size, detail_size)."""
        return activate(self.norm(self.body(images)))
