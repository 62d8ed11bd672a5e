"""Drive a person: a driver's motion, made this person's, rendered frame by frame into a video or PNGs.

The person is a Puppet: an avatar, or a portrait of one photo.

Shapes: T frames; images (B, S, S, 3) in [0, 1]; world is the head model's space in meters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avtool.cameras import crop_intrinsics, intrinsics, project
from avtool.errors import AvtoolError
from avtool.prior.drive import Driver, driver_motion, driver_pictures, steady_crops
from avtool.prior.motion import (
    MIN_NEUTRAL_FRAMES,
    CameraMode,
    Motion,
    has_unit_expressions,
    hold_bust,
    orbit,
    relative_expression,
    resample,
    resample_positions,
    smooth,
)
from avtool.prior.puppet import Puppet
from avtool.prior.sinks import open_sink, parse_background

Progress = Callable[[int, int, str], None]

CAMERA_DISTANCE = 1.1  # metres: a portrait distance, where faces do not bulge
CAMERA_MARGIN = 2.3  # side of the square in landmark extents: hair, neck and the shoulders' start
SAME_PERSON_MM = 1.0  # two fits of one face differ by less than this, two people by about 2.5 mm RMS
PHOTO_FPS = 2.0


@dataclass(frozen=True)
class ReenactOptions:
    """How the driver is used. `transfer`: auto is relative when the driver is another person."""

    camera: CameraMode = "driver"
    background: str = "white"
    size: int = 256
    fps: float | None = None
    side_by_side: bool = False
    transfer: Literal["auto", "relative", "absolute"] = "auto"
    smooth: bool = True
    refine: bool = True
    batch_size: int | None = None  # None: as many as Puppet.frames_at_once() allows
    max_frames: int | None = None


@dataclass(frozen=True)
class ReenactReport:
    """What was done. Rates count whole frames in the output file per second of wall time, encoding included.

    source_seconds: what a photo took to be tracked and encoded; tracking_seconds: the driver's. The rate with tracking counts both;
    None where a track was made beforehand, or of a source where there is none.
    """

    frames: int
    fps: float
    size: int
    transfer: str
    render_seconds: float
    frames_per_second: float
    source_seconds: float | None
    tracking_seconds: float | None
    frames_per_second_with_tracking: float | None


@dataclass(frozen=True)
class Plan:
    """A motion ready to render, and for each of its frames the driver's frame it came from."""

    motion: Motion
    sources: list[int]
    crops: NDArray[np.float64]
    transfer: str


def reenact(
    puppet: Puppet,
    driver: Driver,
    output: Path,
    options: ReenactOptions,
    progress: Progress | None = None,
    source_seconds: float | None = None,
) -> ReenactReport:
    """Renders the puppet driven by `driver` into `output` (a video, a directory or a pattern of PNGs).

    Args:
        progress: called with (done, total, message).
        source_seconds: what making the puppet of a photo took, for the report.
    """
    background = parse_background(options.background, options.size)
    started = time.perf_counter()
    plan = plan_motion(puppet, driver, options)
    total = len(plan.motion)
    pictures = driver_pictures(driver.track, plan.crops, plan.sources, options.size) if options.side_by_side else None
    width = options.size * (2 if options.side_by_side else 1)
    fps = plan.motion.fps or PHOTO_FPS
    with open_sink(output, fps, (width, options.size), driver.video, driver.track.frames[0].timestamp or 0.0) as sink:
        for done, frame in enumerate(render_frames(puppet, plan.motion, background, options), start=1):
            sink.write(frame if pictures is None else np.concatenate([next(pictures), frame], axis=1))
            if progress is not None:
                progress(done, total, f"{done / (time.perf_counter() - started):.1f} frames/s")
    seconds = time.perf_counter() - started
    tracked = driver.tracking_seconds
    return ReenactReport(
        frames=total,
        fps=fps,
        size=options.size,
        transfer=plan.transfer,
        render_seconds=seconds,
        frames_per_second=total / seconds,
        source_seconds=source_seconds,
        tracking_seconds=tracked,
        frames_per_second_with_tracking=None if tracked is None else total / (seconds + tracked + (source_seconds or 0.0)),
    )


