"""What shows a real picture's moment from a new camera: the static portrait network, or the person's own avatar.

Shapes: B real pictures, P pictures to draw, S x S pixels. Drawn pictures are premultiplied on black.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from avtool.artifacts.track import Track
from avtool.capture.samples import Samples
from avtool.head import HeadModel
from avtool.portrait.frontal import SourceView
from avtool.portrait.motion import MotionEncoder, source_motion
from avtool.portrait.network import Portrait
from avtool.portrait.oneshot import frame_bytes, resampled, source_view
from avtool.prior.avatar import Avatar
from avtool.prior.puppet import batch_within

Draw = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Which real pictures (P,) to show by cameras viewmats (P, 4, 4), Ks (P, 3, 3) -> images (P, S, S, 3), coverage (P, S, S, 1)."""

AVATAR_SIZE = 256  # of pictures of an avatar, which has no size of its own


class Synthesizer(Protocol):
    """Draws moments anew.

    head: tells where it computes; size: pixels of its own pictures; person: a track without frames of the only person it can draw,
    or None; stage: of the training, where there are several, else empty.
    """

    name: str
    head: HeadModel
    size: int
    person: Track | None
    stage: str

    def batch(self, size: int) -> int:
        """How many pictures it draws at once."""
        ...

    def moments(self, samples: Samples) -> Draw:
        """Take in B real pictures with all that was tracked in them."""
        ...


class PortraitSynthesizer:
    """Psi_3d of Portrait4D-v2 (arXiv 2403.13570, section 3.1): every real picture is its own source, without cross-attention. A portrait of
    stage motion is given its embedding and draws every picture as its own driver, too, as it has learned to."""

    name = "portrait"

    def __init__(self, portrait: Portrait, head: HeadModel, encoder: MotionEncoder | None = None) -> None:
        self.portrait, self.head, self.size = portrait.eval(), head.to(portrait.device), portrait.config.size
        self.encoder = encoder
        self.person, self.stage = None, portrait.metadata.get("stage", "")

    def batch(self, size: int) -> int:
        """As many as reenactment draws."""
        return batch_within(frame_bytes(self.portrait.config, size), self.portrait.device)

    @torch.no_grad()
    def moments(self, samples: Samples) -> Draw:
        """Planes of every picture once."""
        device = self.portrait.device
        sources = source_view(samples, self.size).to(device)
        parts = [sources[start : start + 8] for start in range(0, len(sources), 8)]
        planes = torch.cat([self._planes(part) for part in parts])
        params, size = samples.params.to(device), samples.images.shape[1]
        scale = torch.tensor((self.size / size, self.size / size, 1.0))[:, None]

        @torch.no_grad()
        def draw(which: Tensor, viewmats: Tensor, Ks: Tensor) -> tuple[Tensor, Tensor]:
            at = which.to(device)
            drawn = self.portrait.render(planes[at], sources[at], params[at], viewmats.to(device), (Ks * scale).to(device))
            return resampled(drawn.image, size).cpu(), resampled(drawn.alpha, size).cpu()

        return draw

    def _planes(self, sources: SourceView) -> Tensor:
        motion = None if self.encoder is None else source_motion(self.encoder, sources)
        return self.portrait.planes(self.portrait.encode(sources), motion, motion)


class AvatarSynthesizer:
    """The person's own fitted avatar, whose shape replaces the track's."""

    name = "avatar"
    size = AVATAR_SIZE

    def __init__(self, avatar: Avatar) -> None:
        self.avatar, self.head, self.stage = avatar, avatar.head, ""
        offsets = None if avatar.offsets is None else avatar.offsets.cpu().numpy()
        self.person = Track(avatar.head_model_id, avatar.identity.cpu().numpy(), [], offsets=offsets)

    def batch(self, size: int) -> int:
        """As many as reenactment draws."""
        return self.avatar.frames_at_once(size, refine=True)

    def moments(self, samples: Samples) -> Draw:
        """The tracked motion is all that is needed."""
        avatar, tracked, size = self.avatar, samples.params, samples.images.shape[1]
        device = avatar.device

        @torch.no_grad()
        def draw(which: Tensor, viewmats: Tensor, Ks: Tensor) -> tuple[Tensor, Tensor]:
            motion = (tracked.expression, tracked.neck, tracked.head, tracked.jaw, tracked.eyes)
            params = avatar.params_for(*(value[which].to(device) for value in motion))
            images, alphas = avatar.render(params, viewmats.to(device), Ks.to(device), size, size, background=(0.0, 0.0, 0.0))
            return images.cpu(), alphas.clamp(0, 1).cpu()

        return draw
