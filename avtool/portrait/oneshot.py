"""A portrait of one photo, ready to be driven: the source is tracked, encoded and neutralized once, for all drivers.

Shape legend: B frames of a batch, S pixels a side of the network, M motion embedding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avtool.artifacts.track import Track
from avtool.capture.samples import Samples, load_samples
from avtool.errors import AvtoolError, FormatError
from avtool.head import HeadModel, HeadParams
from avtool.portrait.config import PortraitConfig
from avtool.portrait.dataset import facing_angles, on_gray
from avtool.portrait.frontal import SourceView
from avtool.portrait.motion import MotionEncoder, load_motion, source_motion
from avtool.portrait.network import Encoded, Portrait
from avtool.portrait.objective import on_color
from avtool.prior.motion import Motion
from avtool.prior.puppet import batch_within
from avtool.prior.storage import check_head_model, resolve_head

Progress = Callable[[int, int, str], None]

_EDGE = 2  # rows from the soft end of a matte to what is surely of the person
_WATCHED_BYTES = 1 << 27  # of the driver's pictures, where an embedding reads them


@dataclass(frozen=True)
class Driven:
    """A portrait of stage motion with what it is driven by, on one device."""

    portrait: Portrait
    encoder: MotionEncoder
    head: HeadModel

    @torch.no_grad()
    def of(self, source: SourceView) -> OneShot:
        """The person of one picture: encoded here, once."""
        source = source.to(self.portrait.device)
        neutral = self.portrait.neutralize(self.portrait.encode(source), source_motion(self.encoder, source))
        return OneShot(self.head, self.portrait, self.encoder, neutral, source.params[0].neutral())


@dataclass(frozen=True)
class OneShot:
    """A person made of one picture, as Puppet: `neutral` is the picture without its expression."""

    head: HeadModel
    portrait: Portrait
    encoder: MotionEncoder
    neutral: Encoded
    identity_params: HeadParams

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
            samples = load_samples(track, chosen[start : start + count], size)
            pictures = on_gray(samples.images, samples.mattes)
            found += [self.encoder.embed_images(part.to(self.portrait.device)).cpu() for part in pictures.split(16)]
        row_of = {source: row for row, source in enumerate(chosen)}
        rows = torch.tensor([row_of[source] for source in sources])
        return replace(motion, embedding=torch.cat(found)[rows])

    def frames_at_once(self, size: int, refine: bool) -> int:
        """As Puppet."""
        return batch_within(frame_bytes(self.portrait.config, size), self.portrait.device)

    @torch.no_grad()
    def perform(self, motion: Motion, size: int, background: Tensor, refine: bool) -> tuple[Tensor, Tensor]:
        """As Puppet. Without `refine`: what the volume renderer drew, enlarged.

        The network draws at its own size, and another size is resampled from that: the super-resolution head knows one distance
        between rays only. Of a trial network (preset tiny, 500 steps) pictures drawn at half or twice the size were 2.4 and 0.9 dB worse, and
        the latter took 3 times as long; of an untrained one there was no difference.
        """
        params, own = self.params_for(motion), self.portrait.config.size
        embedding = self.encoder.embed(params) if motion.embedding is None else motion.embedding
        Ks = motion.Ks * motion.Ks.new_tensor((own / size, own / size, 1.0))[:, None]
        planes = self.portrait.drive(self.neutral, embedding)
        picture = self.portrait.render(planes, self.neutral.source, params, motion.viewmats, Ks)
        image, alpha = (picture.image, picture.alpha) if refine else (picture.low, picture.low_alpha)
        image, alpha = resampled(image, size), resampled(alpha, size)
        return on_color(image, alpha, background).clamp(0, 1), alpha


def source_view(samples: Samples, size: int) -> SourceView:
    """Pictures with mattes as a network of `size` pixels sees them."""
    scale = size / samples.images.shape[1]
    Ks = samples.Ks * samples.Ks.new_tensor((scale, scale, 1.0))[:, None]
    pictures = below_photo(on_gray(samples.images, samples.mattes), samples.mattes)
    return SourceView(resampled(pictures, size), samples.params, samples.viewmats, Ks)


def below_photo(pictures: Tensor, mattes: Tensor) -> Tensor:
    """Pictures (B, s, s, 3) whose clothes go on to the lower border where the photo ended above it: the last row with anything of mattes
    (B, s, s, 1) is repeated. A bust does not float, and every picture of training has it down to the border."""
    side = pictures.shape[1]
    rows = torch.arange(side, device=pictures.device)
    last = torch.where((mattes > 0.5).any(dim=2)[..., 0], rows, 0).amax(1)
    last = torch.where(last < side - 1, last - _EDGE, last).clamp_min(0)  # of a matte's edge, which is soft
    source = torch.minimum(rows[None], last[:, None])
    return pictures.gather(1, source[:, :, None, None].expand_as(pictures))


def resampled(pictures: Tensor, size: int) -> Tensor:
    """Pictures (B, s, s, C) in [0, 1] at another size: bicubic, over areas where they shrink."""
    if pictures.shape[1] == size:
        return pictures
    planes = F.interpolate(pictures.movedim(-1, 1), (size, size), mode="bicubic", align_corners=False, antialias=pictures.shape[1] > size)
    return planes.clamp(0, 1).movedim(1, -1)


def frame_bytes(config: PortraitConfig, size: int) -> int:
    """What a frame of `size` pixels takes at its largest moment: the samples of its rays in the volume's network (plane features,
    three copies of its layers, positions and their inverse skinning), the planes, and the picture that is resampled. What looks up the source's
    pixels comes later and takes less.

    5 to 20 % above most slopes of peak memory measured for the preset small and six like it (50 MB at a low picture of 64 pixels with
    12 samples a ray, 200 MB at 128), rough for tiny, whose frames are too small to matter.
    """
    features = 3 * config.plane_channels
    samples = config.low_size**2 * max(config.coarse, config.fine)
    volume = samples * (features + 3 * config.hidden + 3 * config.feature_channels + 40)
    return 4 * (volume + 2 * features * config.plane_size**2 + 12 * size * size)


def load_to_drive(path: str | Path, device: torch.device | str, head: HeadModel | None, motion: str | None = None) -> Driven:
    """A portrait that can be driven, with the embedding that it was trained with.

    Args:
        path: a "portrait/1" file of stage motion; "default" is the one in the package.
        head: needed for FLAME only.
        motion: where an embedding that is not the tracker's comes from, "torchscript:FILE" for example.
    """
    portrait = Portrait.load(path, device, head).eval()
    stage = portrait.metadata.get("stage", "static")
    if stage != "motion":
        hint = f"teach it to move: avtool train-portrait DATASET --stage motion --init {path}"
        raise FormatError(path, "stage", "motion (a portrait that can be driven)", stage, hint)
    return with_motion(portrait, path, head, motion)


def with_motion(portrait: Portrait, path: str | Path, head: HeadModel | None, motion: str | None = None) -> Driven:
    """A portrait of stage motion, which came from a file, with its embedding; arguments as of load_to_drive."""
    model = resolve_head(path, portrait.head_model, head, portrait.device)
    name, size = portrait.metadata.get("motion", "tracker"), portrait.config.motion_size
    if motion is None and name != "tracker":
        raise AvtoolError(f"{path}: made with the motion embedding {name}", "name its file with --motion torchscript:FILE")
    encoder = load_motion(motion or name, model)
    if (encoder.name, encoder.size) != (name, size):
        hint = "name the file that the portrait was trained with" if name != "tracker" else "leave --motion out"
        raise FormatError(path, "motion", f"{encoder.name} ({encoder.size} numbers)", f"{name} ({size} numbers)", hint)
    return Driven(portrait, encoder, model)


@dataclass(frozen=True)
class Source:
    """A person made of a source: its picture's name, and the seconds that tracking (None: done beforehand) and encoding it took."""

    puppet: OneShot
    name: str
    seconds: float | None


