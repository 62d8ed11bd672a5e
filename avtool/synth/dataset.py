"""A multi-view data set of synthetic people: one directory an identity with images, mattes and a track of exact parameters.

    heads/person_0000/track.json, 000.png ... , 000_matte.png ...
    heads/contact_sheet.png, heads/dataset.json

Images are S x S head crops on white, framed by the same rule as crops of real photos. Person i of seed s is the same whatever `jobs` and
the number of identities are. A directory whose track.json exists is complete and is skipped, so an interrupted run goes on.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from avtool.artifacts.files import atomic_write, refuse_existing
from avtool.artifacts.track import Frame, Track
from avtool.capture.matte import head_crop
from avtool.errors import AvtoolError
from avtool.head import load_head_model
from avtool.synth.assets import open_assets
from avtool.synth.base import SynthHead
from avtool.synth.cameras import aim, pose_vertices
from avtool.synth.draw import Scene
from avtool.synth.identity import HeadParts, SyntheticPerson, sample_person
from avtool.synth.motion import Motion, sample_motion

MAX_YAW, MAX_PITCH = np.radians(90), np.radians(30)
FRONTAL_SHARE = 0.3  # of the views lie within about 12 degrees of the front, as photos of people do
BEHIND_SHARE = 0.06  # of the others see the back of the head
GENERATOR = 3  # raise when the same seed would give other people


@dataclass(frozen=True)
class DatasetOptions:
    """views: images a person; expressions: different moments a person, 0 for one a view; size: pixels; variety: of the light, 0 to 1."""

    identities: int = 64
    views: int = 24
    expressions: int = 0
    size: int = 256
    seed: int = 0
    samples: int = 2
    light_variety: float = 1.0
    texture_size: int = 1024
    assets: str | None = None

    def __post_init__(self) -> None:
        for name in ("identities", "views", "size", "samples", "texture_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


def sample_view(rng: np.random.Generator, first: bool) -> tuple[float, float, float, float]:
    """yaw, pitch, roll in radians and distance in metres; the first view of a person is almost frontal."""
    if first or rng.random() < FRONTAL_SHARE:
        yaw, pitch = rng.normal(0, 0.05 if first else 0.12), rng.normal(0, 0.04 if first else 0.08)
    else:
        yaw, pitch = rng.uniform(-MAX_YAW, MAX_YAW), rng.uniform(-MAX_PITCH, MAX_PITCH)
        if rng.random() < BEHIND_SHARE:
            yaw += np.pi
    return float(yaw), float(pitch), float(rng.normal(0, 0.03)), float(np.exp(rng.uniform(np.log(0.6), np.log(2.2))))


def frame_camera(landmarks: np.ndarray, viewmat: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """K (3, 3) of the size x size head crop around landmark points (L, 3), as `head_crop` frames real photos, jittered a little."""
    camera = landmarks @ viewmat[:3, :3].T + viewmat[:3, 3]
    unit = 4096.0  # a virtual full image, large enough that the rule's rounding to whole pixels does not matter
    x0, y0, side = head_crop(unit * camera[:, :2] / camera[:, 2:])
    side_jittered = side * np.exp(rng.normal(0, 0.05))
    x0, y0 = np.array([x0, y0]) + (side - side_jittered) / 2 + rng.normal(0, 0.02, 2) * side
    scale = size / side_jittered
    return np.array([[unit * scale, 0, -x0 * scale], [0, unit * scale, -y0 * scale], [0, 0, 1]])


def _save_png(path: Path, image: np.ndarray) -> None:
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        Image.fromarray(image).save(file, "PNG", compress_level=4)


def _person_rng(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([GENERATOR, seed, index])


def write_person(parts: HeadParts, index: int, directory: Path, options: DatasetOptions) -> Path:
    """Draw person `index` into a directory; returns its track file, which is written last."""
    track_file = directory / "track.json"
    if track_file.is_file():
        return track_file
    directory.mkdir(parents=True, exist_ok=True)
    model, rng = parts.head.model, _person_rng(options.seed, index)
    person = sample_person(parts, rng, options.light_variety, open_assets(options.assets))
    num_moments = options.expressions or options.views
    motions = [sample_motion(model.expression_names, rng, "neutral" if k == 0 else None) for k in range(num_moments)]
    frames = [_write_view(parts, person, motions[k % num_moments], k, directory, options, rng) for k in range(options.views)]
    metadata = {
        "generator": GENERATOR, "person": index, "look": {k: np.asarray(v).tolist() for k, v in asdict(person.look).items()},
        "source": "synthetic", "photographic": options.assets is not None, "light": "even" if person.lighting.even else "varied",
    }
    Track(
        head_model=model.model_id, identity=person.identity, offsets=person.offsets, frames=frames, seed=options.seed, metadata=metadata,
        base=directory,
    ).save(track_file)
    return track_file


def _write_view(
    parts: HeadParts, person: SyntheticPerson, motion: Motion, k: int, directory: Path, options: DatasetOptions, rng: np.random.Generator
) -> Frame:
    """Draw and save one view."""
    import torch

    model, size = parts.head.model, options.size
    vertices = pose_vertices(model, person.identity, motion, person.offsets)
    landmarks = model.landmarks(torch.from_numpy(vertices)).numpy().astype(np.float64)
    yaw, pitch, roll, distance = sample_view(rng, k == 0)
    viewmat = aim(yaw, pitch, roll, distance, landmarks.mean(0))
    K = frame_camera(landmarks, viewmat, size, rng)
    drawing = Scene(person.meshes(vertices, motion), person.lighting).draw(viewmat, K, (size, size), options.samples)
    image, matte = f"{k:03d}.png", f"{k:03d}_matte.png"
    _save_png(directory / image, drawing.over((1.0, 1.0, 1.0)))
    _save_png(directory / matte, np.round(255 * drawing.alpha).astype(np.uint8))
    camera = landmarks @ viewmat[:3, :3].T + viewmat[:3, 3]
    pixels = camera @ K.T
    return Frame(
        image=image, frame_idx=None, width=size, height=size, K=K, viewmat=viewmat, expression=motion.expression, neck=motion.neck,
        head=motion.head, jaw=motion.jaw, eyes=motion.eyes, landmarks=pixels[:, :2] / pixels[:, 2:], matte=matte,
        crop=(0.0, 0.0, float(size)),
    )


_PARTS: HeadParts | None = None


def _work(task: tuple[int, Path, DatasetOptions]) -> Path:
    """One person in a worker process, which keeps the head model between people."""
    global _PARTS
    import torch

    torch.set_num_threads(1)
    index, directory, options = task
    if _PARTS is None or _PARTS.texels.resolution != options.texture_size:
        _PARTS = HeadParts(SynthHead(load_head_model()), options.texture_size)
    return write_person(_PARTS, index, directory, options)


def _start_worker() -> None:
    """Ctrl-C ends a worker at once and silently; what it was drawing is drawn again by the next run."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def _interrupt_later() -> Iterator[None]:
    """Ctrl-C waits until the body is over, and in a process that is started inside until _start_worker().

    A worker that was hit while it still imports would print where.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def make_dataset(
    out: str | Path,
    options: DatasetOptions = DatasetOptions(),
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write (or complete) a data set.

    Args:
        out: its directory.
        options: what to draw.
        jobs: processes.
        progress: called with (people done, people in all).

    Returns:
        the track files in order.
    """
    out = Path(out)
    open_assets(options.assets)
    _claim(out, options)
    tasks = [(i, out / f"person_{i:04d}", options) for i in range(options.identities)]
    done = 0
    if jobs <= 1:
        for task in tasks:
            _work(task)
            done += 1
            if progress:
                progress(done, len(tasks))
    else:
        # Spawned rather than forked: torch's and numba's threads do not survive a fork.
        with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=get_context("spawn"), initializer=_start_worker) as pool:
            try:
                with _interrupt_later():
                    futures = [pool.submit(_work, task) for task in tasks]
                for future in as_completed(futures):
                    future.result()
                    done += 1
                    if progress:
                        progress(done, len(tasks))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    tracks = [task[1] / "track.json" for task in tasks]
    _save_png(out / "contact_sheet.png", contact_sheet(tracks))
    return tracks


