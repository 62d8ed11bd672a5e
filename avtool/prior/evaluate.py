"""Measure an avatar against held-out frames of the same person.

Every frame is rendered with its own tracked camera, expression and pose and compared with the real frame, matte on a plain
background. Shapes: B frames of a batch, S side in pixels; images (B, S, S, 3) in [0, 1]; landmarks (478, 2) in crop pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avtool import __version__, metrics
from avtool.artifacts.track import Track
from avtool.capture.samples import Samples, load_samples
from avtool.head import HeadModel, HeadParams
from avtool.prior.photos import beyond_photo

Progress = Callable[[int, int, str], None]
Image8 = NDArray[np.uint8]

CHIN_MARGIN = 8 / 256  # of the picture's side, added below the chin landmark
MONTAGE_FRAMES = 12
MONTAGE_ROWS = 6
ERROR_GAIN = 3.0
BATCH = 8


class Subject(Protocol):
    """What can be evaluated: an Avatar, or anything else that is rendered like one."""

    head: HeadModel

    def params_for(self, expression: Tensor, neck: Tensor, head: Tensor, jaw: Tensor, eyes: Tensor) -> HeadParams: ...

    def render(
        self, params: HeadParams, viewmats: Tensor, Ks: Tensor, width: int, height: int, background: Tensor, refine: bool
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Meters:
    """Metrics that need files; a missing one has its reason in `absent`."""

    lpips: metrics.LpipsFunction | None = None
    lpips_backbone: str = "vgg"
    st_lpips: metrics.LpipsFunction | None = None
    st_lpips_backbone: str = "vgg"
    detect: Callable[[Image8], NDArray[np.float64] | None] | None = None
    recognizer: metrics.Recognizer | None = None
    absent: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EvalOptions:
    """`modes`: which pictures are measured, with the screen-space network and without."""

    size: int = 256
    modes: tuple[str, ...] = ("refined", "unrefined")
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    max_frames: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """`report` is what goes to metrics.json; `shown` are (real, render) pairs (S, S, 3) for a montage."""

    report: dict
    shown: list[tuple[NDArray[np.float32], NDArray[np.float32]]]


def load_meters(recognizer: str | None = None, lpips_backbone: str = "vgg", device: str = "cpu") -> Meters:
    """Everything that can be loaded here; the rest is a reason, not an error."""
    from avtool.capture import FaceTracker

    tracker, absent = FaceTracker(), {}

    def detect(image: Image8) -> NDArray[np.float64] | None:
        found = tracker(image)
        return None if found is None else np.asarray(found.points, np.float64)[:, :2]

    lpips, face = None, None
    try:
        lpips = metrics.load_lpips(lpips_backbone, device)
    except metrics.Unavailable as reason:
        absent["lpips"] = str(reason)
    st_lpips, st_lpips_backbone = None, lpips_backbone
    try:
        st_lpips, st_lpips_backbone = metrics.load_st_lpips(lpips_backbone, device)
    except metrics.Unavailable as reason:
        absent["st_lpips"] = str(reason)
    try:
        if recognizer is None:
            raise metrics.Unavailable("no face recognizer was named (--recognizer FILE)")
        face = metrics.load_recognizer(recognizer)
    except metrics.Unavailable as reason:
        absent["identity_similarity"] = str(reason)
    return Meters(lpips, lpips_backbone, st_lpips, st_lpips_backbone, detect, face, absent)


def evaluate(
    subject: Subject, track: Track, options: EvalOptions, meters: Meters, progress: Progress | None = None
) -> Evaluation:
    """Measures `subject` on the frames of `track` (all of them, or `options.max_frames` spread evenly)."""
    indices = spread(len(track.frames), options.max_frames)
    shown_at = set(spread(len(indices), MONTAGE_FRAMES))
    rows: dict[str, list[dict[str, float | None]]] = {mode: [] for mode in options.modes}
    shown = []
    for start in range(0, len(indices), BATCH):
        chosen = indices[start : start + BATCH]
        samples = load_samples(track, chosen, options.size, with_matte=True)
        real = on_background(samples, options.background)
        beyond = beyond_photo(track, chosen, options.size)[..., 0].numpy()
        landmarks = [sample_landmarks(track, i, samples, k, meters) for k, i in enumerate(chosen)]
        for mode in options.modes:
            images = render_samples(subject, samples, options, refine=mode == "refined")
            # Nobody knows how shoulders go on beyond a frame's border: background in both is no difference.
            images[beyond], real[beyond] = options.background, options.background
            rows[mode] += [measure(images[k], real[k], landmarks[k], meters) for k in range(len(chosen))]
            if mode == options.modes[0]:
                shown += [(real[k], images[k]) for k in range(len(chosen)) if start + k in shown_at]
        if progress is not None:
            progress(start + len(chosen), len(indices), "")
    report = {"schema": "metrics/1", "version": __version__, "protocol": _protocol(options, meters, len(indices))}
    report |= {mode: _summary(rows[mode]) for mode in options.modes}
    report["absent"] = meters.absent
    report["frames"] = [_frame_name(track, i) for i in indices]
    return Evaluation(report, shown)


def spread(count: int, wanted: int | None) -> list[int]:
    """`wanted` indices spread evenly over `count`; all of them when None or fewer exist."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return [int(round(x)) for x in np.linspace(0, count - 1, wanted)]