def plan_motion(puppet: Puppet, driver: Driver, options: ReenactOptions) -> Plan:
    """The driver's motion filtered, transferred to this person, seen by the chosen camera, at the chosen rate."""
    track = driver.track
    crops = steady_crops(track)
    motion = driver_motion(track, crops, options.size)
    if options.smooth:
        motion = smooth(motion)
    names = puppet.head.expression_names
    transfer = choose_transfer(puppet, driver, options.transfer)
    if transfer == "relative":
        motion = relative_expression(motion, names)
    if has_unit_expressions(names):
        motion = replace(motion, expression=motion.expression.clamp(0.0, 1.0))
    sources = list(range(len(motion)))
    if options.fps is not None and motion.fps is not None:
        low, high, weight = resample_positions(len(motion), motion.fps, options.fps)
        sources = torch.where(weight < 0.5, low, high).tolist()
        motion = resample(motion, options.fps)
    elif options.fps is not None:
        motion = replace(motion, fps=options.fps)
    if options.max_frames is not None and len(motion) > options.max_frames:
        motion, sources = _first(motion, options.max_frames), sources[: options.max_frames]
    if options.camera != "driver":
        viewmat, K, center = neutral_camera(puppet, options.size)
        motion = hold_bust(motion, viewmat, K)
        if options.camera == "orbit":
            motion = orbit(motion, center, CAMERA_DISTANCE)
    motion = puppet.watch(motion, track, sources)
    return Plan(motion, sources, crops, transfer)


def choose_transfer(puppet: Puppet, driver: Driver, wanted: str) -> str:
    """"relative" or "absolute": auto compares the faces, and few frames do not show a driver's neutral."""
    if len(driver.track.frames) < MIN_NEUTRAL_FRAMES:
        if wanted == "relative":
            raise AvtoolError(
                f"{driver.name}: {len(driver.track.frames)} frames do not show the driver's neutral face",
                f"--relative needs at least {MIN_NEUTRAL_FRAMES}; leave it out",
            )
        return "absolute"
    if wanted != "auto":
        return wanted
    return "absolute" if face_distance_mm(puppet, driver) < SAME_PERSON_MM else "relative"


def face_distance_mm(puppet: Puppet, driver: Driver) -> float:
    """RMS distance of the puppet's and the driver's neutral landmarks on the mesh, best shift removed, in millimetres."""
    head = puppet.head
    theirs = driver.track.params([0]).to(head.template.device).neutral()
    with torch.no_grad():
        ours = _landmarks(puppet)
        other = head.landmarks(head(theirs).vertices)[0]
    difference = (ours - ours.mean(0)) - (other - other.mean(0))
    return 1000 * float(difference.square().sum(-1).mean().sqrt())


def neutral_camera(puppet: Puppet, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The puppet's own frontal portrait camera: viewmat (4, 4), K (3, 3) for `size` pixels, the point it looks at (3,)."""
    points = _landmarks(puppet).cpu()
    center = (points.amin(0) + points.amax(0)) / 2
    viewmat = torch.eye(4)
    viewmat[:3, :3] = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    viewmat[:3, 3] = torch.tensor([0.0, 0.0, CAMERA_DISTANCE]) - viewmat[:3, :3] @ center
    K = intrinsics(1000.0, 0, 0)
    uv, _ = project(points, viewmat, K)
    low, high = uv.amin(0), uv.amax(0)
    side = float((high - low).max()) * CAMERA_MARGIN
    middle = (low + high) / 2
    square = torch.tensor([float(middle[0]) - side / 2, float(middle[1]) - side / 2, side])
    return viewmat, crop_intrinsics(K, square, size), center


def render_frames(
    puppet: Puppet, motion: Motion, background: Tensor, options: ReenactOptions
) -> Iterator[NDArray[np.uint8]]:
    """(S, S, 3) uint8 frames in order, rendered in batches so that memory does not grow with the clip."""
    device = puppet.head.device
    background = background.to(device)
    solid = background if background.dim() == 1 else torch.zeros(3, device=device)
    count = options.batch_size or puppet.frames_at_once(options.size, options.refine)
    for start in range(0, len(motion), count):
        images, alphas = puppet.perform(motion[start : start + count].to(device), options.size, solid, options.refine)
        if background.dim() == 3:
            images = images + (1 - alphas) * background
        yield from (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _landmarks(puppet: Puppet) -> Tensor:
    """(L, 3) landmarks of the puppet's neutral mesh."""
    head = puppet.head
    params = puppet.identity_params.neutral()
    with torch.no_grad():
        return head.landmarks(head(params).vertices).reshape(-1, 3)


def _first(motion: Motion, count: int) -> Motion:
    names = ("expression", "neck", "head", "jaw", "eyes", "viewmats", "Ks")
    return replace(motion, **{name: getattr(motion, name)[:count] for name in names})
