"""Settings of a tracking run."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TrackingOptions:
    """How to track. The defaults are the recommended values.

    Attributes:
        focal: focal length in pixels of the image as loaded; None takes EXIF, else a prior that is refined.
        focal_mm: focal length as equivalent to 35 mm film (36 x 24 mm), by the diagonal; ``focal`` goes first.
        photometric: refine shape and bust by rendering; needs mattes, and is not for a known person.
        mattes: cut the head out of its background. A driver needs none.
        max_frames: of a video, after ``stride``; None for all.
        stride: take every n-th frame of a video.
        one_face: a photo with several faces is an error; otherwise the largest is taken, with a warning.
        seed: of random choices (which points the photometric stage draws).
        device: where the networks run.
    """

    focal: float | None = None
    focal_mm: float | None = None
    photometric: bool = True
    mattes: bool = True
    max_frames: int | None = None
    stride: int = 1
    one_face: bool = False
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.focal is not None and not 1.0 < self.focal < 1e6:
            raise ValueError(f"focal: expected a length in pixels between 1 and a million, found {self.focal}")
        if self.focal_mm is not None and not 1.0 < self.focal_mm < 10000.0:
            raise ValueError(f"focal: expected 1 to 10000 mm, found {self.focal_mm}")
        if self.stride < 1 or (self.max_frames is not None and self.max_frames < 1):
            raise ValueError("stride and max_frames must be at least 1")

    def focal_pixels(self, width: int, height: int) -> float | None:
        """The given focal length for an image of this size, or None."""
        if self.focal is not None:
            return self.focal
        return None if self.focal_mm is None else self.focal_mm * math.hypot(width, height) / math.hypot(36.0, 24.0)