def clear_dataset(out: str | Path) -> None:
    """Remove a data set that make_dataset wrote, and nothing else that may lie beside it."""
    out = Path(out)
    if not (out / "dataset.json").is_file():
        return
    for directory in out.glob("person_[0-9][0-9][0-9][0-9]*"):
        shutil.rmtree(directory)
    (out / "contact_sheet.png").unlink(missing_ok=True)
    (out / "dataset.json").unlink()


def _check_place(out: Path) -> None:
    """Refuse a place that cannot hold a data set, before any work."""
    if out.exists() and not out.is_dir():
        raise AvtoolError(f"{out}: already exists and is no directory", "choose another --output; --force removes data sets only")
    refuse_existing(out / "dataset.json" if out.is_dir() else out, force=True)


def _claim(out: Path, options: DatasetOptions) -> None:
    """Create the directory, or check that what lies there was made with the same options (more identities may be added)."""
    _check_place(out)
    out.mkdir(exist_ok=True)
    file = out / "dataset.json"
    wanted = {**asdict(options), "generator": GENERATOR, "assets": options.assets is not None}
    wanted.pop("identities")
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        different = [key for key in wanted if found.get(key) != wanted[key]]
        if different:
            key = different[0]
            raise AvtoolError(
                f"{out}: was made with {key} = {found.get(key)}, expected {wanted[key]}", "choose another directory, or start anew with --force"
            )
        return
    if any(entry.name.startswith("person_") for entry in os.scandir(out)):
        raise AvtoolError(f"{out}: holds people but no dataset.json", "choose another directory")
    with atomic_write(file) as temporary:
        Path(temporary).write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")


def contact_sheet(tracks: list[Path], people: int = 16, views: int = 8, side: int = 128) -> np.ndarray:
    """(H, W, 3) uint8: the first views of the first people, one row each, two columns of people."""
    rows = []
    for track in tracks[:people]:
        images = sorted(path for path in track.parent.glob("*.png") if "matte" not in path.name)[:views]
        row = [np.asarray(Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BOX)) for path in images]
        rows.append(np.concatenate(row, 1))
    if len(rows) > 1 and len(rows) % 2 == 0:
        half = len(rows) // 2
        return np.concatenate([np.concatenate(rows[:half]), np.concatenate(rows[half:])], 1)
    return np.concatenate(rows)
