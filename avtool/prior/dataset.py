"""Training data in memory: the tracked pictures of many people, as bytes, with everything else as tensors.

Shape legend: F pictures of all people, K identities, S x S pixels, I and E coefficients.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avtool.artifacts.track import Track
from avtool.capture.samples import load_samples
from avtool.errors import AvtoolError
from avtool.head import HeadModel, HeadParams
from avtool.prior.storage import check_head_model

LOADING_THREADS = 8  # decoding PNGs releases the interpreter lock


@dataclass
class TrainingSet:
    """All pictures of K identities.

    images (F, S, S, 3) uint8, mattes (F, S, S, 1) uint8, Ks (F, 3, 3), viewmats (F, 4, 4); params: expression and pose
    (F, ...), identity (K, I), offsets (K, V, 3) or None; frames: per identity the indices of its pictures.
    """

    names: list[str]
    frames: list[Tensor]
    images: Tensor
    mattes: Tensor
    Ks: Tensor
    viewmats: Tensor
    params: HeadParams

    @property
    def num_identities(self) -> int:
        """K."""
        return len(self.frames)

    @property
    def size(self) -> int:
        """S."""
        return self.images.shape[1]

    def fingerprint(self) -> str:
        """Changes with the people, their number of pictures and the size: a checkpoint resumes on the same data only."""
        counts = [f"{name}:{len(frames)}" for name, frames in zip(self.names, self.frames)]
        return hashlib.sha256(f"{self.size} {counts}".encode()).hexdigest()

    def to(self, device: torch.device | str) -> TrainingSet:
        """Move all tensors (bytes stay bytes); the index lists stay on the CPU with the sampler."""
        moved = {name: getattr(self, name).to(device) for name in ("images", "mattes", "Ks", "viewmats", "params")}
        return replace(self, **moved)

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


def load_training_set(
    directories: Sequence[str | Path],
    head: HeadModel,
    size: int,
    max_identities: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> TrainingSet:
    """Read every picture of a data set at `size` pixels into memory."""
    paths = find_tracks(directories)[:max_identities]

    def load(path: Path) -> tuple[Track, Tensor, Tensor, Tensor, Tensor, HeadParams]:
        track = Track.load(path, head)
        check_head_model(path, track.head_model, head.model_id)
        samples = load_samples(track, range(len(track.frames)), size, with_matte=True)
        images, mattes = ((x * 255).round().clamp(0, 255).byte() for x in (samples.images, samples.mattes))
        return track, images, mattes, samples.Ks, samples.viewmats, samples.params

    loaded = []
    with ThreadPoolExecutor(LOADING_THREADS) as pool:
        for item in pool.map(load, paths):
            loaded.append(item)
            if progress is not None:
                progress(len(loaded), len(paths), "people loaded")
    tracks, *columns, params = zip(*loaded)
    images, mattes, Ks, viewmats = (torch.cat(column) for column in columns)
    counts = [len(track.frames) for track in tracks]
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    return TrainingSet(
        names=[path.parent.name for path in paths],
        frames=[torch.arange(a, b) for a, b in zip(starts[:-1], starts[1:])],
        images=images,
        mattes=mattes,
        Ks=Ks,
        viewmats=viewmats,
        params=_join(params, tracks, head),
    )


def _join(params: Sequence[HeadParams], tracks: Sequence[Track], head: HeadModel) -> HeadParams:
    """Per-picture motion of all people in a row; identity and offsets once a person."""
    motion = {
        name: torch.cat([getattr(p, name) for p in params]) for name in ("expression", "neck", "head", "jaw", "eyes")
    }
    identity = torch.stack([torch.as_tensor(track.identity, dtype=torch.float32) for track in tracks])
    offsets = None
    if any(track.offsets is not None for track in tracks):
        zero = torch.zeros(head.num_vertices, 3)
        rows = [zero if t.offsets is None else torch.as_tensor(t.offsets, dtype=torch.float32) for t in tracks]
        offsets = torch.stack(rows)
    return HeadParams(identity=identity, offsets=offsets, **motion)


class BatchSampler:
    """Draws identities in shuffled rounds and, for each, distinct random pictures. Its state can be saved."""

    def __init__(self, frames: list[Tensor], identities: int, views: int, seed: int) -> None:
        self.frames = frames
        self.num_identities, self.num_views = min(identities, len(frames)), views
        self.generator = torch.Generator().manual_seed(seed)
        self.queue: list[int] = []

    def draw(self) -> tuple[Tensor, Tensor]:
        """Identities (I,) and picture indices (I * views,), grouped by identity; both on the CPU."""
        while len(self.queue) < self.num_identities:
            fresh = torch.randperm(len(self.frames), generator=self.generator).tolist()
            # Nobody twice in a batch: whoever still waits from the round before comes last in this one.
            waiting = set(self.queue)
            self.queue += sorted(fresh, key=lambda k: k in waiting)
        chosen, self.queue = self.queue[: self.num_identities], self.queue[self.num_identities :]
        pictures = [self._pictures(self.frames[k]) for k in chosen]
        return torch.tensor(chosen), torch.cat(pictures)

    def _pictures(self, frames: Tensor) -> Tensor:
        order = torch.randperm(len(frames), generator=self.generator)
        repeats = -(-self.num_views // len(frames))
        return frames[order.repeat(repeats)[: self.num_views]]

    def colors(self, count: int) -> Tensor:
        """Random background colors (count, 1, 1, 3): coverage must be learned, not hidden by a white wall."""
        return torch.rand(count, 1, 1, 3, generator=self.generator)

    def state(self) -> dict[str, Tensor]:
        """What load_state needs to go on with the same draws."""
        return {"generator": self.generator.get_state(), "queue": torch.tensor(self.queue, dtype=torch.int64)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on as saved."""
        self.generator.set_state(state["generator"].cpu())
        self.queue = state["queue"].tolist()
