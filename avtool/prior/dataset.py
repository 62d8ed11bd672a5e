"""Training data in memory: the tracked pictures of many people, as bytes, with everything else as tensors.

A data set on the command line may end in "=WEIGHT": how often its people are drawn, where 1 is usual.

Shape legend: F pictures of all people, K identities, S x S pixels, I and E coefficients.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avtool.artifacts.track import Track
from avtool.cameras import crop_intrinsics
from avtool.capture.samples import read_crops
from avtool.errors import AvtoolError
from avtool.head import HeadModel, HeadParams
from avtool.prior.storage import check_head_model

MOTION = ("expression", "neck", "head", "jaw", "eyes")
LOADING_THREADS = 8  # decoding PNGs releases the interpreter lock


@dataclass
class TrainingSet:
    """All pictures of K identities.

    images (F, S, S, 3) uint8, mattes (F, S, S, 1) uint8, Ks (F, 3, 3), viewmats (F, 4, 4); params: expression and pose
    (F, ...), identity (K, I), offsets (K, V, 3) or None; frames: per identity the indices of its pictures; weights: per identity how often it
    is drawn, relative to the others; pseudo (F,) bool: made from another picture, not photographed or drawn.
    """

    names: list[str]
    frames: list[Tensor]
    images: Tensor
    mattes: Tensor
    Ks: Tensor
    viewmats: Tensor
    params: HeadParams
    weights: list[float]
    pseudo: Tensor

    @property
    def num_identities(self) -> int:
        """K."""
        return len(self.frames)

    @property
    def size(self) -> int:
        """S."""
        return self.images.shape[1]

    def fingerprint(self) -> str:
        """Changes with the people, their number of pictures, the size, unequal weights and which pictures are pseudo: a checkpoint
        resumes on the same data only."""
        counts = [f"{name}:{len(frames)}" for name, frames in zip(self.names, self.frames)]
        text = f"{self.size} {counts}"
        if len(set(self.weights)) > 1:
            text += f" {[round(weight / max(self.weights), 9) for weight in self.weights]}"
        if bool(self.pseudo.any()):
            text += f" {self.pseudo.nonzero()[:, 0].tolist()} pseudo"
        return hashlib.sha256(text.encode()).hexdigest()

    def to(self, device: torch.device | str) -> TrainingSet:
        """Move all tensors (bytes stay bytes); the index lists stay on the CPU with the sampler."""
        moved = {name: getattr(self, name).to(device) for name in ("images", "mattes", "Ks", "viewmats", "params", "pseudo")}
        return replace(self, **moved)

    def real_frames(self, person: int) -> Tensor:
        """Indices of a person's real pictures; of all where all are pseudo."""
        frames = self.frames[person]
        real = frames[~self.pseudo.cpu()[frames]]
        return real if len(real) else frames

    def halved(self) -> TrainingSet:
        """The same pictures at half the size (means of 2 x 2 pixels), everything else shared."""

        def pooled(pictures: Tensor) -> Tensor:
            # A few at a time: all of them as floats would be four times the data set.
            means = [F.avg_pool2d(part.movedim(-1, 1).float(), 2).round().byte().movedim(1, -1) for part in pictures.split(256)]
            return torch.cat(means).contiguous()

        scale = self.Ks.new_tensor((0.5, 0.5, 1.0))[:, None]
        return replace(self, images=pooled(self.images), mattes=pooled(self.mattes), Ks=self.Ks * scale)

    def targets(self, index: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures on a background color (B, 1, 1, 3) and mattes, both float, at picture indices (B,)."""
        alphas = self.mattes[index].float() / 255
        images = self.images[index].float() / 255
        return images * alphas + (1 - alphas) * background, alphas


def find_tracks(directories: Sequence[str | Path]) -> list[Path]:
    """Track files of a data set: each argument is a track file, a person's directory or a directory of such."""
    found: list[Path] = []
    for directory in map(Path, directories):
        if directory.is_file():
            found.append(directory)
            continue
        if not directory.is_dir():
            raise AvtoolError(f"{directory}: no such data set", "make one with: avtool synth-data -o heads/")
        here = directory / "track.json"
        tracks = [here] if here.is_file() else sorted(directory.glob("*/track.json"))
        if not tracks:
            raise AvtoolError(
                f"{directory}: expected track.json, or one directory with a track.json per person, found neither",
                "make one with: avtool synth-data -o heads/",
            )
        found += tracks
    return found


def split_weight(argument: str | Path) -> tuple[Path, float]:
    """"DATASET=WEIGHT" as both; the weight is 1 where none is written, or where something of that very name exists."""
    path, (name, equals, number) = Path(argument), str(argument).rpartition("=")
    if not (equals and name) or path.exists():
        return path, 1.0
    try:
        weight = float(number)
    except ValueError:
        return path, 1.0  # a name with "=" in it that does not exist: said by whoever looks for it
    if not (weight > 0 and math.isfinite(weight)):
        raise AvtoolError(f"{argument}: expected a weight above 0 after =, found {number}", "leave the data set out instead of weight 0")
    return Path(name), weight


def chosen_tracks(
    directories: Sequence[str | Path], light: str = "any", max_identities: int | None = None, head: HeadModel | None = None
) -> list[tuple[Path, float]]:
    """Track files of data sets with the weights of their people, at most `max_identities` of them.

    light: "even" leaves out who is lit unevenly, as the track's metadata say; who has no such entry (a real person) stays.
    head: as for Track.load().
    """
    sources = [split_weight(directory) for directory in directories]
    tracks = [(track, weight) for path, weight in sources for track in find_tracks([path])]
    if light == "any":
        return tracks[:max_identities]
    chosen: list[tuple[Path, float]] = []
    for track, weight in tracks:
        if len(chosen) == max_identities:
            break
        if Track.load(track, head).metadata.get("light", light) == light:
            chosen.append((track, weight))
    if not chosen:
        names = ", ".join(str(path) for path, _ in sources)
        raise AvtoolError(f"{names}: nobody is lit with {light} light", "train with --light any, or draw people with even light")
    return chosen


def load_training_set(
    directories: Sequence[str | Path],
    head: HeadModel,
    size: int,
    max_identities: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    light: str = "any",
) -> TrainingSet:
    """Read every picture of data sets at `size` pixels into memory; `directories` and `light` as in chosen_tracks()."""
    paths, weights = zip(*chosen_tracks(directories, light, max_identities, head))
    tracks = [_checked_track(path, head) for path in paths]
    counts = [len(track.frames) for track in tracks]
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    frames = [torch.arange(a, b) for a, b in zip(starts[:-1], starts[1:])]
    # Made once and filled by the threads: a list of everybody's pictures, then joined, would be the data set twice.
    images, mattes = (torch.empty(starts[-1], size, size, channels, dtype=torch.uint8) for channels in (3, 1))

    def load(track: Track, own: Tensor) -> tuple[Tensor, Tensor, HeadParams]:
        count, first = range(len(own)), int(own[0])
        for idx, crop in read_crops(track, count, size):
            pixels = torch.from_numpy(crop)
            images[first + idx], mattes[first + idx] = pixels[..., :3], pixels[..., 3:]
        crops = torch.tensor([frame.crop for frame in track.frames], dtype=torch.float32)
        return crop_intrinsics(track.Ks(count), crops, size), track.viewmats(count), track.params(count)

    loaded = []
    with ThreadPoolExecutor(LOADING_THREADS) as pool:
        for item in pool.map(load, tracks, frames):
            loaded.append(item)
            if progress is not None:
                progress(len(loaded), len(paths), "people loaded")
    Ks, viewmats, params = zip(*loaded)
    return TrainingSet(
        names=[path.parent.name for path in paths],
        frames=frames,
        images=images,
        mattes=mattes,
        Ks=torch.cat(Ks),
        viewmats=torch.cat(viewmats),
        params=_join(params, tracks, head),
        weights=list(weights),
        pseudo=torch.tensor([frame.pseudo is not None for track in tracks for frame in track.frames]),
    )


def group_moments(params: HeadParams, frames: Tensor) -> list[Tensor]:
    """Pictures (n,) of one person -> groups with exactly equal motion, in the order of their first pictures."""
    motion = torch.cat([getattr(params, name)[frames].flatten(1) for name in MOTION], dim=1)
    groups: dict[bytes, list[int]] = {}
    for frame, row in zip(frames.tolist(), motion.cpu().numpy() + 0.0):  # -0.0 is 0.0
        groups.setdefault(row.tobytes(), []).append(frame)
    return [torch.tensor(group) for group in groups.values()]


def real_twins(data: TrainingSet) -> dict[int, Tensor]:
    """Per pseudo picture of a moment that has real ones: those, as indices on the CPU."""
    pseudo, twins = data.pseudo.cpu(), {}
    for frames in data.frames:
        if not bool(pseudo[frames].any()):
            continue
        for moment in group_moments(data.params, frames):
            real = moment[~pseudo[moment]]
            if len(real):
                twins |= {picture: real for picture in moment[pseudo[moment]].tolist()}
    return twins


def require_real_pictures(data: TrainingSet) -> None:
    """AvtoolError when somebody has pseudo pictures only: nothing says what colors this person has."""
    pseudo = data.pseudo.cpu()
    for name, frames in zip(data.names, data.frames):
        if bool(pseudo[frames].all()):
            raise AvtoolError(
                f"{name}: expected a real picture beside the {len(frames)} pseudo pictures, found none",
                "keep the real frames in the track: pseudo pictures carry geometry, not colors",
            )


def _checked_track(path: Path, head: HeadModel) -> Track:
    track = Track.load(path, head)
    check_head_model(path, track.head_model, head.model_id)
    return track


def _join(params: Sequence[HeadParams], tracks: Sequence[Track], head: HeadModel) -> HeadParams:
    """Per-picture motion of all people in a row; identity and offsets once a person."""
    motion = {
        name: torch.cat([getattr(p, name) for p in params]) for name in MOTION
    }
    identity = torch.stack([torch.as_tensor(track.identity, dtype=torch.float32) for track in tracks])
    offsets = None
    if any(track.offsets is not None for track in tracks):
        zero = torch.zeros(head.num_vertices, 3)
        rows = [zero if t.offsets is None else torch.as_tensor(t.offsets, dtype=torch.float32) for t in tracks]
        offsets = torch.stack(rows)
    return HeadParams(identity=identity, offsets=offsets, **motion)
