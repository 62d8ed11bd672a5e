"""Pseudo multi-view data of a real person (Portrait4D-v2, arXiv 2403.13570, section 3.2): every real picture, and its moment from new cameras.

Pictures are read, drawn and written a few at a time. Shapes: B real pictures at once, N views of each, S x S pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avtool.artifacts.track import Track
from avtool.capture.samples import Samples, stream_samples
from avtool.errors import AvtoolError
from avtool.portrait.dataset import on_gray
from avtool.portrait.frontal import SOURCE_BACKGROUND
from avtool.portrait.objective import on_color
from avtool.portrait.pseudo_cameras import head_centers, turned_viewmats, view_angles
from avtool.portrait.pseudo_files import DataSetWriter, Instant, MontageRows, open_data_set, straight, to_bytes
from avtool.portrait.synthesizers import Draw, Synthesizer
from avtool.prior.drive import Driver, check_head_model
from avtool.prior.evaluate import spread
from avtool.prior.photos import beyond_photo

Progress = Callable[[int, int, str], None]

THRESHOLD = 0.08
"""Of disagreement(). Measured on 8 frames of each of four clips with fine-tuned avatars: the person's own 0.014 to 0.056 (sides that
no photo had shown, up to 0.10), a head misplaced by 1 cm 0.05 to 0.12, another person's avatar 0.136 and more. A trained portrait of
the preset small, which is shown the picture itself, has medians of 0.009 to 0.025 on those clips."""
COMPARED_SIDE = 64
"""Pictures are compared at this many pixels a side: an edge that is a pixel off in a fine picture is no disagreement."""
UNIT = "mean absolute difference of RGB in [0, 1] over the union of both mattes, both on gray, at 64 x 64 pixels or less"
READ_AT_ONCE = 8
MONTAGE_ROWS = 12


@dataclass(frozen=True)
class PseudoOptions:
    """yaw, pitch: degrees to either side of the real camera; spread: evenly, else at random; size: pixels, None for the
    synthesizer's own; every, max_frames: every so many-th real picture is used, so many at most; threshold: of disagreement()."""

    views: int = 4
    yaw: float = 40.0
    pitch: float = 15.0
    spread: bool = True
    seed: int = 0
    size: int | None = None
    every: int = 1
    max_frames: int | None = None
    threshold: float = THRESHOLD


@dataclass(frozen=True)
class PseudoReport:
    """What was made: real pictures kept and left out, pseudo pictures, median disagreement of all real pictures."""

    kept: int
    left_out: int
    pseudo: int
    disagreement: float
    threshold: float


def disagreement(real: Tensor, matte: Tensor, image: Tensor, alpha: Tensor, beyond: Tensor) -> Tensor:
    """How far drawn pictures are from real ones (B,), in UNIT: 0 equal, 1 where there is nothing to compare.

    Args:
        real: (B, S, S, 3). matte: (B, S, S, 1). image: (B, S, S, 3) premultiplied on black. alpha: (B, S, S, 1).
        beyond: (B, S, S, 1) bool where the crop reaches beyond the real picture; does not count.
    """
    known = (~beyond).float()
    weight = torch.maximum(matte, alpha) * known
    pictures = on_gray(real, matte) * known, on_color(image, alpha, SOURCE_BACKGROUND) * known
    side = min(COMPARED_SIDE, real.shape[1])
    a, b, weight = (F.adaptive_avg_pool2d(x.movedim(-1, 1), side) for x in (*pictures, weight))
    total = weight.sum((1, 2, 3))
    mean = ((a - b).abs().mean(1, keepdim=True) * weight).sum((1, 2, 3)) / total.clamp_min(1e-6)
    return torch.where(total > 1, mean, torch.ones_like(mean))