def render_samples(subject: Subject, samples: Samples, options: EvalOptions, refine: bool) -> NDArray[np.float32]:
    """(B, S, S, 3): the subject with each sample's camera, expression and pose."""
    device = subject.head.template.device
    p = samples.params
    params = subject.params_for(*(x.to(device) for x in (p.expression, p.neck, p.head, p.jaw, p.eyes)))
    background = torch.tensor(options.background, device=device)
    with torch.no_grad():
        images, _ = subject.render(
            params, samples.viewmats.to(device), samples.Ks.to(device), options.size, options.size,
            background=background, refine=refine,
        )  # fmt: skip
    return images.clamp(0, 1).cpu().numpy().astype(np.float32)


def on_background(samples: Samples, background: Sequence[float]) -> NDArray[np.float32]:
    """(B, S, S, 3): the real frames composited by their mattes."""
    images, mattes = samples.images, samples.mattes
    assert mattes is not None
    behind = (1 - mattes) * torch.tensor(background, dtype=images.dtype)
    return (images * mattes + behind).clamp(0, 1).cpu().numpy().astype(np.float32)


def measure(
    image: NDArray[np.float32], real: NDArray[np.float32], landmarks: NDArray[np.float64] | None, meters: Meters
) -> dict[str, float | None]:
    """All metrics of one frame; None where one cannot be computed on it."""
    row: dict[str, float | None] = {"psnr": metrics.psnr(image, real), "ssim": metrics.ssim(image, real)}
    size = real.shape[0]
    if landmarks is not None:
        mask = metrics.above_row(size, real.shape[1], float(landmarks[metrics.CHIN, 1]) + CHIN_MARGIN * size)
        row |= {"psnr_above_chin": metrics.psnr(image, real, mask), "ssim_above_chin": metrics.ssim(image, real, mask)}
    if meters.lpips is not None:
        row["lpips"] = meters.lpips(image, real)
    if meters.st_lpips is not None:
        row["st_lpips"] = meters.st_lpips(image, real)
    found = None
    if meters.detect is not None and landmarks is not None:
        found = meters.detect(to_bytes(image))
        row["landmark_distance"] = None if found is None else metrics.landmark_distance(found, landmarks)
        row["contour_distance"] = None if found is None else metrics.landmark_distance(found, landmarks, metrics.CONTOUR_IDS)
    if meters.recognizer is not None and landmarks is not None:
        pair = [(image, found), (real, landmarks)]
        row["identity_similarity"] = None if found is None else metrics.cosine(
            *(meters.recognizer(metrics.align_face(to_bytes(picture), points)) for picture, points in pair)
        )
    return row


def sample_landmarks(track: Track, idx: int, samples: Samples, k: int, meters: Meters) -> NDArray[np.float64] | None:
    """The real frame's landmarks (478, 2) in the sample's pixels: the track's, else detected now."""
    frame, size = track.frames[idx], samples.images.shape[1]
    if frame.landmarks is None:
        image = samples.images[k].clamp(0, 1).numpy()
        return None if meters.detect is None else meters.detect(to_bytes(image))
    # The crop is an affine map of pixels, so the two intrinsics give it without knowing how the sample was cut.
    full, cut = np.asarray(frame.K, np.float64), samples.Ks[k].double().numpy()
    scale = np.array([cut[0, 0] / full[0, 0], cut[1, 1] / full[1, 1]])
    offset = cut[:2, 2] - scale * full[:2, 2]
    assert size == samples.images.shape[2]
    return np.asarray(frame.landmarks, np.float64)[:, :2] * scale + offset


def montage(shown: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> Image8:
    """real | render | error, one row a frame, six rows a block; the error is |render - real| times three on black."""
    rows = [np.concatenate([real, image, np.abs(image - real) * ERROR_GAIN], axis=1) for real, image in shown]
    blocks = [rows[i : i + MONTAGE_ROWS] for i in range(0, len(rows), MONTAGE_ROWS)]
    blank = np.ones_like(rows[0])
    columns = [np.concatenate([*block, *[blank] * (len(blocks[0]) - len(block))], axis=0) for block in blocks]
    return to_bytes(np.concatenate(columns, axis=1))


def to_bytes(image: NDArray[np.float32]) -> Image8:
    """[0, 1] floats to 8 bits."""
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def _summary(rows: list[dict[str, float | None]]) -> dict[str, dict]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    return {name: {**metrics.summarize(values), "per_frame": values} for name, values in columns.items()}


def _protocol(options: EvalOptions, meters: Meters, num_frames: int) -> dict:
    return {
        "resolution": options.size,
        "crop": "the crop square of each track frame",
        "mask": "real frames composited by the track's mattes; renders by their own alpha; background beyond a frame's border",
        "background": list(options.background),
        "num_frames": num_frames,
        "camera": "each frame's own tracked camera, expression and pose",
        "psnr": "peak 1, mean over pixels and channels",
        "ssim": "scikit-image, Gaussian window 11, sigma 1.5, mean over channels",
        "above_chin": f"rows above MediaPipe landmark {metrics.CHIN} plus {CHIN_MARGIN:.4f} of the side",
        "landmark_distance": "mean over 478 landmarks, render re-detected, % of the distance of outer eye corners",
        "contour_distance": f"the same over {len(metrics.CONTOUR_IDS)} points of brows, eyes, nose and lips",
        "lpips_backbone": meters.lpips_backbone if meters.lpips is not None else None,
        "st_lpips": "shift-tolerant LPIPS (Ghildyal and Liu 2022)",
        "st_lpips_backbone": meters.st_lpips_backbone if meters.st_lpips is not None else None,
        "recognizer": meters.recognizer.name if meters.recognizer is not None else None,
    }


def _frame_name(track: Track, idx: int) -> str | int:
    frame = track.frames[idx]
    return frame.image if frame.image is not None else int(frame.frame_idx)
