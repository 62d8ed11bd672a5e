"""A portrait of one photo, ready to be driven: the source is tracked, encoded and neutralized once, for all drivers.

Shape legend: B frames of a batch, S pixels a side of the network, M motion embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from avtool.artifacts.track import Track
from avtool.capture.samples import Samples, load_samples
from avtool.errors import AvtoolError, FormatError
from avtool.head import HeadModel, HeadParams
from avtool.portrait.dataset import SOURCE_BACKGROUND, facing_angles
from avtool.portrait.motion import MotionEncoder, load_motion
from avtool.portrait.network import Encoded, Portrait
from avtool.portrait.objective import at_size, on_color
from avtool.prior.motion import Motion
from avtool.prior.puppet import batch_within
from avtool.prior.storage import check_head_model

Progress = Callable[[int, int, str], None]

_WATCHED_BYTES = 1 << 27  # of the driver's pictures, where an embedding reads them


@dataclass(frozen=True)
class Source:
    """The picture that a portrait is made of: image (1, S, S, 3) on gray, its tracked parameters (1,), and its name."""

    image: Tensor
    params: HeadParams
    name: str


@dataclass(frozen=True)
class OneShot:
    """A person made of one picture, as Puppet: `neutral` is the picture without its expression."""

    head: HeadModel
    portrait: Portrait
    encoder: MotionEncoder
    neutral: Encoded
    identity_params: HeadParams

    @staticmethod
    @torch.no_grad()
    def of(portrait: Portrait, encoder: MotionEncoder, head: HeadModel, source: Source) -> OneShot:
        """Encodes a source once."""
        device = portrait.device
        image, params = source.image.to(device), source.params.to(device)
        motion = encoder.embed_images(image) if encoder.reads_images else encoder.embed(params)
        neutral = portrait.eval().neutralize(portrait.encode(image), motion)
        return OneShot(head.to(device), portrait, encoder, neutral, params[0].neutral())

    def params_for(self, motion: Motion) -> HeadParams:
        """This person with a motion's expression and pose (B,)."""
        moved = {name: getattr(motion, name) for name in ("expression", "neck", "head", "jaw", "eyes")}
        return replace(self.identity_params, **moved)

    def watch(self, motion: Motion, track: Track, sources: Sequence[int]) -> Motion:
        """As Puppet: an embedding that reads pictures sees the driver's as it saw them in training, matte on gray.

        Its numbers have no known neutral: they are neither filtered nor transferred, as they should not show whose face it is.
        """
        if not self.encoder.reads_images:
            return motion
        size, found = self.portrait.config.size, []
        count = max(1, _WATCHED_BYTES // (16 * size * size))
        chosen = sorted(set(sources))
        for start in range(0, len(chosen), count):
            pictures = source_pictures(load_samples(track, chosen[start : start + count], size))
            found += [self.encoder.embed_images(part.to(self.portrait.device)).cpu() for part in pictures.split(16)]
        rows = torch.tensor([chosen.index(source) for source in sources])
        return replace(motion, embedding=torch.cat(found)[rows])

    def frames_at_once(self, size: int, refine: bool) -> int:
        """As Puppet."""
        return batch_within(frame_bytes(self.portrait.config, size), self.portrait.device)

    @torch.no_grad()
    def perform(self, motion: Motion, size: int, background: Tensor, refine: bool) -> tuple[Tensor, Tensor]:
        """As Puppet. Without `refine`: what the volume renderer drew, enlarged."""
        params = self.params_for(motion)
        embedding = self.encoder.embed(params) if motion.embedding is None else motion.embedding
        planes = self.portrait.drive(self.neutral, embedding)
        picture = self.portrait.render(planes, params, motion.viewmats, motion.Ks, size)
        image, alpha = (picture.image, picture.alpha) if refine else (picture.low, picture.low_alpha)
        image, alpha = (x if x.shape[1] == size else at_size(x, size).clamp(0, 1) for x in (image, alpha))
        return on_color(image, alpha, background), alpha


def frame_bytes(config, size):
    return 1


def load_oneshot_portrait(
    path: str | Path, device: torch.device | str, head: HeadModel | None, motion: str | None = None
) -> tuple[Portrait, MotionEncoder, HeadModel]:
    """A portrait that can be driven, with the embedding that it was trained with.

    Args:
        path: a "portrait/1" file of stage motion.
        head: needed for FLAME only.
        motion: where an embedding that is not the tracker's comes from, "torchscript:FILE" for example.
    """
    portrait = Portrait.load(path, device, head)
    stage = portrait.metadata.get("stage", "static")
    if stage != "motion":
        hint = f"teach it to move: avtool train-portrait DATASET --stage motion --init {path}"
        raise FormatError(path, "stage", "motion, a portrait that can be driven", stage, hint)
    model = resolve_head(path, portrait.head_model, head, device)
    name = portrait.metadata.get("motion", "tracker")
    if motion is None and name != "tracker":
        raise AvtoolError(f"{path}: made with the motion embedding {name}", "name its file with --motion torchscript:FILE")
    encoder = load_motion(motion or name, model)
    if encoder.name != name or encoder.size != portrait.config.motion_size:
        found = f"{encoder.name} of length {encoder.size}"
        raise FormatError(path, "motion", f"the embedding it was trained with, {name} of length {portrait.config.motion_size}", found)
    return portrait, encoder, model


def load_source(
    name: str, head: HeadModel, size: int, seed: int = 0, progress: Progress | None = None
) -> Source:
    """Reads or tracks the source.

    Args:
        name: a photo of one face, or the track of one or more pictures, of which the most frontal real one is taken.
        head: the portrait's head model; a track of another one is refused.
        size: S.
        seed: of the tracker.
        progress: called with (done, total, message) while tracking.
    """
    path = Path(name)
    if path.suffix.lower() == ".json" or path.is_dir():
        track = Track.load(path, head)
        check_head_model(path, track.head_model, head.model_id)
    else:
        track = track_source(path, head, seed, progress)
    idx = most_frontal(track, name)
    samples = load_samples(track, [idx], size)
    frame = track.frames[idx]
    shown = frame.image if frame.image is not None else f"{track.video}, frame {frame.frame_idx}"
    return Source(source_pictures(samples), samples.params, shown)


def track_source(path: Path, head: HeadModel, seed: int = 0, progress: Progress | None = None) -> Track:
    """The track of one photo with one face. Its shape is not refined by rendering: the network sees the photo itself."""
    from avtool.tracking import TrackingOptions, track_photos

    options = TrackingOptions(photometric=False, one_face=True, seed=seed)
    return track_photos([path], head, photometric=False, options=options, progress=progress)


def most_frontal(track: Track, name: str) -> int:
    """The real frame whose face looks most nearly into the camera; the first of equal ones."""
    real = [idx for idx, frame in enumerate(track.frames) if frame.pseudo is None]
    if not real:
        raise AvtoolError(f"{name}: expected a photographed picture, found pseudo views only", "name the photo itself")
    angles = facing_angles(track.params(real), track.viewmats(real))
    return real[int(angles.argmin())]


def source_pictures(samples: Samples) -> Tensor:
    """Pictures (B, S, S, 3) as the network is shown them: the matte on gray, as PortraitSet.sources()."""
    return samples.images * samples.mattes + (1 - samples.mattes) * SOURCE_BACKGROUND
