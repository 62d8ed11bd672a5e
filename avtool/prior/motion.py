"""What a driver does over time, and how it is made another person's: filtering, resampling, expression transfer, cameras.

Shapes: T frames, E expression coefficients; neck, head, jaw (T, 3) and eyes (T, 2, 3) axis-angle; viewmats (T, 4, 4) world to
camera with the bust's rigid pose in them; Ks (T, 3, 3) of the output square. Everything here is offline (the whole clip is
known) and pure: a Motion goes in, a Motion comes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from scipy.signal import savgol_filter
from torch import Tensor

from avtool.cameras import orbit_viewmats
from avtool.rotations import (
    axis_angle_to_quat,
    matrix_to_axis_angle,
    matrix_to_quat,
    quat_multiply,
    quat_to_matrix,
)

CameraMode = Literal["driver", "fixed", "orbit"]

POSE_WINDOW_S = 0.36  # Savitzky-Golay window of head pose: 9 frames at 25 fps, passes nods of up to about 4 Hz
EXPRESSION_WINDOW_S = 0.20  # expressions are faster than heads: 5 frames at 25 fps
FILTER_ORDER = 2
KEEP_BELOW, KEEP_ABOVE = 0.08, 0.25  # a change this far from its smooth course is jitter / is meant (blinks, plosives)
NEUTRAL_PERCENTILE = 15.0
CALM_FRACTION = 0.25
MIN_NEUTRAL_FRAMES = 10  # fewer frames do not tell a driver's neutral from an expression
MAX_NEUTRAL = 0.5  # an estimate above this is a held expression rather than a face shape
MAX_TURN = math.radians(50)  # beyond it, neck and head joints together leave what a person can do
ORBIT_YAW, ORBIT_PITCH = math.radians(30), math.radians(6)
ORBIT_SECONDS = 6.0


@dataclass(frozen=True)
class Motion:
    """A clip's parameters; `fps` is None for photos, which have no course in time to filter.

    embedding (T, M) is what a one-shot portrait's encoder saw in the driver's pictures, where it reads pictures; else None.
    """

    expression: Tensor
    neck: Tensor
    head: Tensor
    jaw: Tensor
    eyes: Tensor
    viewmats: Tensor
    Ks: Tensor
    fps: float | None
    embedding: Tensor | None = None

    def __len__(self) -> int:
        return self.expression.shape[0]

    def __getitem__(self, part: slice) -> Motion:
        return self._each(lambda values: values[part])

    def to(self, device: torch.device | str) -> Motion:
        """All tensors on `device`."""
        return self._each(lambda values: values.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Motion:
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "fps"}
        return replace(self, **{name: change(values) for name, values in tensors.items() if values is not None})


def smooth(motion: Motion) -> Motion:
    """Zero-phase filter: pose by Savitzky-Golay; expressions and gaze likewise, but large quick changes stay as they are.

    A blink lasts 3 to 8 frames: filtered like a pose it would never close. So the filtered course is used where the raw one
    stays near it (jitter) and the raw one where it leaves it (a blink, lips closing for a plosive).
    """
    if motion.fps is None or len(motion) < 5:
        return motion
    fast, slow = EXPRESSION_WINDOW_S * motion.fps, POSE_WINDOW_S * motion.fps
    rotation = _smooth_quats(matrix_to_quat(motion.viewmats[:, :3, :3]), slow)
    viewmats = motion.viewmats.clone()
    viewmats[:, :3, :3] = quat_to_matrix(rotation)
    viewmats[:, :3, 3] = _filter(motion.viewmats[:, :3, 3], slow)
    return replace(
        motion,
        expression=_filter_jitter(motion.expression, fast),
        neck=_smooth_axis_angles(motion.neck, slow),
        head=_smooth_axis_angles(motion.head, slow),
        jaw=_filter(motion.jaw, fast),
        eyes=_filter_jitter(motion.eyes, fast),  # saccades are jumps: filtered, the gaze would float
        viewmats=viewmats,
    )


def resample(motion: Motion, fps: float) -> Motion:
    """The same clip at another frame rate (linear in time, rotations on the sphere); its duration is kept."""
    if motion.fps is None or math.isclose(motion.fps, fps, rel_tol=1e-6):
        return replace(motion, fps=fps)
    low, high, weight = resample_positions(len(motion), motion.fps, fps)

    def linear(values: Tensor) -> Tensor:
        w = weight.reshape(-1, *[1] * (values.dim() - 1)).to(values)
        return values[low] * (1 - w) + values[high] * w

    quats = _continuous(matrix_to_quat(motion.viewmats[:, :3, :3]))
    viewmats = linear(motion.viewmats)
    viewmats[:, :3, :3] = quat_to_matrix(linear(quats))
    moved = {name: linear(getattr(motion, name)) for name in ("expression", "neck", "head", "jaw", "eyes", "Ks")}
    return Motion(**moved, viewmats=viewmats, fps=fps)


def resample_positions(num_frames: int, fps_in: float, fps_out: float) -> tuple[Tensor, Tensor, Tensor]:
    """For every output frame its two source frames (T',) int64 and the second one's weight (T',)."""
    count = max(1, round(num_frames * fps_out / fps_in))
    position = (torch.arange(count, dtype=torch.float64) * (fps_in / fps_out)).clamp(max=num_frames - 1)
    low = position.floor().long()
    return low, (low + 1).clamp(max=num_frames - 1), (position - low).float()


def has_unit_expressions(names: tuple[str, ...] | list[str]) -> bool:
    """Whether a head model's expression coefficients are ARKit-like weights in [0, 1] rather than signed components."""
    return "jawOpen" in names


def neutral_expression(expression: Tensor, names: tuple[str, ...] | list[str]) -> Tensor:
    """The driver's resting coefficients (E,), from a clip (T, E).

    Weights in [0, 1] rest at their low end: a low percentile over the clip, robust against a few frames of failed tracking.
    Signed components rest anywhere: the median over the calmest frames (nearest to the clip's median). Gaze is left out: where
    the driver looks most of the time is not a face shape.
    """
    if has_unit_expressions(names):
        rest = torch.quantile(expression, NEUTRAL_PERCENTILE / 100, dim=0).clamp(0.0, MAX_NEUTRAL)
        gaze = torch.tensor([name.startswith("eyeLook") for name in names], device=rest.device)
        return torch.where(gaze, torch.zeros_like(rest), rest)
    distance = (expression - expression.median(dim=0).values).norm(dim=-1)
    calm = distance.argsort()[: max(1, round(CALM_FRACTION * len(expression)))]
    return expression[calm].median(dim=0).values


def relative_expression(motion: Motion, names: tuple[str, ...] | list[str], target: Tensor | None = None) -> Motion:
    """Transfer relative to the driver's neutral: what is the driver's face shape does not reach the avatar.

    A weight in [0, 1] is rescaled, (e - n) / (1 - n), so that a fully closed eye still closes fully; signed components are
    shifted. The jaw joint is taken relative to its median over the calmest frames. Clips shorter than MIN_NEUTRAL_FRAMES
    come back unchanged.

    Args:
        motion: the driver's.
        names: (E,) names of the head model's expressions.
        target: (E,) the avatar's own resting coefficients; zero when None.
    """
    if len(motion) < MIN_NEUTRAL_FRAMES:
        return motion
    rest = neutral_expression(motion.expression, names)
    moved = motion.expression - rest
    goal = torch.zeros_like(rest) if target is None else target
    if has_unit_expressions(names):
        moved = (goal + moved * (1 - goal) / (1 - rest)).clamp(0.0, 1.0)
    else:
        moved = goal + moved
    calm = motion.jaw.norm(dim=-1).argsort()[: max(1, round(CALM_FRACTION * len(motion)))]
    return replace(motion, expression=moved, jaw=motion.jaw - motion.jaw[calm].median(dim=0).values)


def hold_bust(motion: Motion, viewmat: Tensor, K: Tensor) -> Motion:
    """The bust stands still before one camera; the driver's rigid turns, relative to its mean, go into neck and head.

    x_cam = R_t x = R_0 (D_t x) with D_t = R_0^T R_t: the turn D_t in the head model's frame is shared equally by both joints.

    Args:
        motion: the driver's, rigid pose in its viewmats.
        viewmat: (4, 4) the avatar's own camera.
        K: (3, 3).
    """
    quats = _continuous(matrix_to_quat(motion.viewmats[:, :3, :3]))
    mean = quat_to_matrix(torch.nn.functional.normalize(quats.median(dim=0).values, dim=-1))
    turn = matrix_to_axis_angle(mean.mT @ motion.viewmats[:, :3, :3])
    angle = turn.norm(dim=-1, keepdim=True)
    half = axis_angle_to_quat(turn * (angle.clamp(max=MAX_TURN) / angle.clamp(min=1e-8)) / 2)
    count = len(motion)
    return replace(
        motion,
        neck=_compose(half, motion.neck),
        head=_compose(half, motion.head),
        viewmats=viewmat.expand(count, 4, 4).clone(),
        Ks=K.expand(count, 3, 3).clone(),
    )


def orbit(motion: Motion, center: Tensor, radius: float) -> Motion:
    """The camera swings around the avatar, +-30 degrees a turn of six seconds; apply after `hold_bust`.

    Args:
        motion: held, its Ks aimed at `center`.
        center: (3,) the world point to look at.
        radius: camera distance in metres.
    """
    fps = motion.fps or 25.0
    phase = 2 * math.pi * torch.arange(len(motion)) / (ORBIT_SECONDS * fps)
    viewmats = orbit_viewmats(ORBIT_YAW * phase.sin(), ORBIT_PITCH * (2 * phase).sin(), radius, center.cpu())
    return replace(motion, viewmats=viewmats.to(motion.viewmats))


def _compose(turn: Tensor, joint: Tensor) -> Tensor:
    """Axis-angle (T, 3) of a joint rotation followed by a turn given as quats (T, 4)."""
    return matrix_to_axis_angle(quat_to_matrix(quat_multiply(turn, axis_angle_to_quat(joint))))


def _window(frames: float, count: int) -> int:
    """Odd filter length nearest to `frames` that fits the clip; below FILTER_ORDER + 2 there is nothing to filter."""
    length = 2 * round((frames - 1) / 2) + 1
    return min(length, count if count % 2 else count - 1)


def _filter(values: Tensor, frames: float) -> Tensor:
    length = _window(frames, values.shape[0])
    if length < FILTER_ORDER + 2:
        return values
    filtered = savgol_filter(values.detach().cpu().double().numpy(), length, FILTER_ORDER, axis=0, mode="interp")
    return torch.from_numpy(np.ascontiguousarray(filtered)).to(values)


def _filter_jitter(values: Tensor, frames: float) -> Tensor:
    filtered = _filter(values, frames)
    away = (values - filtered).abs()
    t = ((away - KEEP_BELOW) / (KEEP_ABOVE - KEEP_BELOW)).clamp(0, 1)
    return filtered + (3 * t**2 - 2 * t**3) * (values - filtered)


def _continuous(quats: Tensor) -> Tensor:
    """Signs flipped so that neighbours lie in one half of the sphere: (T, 4) -> (T, 4)."""
    dots = (quats[1:] * quats[:-1]).sum(-1)
    signs = torch.where(dots < 0, -torch.ones_like(dots), torch.ones_like(dots))
    return quats * torch.cat([torch.ones_like(dots[:1]) if len(dots) else quats.new_ones(1), signs.cumprod(0)])[:, None]


def _smooth_quats(quats: Tensor, frames: float) -> Tensor:
    return torch.nn.functional.normalize(_filter(_continuous(quats), frames), dim=-1)


def _smooth_axis_angles(values: Tensor, frames: float) -> Tensor:
    return matrix_to_axis_angle(quat_to_matrix(_smooth_quats(axis_angle_to_quat(values), frames)))