def load_source(name: str, network: Driven, seed: int = 0, progress: Progress | None = None) -> Source:
    """Makes a person of a source.

    Args:
        name: a photo of one face, or a track ("-": on standard input), of which the most frontal real picture is taken.
        network: what encodes it; a track of another head model is refused.
        seed: of the tracker.
        progress: called with (done, total, message) while tracking.
    """
    started, head = time.perf_counter(), network.head
    tracked = name == "-" or Path(name).suffix.lower() == ".json" or Path(name).is_dir()
    if tracked:
        track = Track.load(name, head)
        check_head_model(name, track.head_model, head.model_id)
    else:
        track = track_source(Path(name), head, seed, progress)
    idx = most_frontal(track, name)
    samples = load_samples(track, [idx], network.portrait.config.size)
    puppet = network.of(source_view(samples, network.portrait.config.size))
    frame = track.frames[idx]
    shown = frame.image if frame.image is not None else f"{track.video}, frame {frame.frame_idx}"
    return Source(puppet, shown, None if tracked else time.perf_counter() - started)


def track_source(path: Path, head: HeadModel, seed: int = 0, progress: Progress | None = None) -> Track:
    """The track of one photo with one face. Its shape is not refined by rendering: the network sees the photo itself."""
    from avtool.tracking import TrackingOptions, track_photos

    options = TrackingOptions(photometric=False, one_face=True, seed=seed)
    return track_photos([path], head, photometric=False, options=options, progress=progress)


def most_frontal(track: Track, name: str) -> int:
    """The real frame whose face looks most nearly into the camera; the first of equal ones."""
    real = track.real_frames()
    if not real:
        raise AvtoolError(f"{name}: expected a photographed picture, found pseudo views only", "name the photo itself")
    angles = facing_angles(track.params(real), track.viewmats(real))
    return real[int(angles.argmin())]