def make_pseudo_views(
    source: Driver, synthesizer: Synthesizer, output: Path, options: PseudoOptions, progress: Progress | None = None
) -> PseudoReport:
    """Writes the data set directory `output`, which must not exist or be one of these; AvtoolError when no picture agrees."""
    track = source.track
    check_head_model(track, synthesizer.head.model_id, source.name)
    size = options.size or synthesizer.size
    indices = chosen_frames(source, options)
    with open_data_set(output) as directory:
        writer = DataSetWriter(directory, track, size)
        rows = MontageRows(set(spread(len(indices), MONTAGE_ROWS)), options.threshold)
        done = 0
        for chosen, samples in stream_samples(track, indices, size, READ_AT_ONCE):
            for instant in _instants(track, chosen, samples, done, synthesizer, options):
                writer.add(instant)
                rows.add(instant)
                done += 1
                if progress is not None:
                    progress(done, len(indices), f"{writer.left_out} left out")
        found = sorted(writer.disagreements)
        report = PseudoReport(writer.kept, writer.left_out, writer.pseudo, found[len(found) // 2], options.threshold)
        if not report.kept:
            raise AvtoolError(
                f"{source.name}: all {done} real pictures disagree with their re-rendered views by more than {options.threshold:g}"
                f" (from {found[0]:.3f}, median {report.disagreement:.3f})",
                "is it the same person, well tracked? --threshold moves the limit",
            )
        rows.save(directory / "montage.png")
        writer.finish(description(synthesizer, options, size), UNIT)
    return report


def chosen_frames(source: Driver, options: PseudoOptions) -> list[int]:
    """Which frames of the track are used: real ones, every so many, so many at most. A video tracked here was thinned out then."""
    real = source.track.real_frames()
    if not real:
        raise AvtoolError(f"{source.name}: expected real pictures, found pseudo ones only", "name the track that they were made from")
    thinned = source.tracking_seconds is not None and source.is_clip
    return real[:: 1 if thinned else options.every][: options.max_frames]


def description(synthesizer: Synthesizer, options: PseudoOptions, size: int) -> dict[str, object]:
    """How the pseudo pictures were made, for the files."""
    made = {"synthesizer": synthesizer.name, "views": options.views, "yaw_degrees": options.yaw, "pitch_degrees": options.pitch}
    made |= {"cameras": "spread" if options.spread else "random", "seed": options.seed, "size": size, "threshold": options.threshold}
    return made | ({"portrait_stage": synthesizer.stage} if synthesizer.stage else {})


def _instants(
    track: Track, chosen: list[int], samples: Samples, first: int, synthesizer: Synthesizer, options: PseudoOptions
) -> Iterator[Instant]:
    """The moments of a few real pictures: their own view anew, and new views of those that agree, as many at once as fit."""
    draw, size = synthesizer.moments(samples), samples.images.shape[1]
    batch, count = synthesizer.batch(size), len(chosen)
    images, alphas = _drawn(draw, torch.arange(count), samples.viewmats, samples.Ks, batch)
    assert samples.mattes is not None
    found = disagreement(samples.images, samples.mattes, images, alphas, beyond_photo(track, chosen, size)).tolist()
    viewmats = _new_cameras(synthesizer, samples, first, options)
    again = on_color(images, alphas, SOURCE_BACKGROUND)
    group = max(1, batch // options.views)
    for start in range(0, count, group):
        part = range(start, min(start + group, count))
        agreeing = [k for k in part if found[k] <= options.threshold]
        views = {}
        if agreeing:
            which = torch.tensor(agreeing).repeat_interleave(options.views)
            drawn = _pictures(draw, which, viewmats[agreeing].flatten(0, 1), samples.Ks[which], batch)
            views = {k: drawn[i * options.views : (i + 1) * options.views] for i, k in enumerate(agreeing)}
        for k in part:
            yield Instant(
                number=first + k, frame_idx=chosen[k], K=samples.Ks[k], disagreement=found[k], image=samples.images[k],
                matte=samples.mattes[k], again=again[k], viewmats=viewmats[k], views=views.get(k),
            )  # fmt: skip


def _pictures(draw: Draw, which: Tensor, viewmats: Tensor, Ks: Tensor, batch: int) -> Tensor:
    """Straight colors and coverage (P, S, S, 4) uint8: what is kept of pictures is their bytes."""
    parts = zip(which.split(batch), viewmats.split(batch), Ks.split(batch))
    return torch.cat([to_bytes(torch.cat((straight(*drawn), drawn[1]), -1)) for drawn in (draw(*part) for part in parts)])


def _drawn(draw: Draw, which: Tensor, viewmats: Tensor, Ks: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Pictures and coverage of any number of cameras, a batch at a time."""
    parts = [draw(*part) for part in zip(which.split(batch), viewmats.split(batch), Ks.split(batch))]
    images, alphas = zip(*parts)
    return torch.cat(images), torch.cat(alphas)


@torch.no_grad()
def _new_cameras(synthesizer: Synthesizer, samples: Samples, first: int, options: PseudoOptions) -> Tensor:
    """(B, N, 4, 4) about the posed heads."""
    head = synthesizer.head
    centers = head_centers(head, head(samples.params.to(head.device)).vertices).cpu()
    yaw, pitch = math.radians(options.yaw), math.radians(options.pitch)
    angles = [
        view_angles(first + k, options.views, yaw, pitch, options.spread, options.seed) for k in range(len(samples.viewmats))
    ]
    yaws, pitches = (torch.stack(column) for column in zip(*angles))
    return turned_viewmats(samples.viewmats, centers, yaws, pitches)
