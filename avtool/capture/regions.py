"""Square regions of images: rotated ones for the networks, axis-aligned crops for everything else.

Shape legend: images are uint8 (H, W, 3); points are (..., 2) pixels with pixel centers at +0.5, so that 0 is the
image's left or top edge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Roi:
    """A rotated square.

    Attributes:
        x, y: center in pixels.
        size: side in pixels.
        angle: radians, from the image's x axis to the square's, clockwise on the screen.
    """

    x: float
    y: float
    size: float
    angle: float = 0.0

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """Unit-square coordinates (..., 2), (0, 0) the square's first corner, to pixels."""
        return (np.asarray(points) - 0.5) * self.size @ self._axes() + (self.x, self.y)

    def from_image(self, points: np.ndarray) -> np.ndarray:
        """Pixels (..., 2) to unit-square coordinates."""
        return (np.asarray(points) - (self.x, self.y)) @ self._axes().T / self.size + 0.5

    def _axes(self) -> np.ndarray:
        """The square's x and y directions as rows."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return np.array([[cos, sin], [-sin, cos]])


def _reduced_window(image: np.ndarray, corners: np.ndarray, factor: int) -> tuple[Tensor, int, int]:
    """The part of an image under some corners, area-averaged by a whole factor: (1, 3, h, w) in [0, 1], and its origin."""
    height, width = image.shape[:2]
    margin = 2 * factor
    x0, y0 = (max(int(v) - margin, 0) // factor * factor for v in np.floor(corners.min(0)))
    x1, y1 = (int(v) + margin for v in np.ceil(corners.max(0)))
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    window = torch.from_numpy(np.array(image[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]))
    window = window.permute(2, 0, 1)[None].float() / 255.0
    if factor > 1:
        below, right = -window.shape[2] % factor, -window.shape[3] % factor
        window = F.avg_pool2d(F.pad(window, (0, right, 0, below), mode="replicate"), factor)
    return window, x0, y0


def sample_roi(image: np.ndarray, roi: Roi, side: int, border: str = "border") -> Tensor:
    """Resamples a rotated square.

    Args:
        image: uint8 (H, W, 3).
        roi: the square.
        side: output side in pixels.
        border: what lies outside the image: "border" repeats its edge, "zeros" is black.

    Returns:
        (1, side, side, 3) float32 in [0, 1] on the CPU.
    """
    corners = roi.to_image(np.array([[0, 0], [1, 0], [0, 1], [1, 1]]))
    # Averaging before interpolation keeps large photos from aliasing.
    factor = max(1, int(roi.size / side / 1.5))
    window, x0, y0 = _reduced_window(image, corners, factor)
    unit = (np.arange(side) + 0.5) / side
    pixels = roi.to_image(np.stack(np.meshgrid(unit, unit), -1))
    extent = np.array([window.shape[3], window.shape[2]]) * factor
    grid = torch.from_numpy(((pixels - (x0, y0)) / extent * 2 - 1).astype(np.float32))[None]
    sampled = F.grid_sample(window, grid, padding_mode=border, align_corners=False)
    return sampled.permute(0, 2, 3, 1)
