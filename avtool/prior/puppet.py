"""Who can be driven: what planning and rendering a reenactment ask of an avatar or of a one-shot portrait.

Shapes: B frames of a batch, S x S pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from avtool.artifacts.track import Track
from avtool.head import HeadModel, HeadParams
from avtool.prior.motion import Motion

MAX_BATCH = 8  # more frames at once are no faster on two cores
CPU_BATCH_BYTES, GPU_BATCH_BYTES = 1 << 28, 1 << 31


class Puppet(Protocol):
    """A person who is driven, on one device."""

    head: HeadModel

    @property
    def identity_params(self) -> HeadParams:
        """This person, neutral, without a batch dimension."""
        ...

    def watch(self, motion: Motion, track: Track, sources: Sequence[int]) -> Motion:
        """The motion with what this person must see of the driver's pictures: frames `sources` of its track, one a frame."""
        ...

    def frames_at_once(self, size: int, refine: bool) -> int:
        """How many frames of `size` pixels a batch may hold."""
        ...

    def perform(self, motion: Motion, size: int, background: Tensor, refine: bool) -> tuple[Tensor, Tensor]:
        """A batch of a motion on this person's device: pictures (B, S, S, 3) in [0, 1] on a background color (3,), and coverage
        (B, S, S, 1). Without `refine` no network works on the rendered picture."""
        ...


def batch_within(frame_bytes: int, device: torch.device) -> int:
    """How many frames, each of which takes `frame_bytes` at its largest moment, a batch may hold: 1 to MAX_BATCH."""
    budget = CPU_BATCH_BYTES if device.type == "cpu" else GPU_BATCH_BYTES
    return max(1, min(MAX_BATCH, budget // max(1, frame_bytes)))
