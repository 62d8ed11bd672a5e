"""Convolution blocks that the portrait's encoders, decoder and super-resolution head share.

Inside the networks pictures and feature maps are (B, C, H, W).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAK = 0.1  # leaky ReLU: SiLU and GELU cost three times as much on a CPU


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU."""
    return F.leaky_relu(x, LEAK)


def normalization(channels: int) -> nn.GroupNorm:
    """Group normalization with at most 8 groups; batches are too small for statistics over them."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


def convolution(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    """A convolution that keeps the scale of its input through a leaky ReLU (He initialization), without bias at first."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
    nn.init.kaiming_normal_(layer.weight, a=LEAK)
    nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """Two normalized 3 x 3 convolutions beside a shortcut (ResNet's basic block, pre-activation)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1, self.conv1 = normalization(inputs), convolution(inputs, outputs, stride)
        self.norm2, self.conv2 = normalization(outputs), convolution(outputs, outputs)
        changes = inputs != outputs or stride != 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        y = self.conv1(activate(self.norm1(x)))
        return self.shortcut(x) + self.conv2(activate(self.norm2(y)))


class Upsample(nn.Module):
    """Twice the size: bilinear, then a convolution (which leaves no checkerboard)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = convolution(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, 2 H, 2 W)."""
        return activate(self.conv(enlarge(x, 2)))


def enlarge(x: Tensor, factor: int) -> Tensor:
    """(B, C, H, W) -> (B, C, factor H, factor W), bilinear, pixel centers at +0.5."""
    if factor == 1:
        return x
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def with_coordinates(images: Tensor) -> Tensor:
    """(B, 3 or more, H, W), rgb in [0, 1] first -> two more channels: rgb, the others as they are, and pixel position, in [-1, 1]."""
    height, width = images.shape[-2:]
    y = (torch.arange(height, device=images.device, dtype=images.dtype) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=images.device, dtype=images.dtype) + 0.5) * (2 / width) - 1
    grid = torch.stack((x.expand(height, width), y[:, None].expand(height, width)))
    return torch.cat((images[:, :3] * 2 - 1, images[:, 3:], grid.expand(len(images), -1, -1, -1)), dim=1)
