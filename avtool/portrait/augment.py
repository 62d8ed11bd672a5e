"""Random changes of pictures before an image-based motion embedding sees them.

Source and driver are changed independently, so that what they share beside the expression (where the head is and how large, its
tilt, the colors of skin and light, sharpness) says nothing about the target (Portrait4D-v2, arXiv 2403.13570, section 3.3).

Shape legend: B pictures, H x W pixels, C = 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLUR_TAPS = 7  # odd; wide enough for a sigma of 2 pixels


@dataclass(frozen=True)
class Augmentation:
    """Ranges, all symmetric around "unchanged"; 0 switches one off."""

    scale: float = 0.12  # factor exp(+-scale), width and height by another +-scale / 2 each: people's proportions
    rotation: float = 15.0  # degrees in the picture's plane
    shift: float = 0.06  # fraction of the side
    crop: float = 0.1  # greatest part cut away (and painted gray) at each side
    brightness: float = 0.2
    contrast: float = 0.25  # factor exp(+-contrast)
    saturation: float = 0.4
    gamma: float = 0.25
    tint: float = 0.1  # of each channel
    blur: float = 1.5  # greatest sigma in pixels at a side of 128

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Pictures (B, H, W, 3) in [0, 1] -> as many, in [0, 1]; the numbers are drawn on the generator's device."""
        warped = self._cut(self._warp(images, generator), generator)
        return self._recolor(self._blur(warped, generator), generator)

    def _warp(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count, height, width, _ = images.shape
        common = (self.scale * _signed(generator, images, count, 1)).exp()
        stretch = common * (0.5 * self.scale * _signed(generator, images, count, 2)).exp()
        angle = math.radians(self.rotation) * _signed(generator, images, count)
        shift = 2 * self.shift * _signed(generator, images, count, 2)  # affine_grid's sides are 2 long
        cosine, sine = angle.cos(), angle.sin()
        turn = torch.stack((torch.stack((cosine, -sine), -1), torch.stack((sine, cosine), -1)), -2)
        theta = torch.cat((turn / stretch[:, None, :], shift[..., None]), -1)
        grid = F.affine_grid(theta, [count, 3, height, width], align_corners=False)
        moved = F.grid_sample(images.movedim(-1, 1), grid, padding_mode="border", align_corners=False)
        return moved.movedim(1, -1)

    def _cut(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Gray margins, as of a crop that is tighter at some side."""
        count, height, width, _ = images.shape
        left, right, top, bottom = (self.crop * torch.rand(4, count, 1, 1, generator=generator, device=generator.device)).to(images.device)
        x = ((torch.arange(width, device=images.device) + 0.5) / width)[None, None]
        y = ((torch.arange(height, device=images.device) + 0.5) / height)[None, :, None]
        kept = (x >= left) & (x <= 1 - right) & (y >= top) & (y <= 1 - bottom)
        return torch.where(kept[..., None], images, images.new_tensor(0.5))

    def _blur(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A Gaussian of a random width each, along rows and columns."""
        count, height, _, channels = images.shape
        drawn = torch.rand(count, 1, generator=generator, device=generator.device).to(images.device)
        sigma = (self.blur * height / 128 * drawn).clamp(1e-3, BLUR_TAPS / 3)
        taps = torch.arange(BLUR_TAPS, device=images.device) - BLUR_TAPS // 2
        kernel = torch.exp(-0.5 * (taps / sigma).square())
        kernel = (kernel / kernel.sum(-1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
        planes = images.movedim(-1, 1).reshape(1, count * channels, *images.shape[1:3])
        half = BLUR_TAPS // 2
        for weight, pad in ((kernel[:, :, None, :], (half, half, 0, 0)), (kernel[:, :, :, None], (0, 0, half, half))):
            planes = F.conv2d(F.pad(planes, pad, mode="replicate"), weight, groups=count * channels)
        return planes.reshape(count, channels, *images.shape[1:3]).movedim(1, -1)

    def _recolor(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count = len(images)

        def drawn(limit: float, channels: int = 1) -> Tensor:
            return limit * _signed(generator, images, count, 1, 1, channels)

        gray = images.mean(-1, keepdim=True)
        images = gray + (images - gray) * (1 + drawn(self.saturation))
        images = 0.5 + (images - 0.5) * drawn(self.contrast).exp() + drawn(self.brightness)
        images = images * (1 + drawn(self.tint, 3))
        return images.clamp(0, 1) ** drawn(self.gamma).exp()


def _signed(generator: torch.Generator, like: Tensor, *shape: int) -> Tensor:
    """Uniform in [-1, 1), on the device of `like`."""
    return (2 * torch.rand(*shape, generator=generator, device=generator.device) - 1).to(like.device)
