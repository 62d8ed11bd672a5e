"""Drive an avatar: a driver's motion, made this person's, rendered frame by frame into a video or PNGs.

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
from avtool.prior.avatar import Avatar
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
from avtool.prior.sinks import open_sink, parse_background

Progress = Callable[[int, int, str], None]

CAMERA_DISTANCE = 1.1  # metres: a portrait distance, where faces do not bulge
CAMERA_MARGIN = 2.3  # side of the square in landmark extents: hair, neck and the shoulders' start
SAME_PERSON_MM = 1.0  # two fits of one face differ by less than this, two people by about 2.5 mm RMS
PHOTO_FPS = 2.0
MAX_BATCH = 8  # more frames at once are no faster on two cores
CPU_BATCH_BYTES, GPU_BATCH_BYTES = 1 << 28, 1 << 31


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
    batch_size: int | None = None  # None: as many as `frames_at_once` allows
    max_frames: int | None = None


@dataclass(frozen=True)
class ReenactReport:
    """What was done. Rates count whole frames in the output file per second of wall time, encoding included."""

    frames: int
    fps: float
    size: int
    transfer: str
    render_seconds: float
    frames_per_second: float
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
    avatar: Avatar, driver: Driver, output: Path, options: ReenactOptions, progress: Progress | None = None
) -> ReenactReport:
    """Renders the avatar driven by `driver` into `output` (a video, a directory or a pattern of PNGs)."""
    background = parse_background(options.background, options.size)
    plan = plan_motion(avatar, driver, options)
    total = len(plan.motion)
    pictures = driver_pictures(driver.track, plan.crops, plan.sources, options.size) if options.side_by_side else None
    width = options.size * (2 if options.side_by_side else 1)
    fps = plan.motion.fps or PHOTO_FPS
    started = time.perf_counter()
    with open_sink(output, fps, (width, options.size), driver.video, driver.track.frames[0].timestamp or 0.0) as sink:
        for done, frame in enumerate(render_frames(avatar, plan.motion, background, options), start=1):
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
        tracking_seconds=tracked,
        frames_per_second_with_tracking=None if tracked is None else total / (seconds + tracked),
    )


def plan_motion(avatar: Avatar, driver: Driver, options: ReenactOptions) -> Plan:
    """The driver's motion filtered, transferred to this person, seen by the chosen camera, at the chosen rate."""
    track = driver.track
    crops = steady_crops(track)
    motion = driver_motion(track, crops, options.size)
    if options.smooth:
        motion = smooth(motion)
    names = avatar.head.expression_names
    transfer = choose_transfer(avatar, driver, options.transfer)
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
        viewmat, K, center = neutral_camera(avatar, options.size)
        motion = hold_bust(motion, viewmat, K)
        if options.camera == "orbit":
            motion = orbit(motion, center, CAMERA_DISTANCE)
    return Plan(motion, sources, crops, transfer)


def choose_transfer(avatar: Avatar, driver: Driver, wanted: str) -> str:
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
    return "absolute" if face_distance_mm(avatar, driver) < SAME_PERSON_MM else "relative"


def face_distance_mm(avatar: Avatar, driver: Driver) -> float:
    """RMS distance of the avatar's and the driver's neutral landmarks on the mesh, best shift removed, in millimetres."""
    head = avatar.head
    theirs = driver.track.params([0]).to(head.template.device).neutral()
    with torch.no_grad():
        ours = _landmarks(avatar)
        other = head.landmarks(head(theirs).vertices)[0]
    difference = (ours - ours.mean(0)) - (other - other.mean(0))
    return 1000 * float(difference.square().sum(-1).mean().sqrt())


def neutral_camera(avatar: Avatar, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The avatar's own frontal portrait camera: viewmat (4, 4), K (3, 3) for `size` pixels, the point it looks at (3,)."""
    points = _landmarks(avatar).cpu()
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


def frames_at_once(size: int, channels: int, device: torch.device) -> int:
    """How many frames of `size` pixels a batch may hold, from 1 to MAX_BATCH.

    A frame's largest moment is the network's first layer: its input and output and their copies in the network's layout,
    about three times the rendered channels (measured at 256 to 1024 pixels).
    """
    budget = CPU_BATCH_BYTES if device.type == "cpu" else GPU_BATCH_BYTES
    return max(1, min(MAX_BATCH, budget // (3 * 4 * channels * size * size)))


def render_frames(
    avatar: Avatar, motion: Motion, background: Tensor, options: ReenactOptions
) -> Iterator[NDArray[np.uint8]]:
    """(S, S, 3) uint8 frames in order, rendered in batches so that memory does not grow with the clip."""
    device = avatar.head.template.device
    solid = background if background.dim() == 1 else torch.zeros(3)
    channels = avatar.gapnet.config.appearance_channels if options.refine else 3
    count = options.batch_size or frames_at_once(options.size, channels, device)
    for start in range(0, len(motion), count):
        part = slice(start, start + count)
        fields = (motion.expression, motion.neck, motion.head, motion.jaw, motion.eyes)
        params = avatar.params_for(*(field[part].to(device) for field in fields))
        with torch.no_grad():
            images, alphas = avatar.render(
                params,
                motion.viewmats[part].to(device),
                motion.Ks[part].to(device),
                options.size,
                options.size,
                background=solid.to(device),
                refine=options.refine,
            )
            if background.dim() == 3:
                images = images + (1 - alphas) * background.to(device)
        yield from (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _landmarks(avatar: Avatar) -> Tensor:
    """(L, 3) landmarks of the avatar's neutral mesh."""
    head = avatar.head
    params = avatar.identity_params.neutral()
    with torch.no_grad():
        return head.landmarks(head(params).vertices).reshape(-1, 3)


def _first(motion: Motion, count: int) -> Motion:
    names = ("expression", "neck", "head", "jaw", "eyes", "viewmats", "Ks")
    return replace(motion, **{name: getattr(motion, name)[:count] for name in names})
