"""Zero-phase smoothing of a tracked clip: filters that look as far ahead as back, so nothing lags.

Shapes: T frames. Gaps (frames without a face) split a clip into runs that are smoothed by themselves.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import savgol_filter

from . import so3
from .landmark_fit import Fit
from .landmark_model import LandmarkModel

POSE_SECONDS = 0.28
EXPRESSION_SECONDS = 0.2
DEPTH_SECONDS = 0.08
BUST_SECONDS = 0.16


def smooth_fit(fit: Fit, model: LandmarkModel, expression_names: list[str], runs: list[slice], fps: float) -> Fit:
    """Smooths pose, gaze and expression of T frames; blinks are left as they are, for they last two or three frames.

    Args:
        runs: contiguous frames.
        fps: tracked frames per second.
    """
    rotations, translations = fit.rotations.copy(), fit.translations.copy()
    expression, gaze, jaw = fit.expression.copy(), fit.gaze.copy(), fit.jaw.copy()
    lively = np.array([expression_names[i].startswith(("eyeBlink", "jawOpen")) if expression_names else False
                       for i in model.expression_idx])  # fmt: skip
    low, high = model.expression_bounds
    for run in runs:
        rotations[run] = smooth_rotations(fit.rotations[run], lambda x: polynomial(x, POSE_SECONDS, fps))
        translations[run] = _smooth_translations(fit.translations[run], fps)
        expression[run] = np.where(lively, fit.expression[run], polynomial(fit.expression[run], EXPRESSION_SECONDS, fps))
        gaze[run] = _median3(fit.gaze[run])
        jaw[run] = fit.jaw[run]
    return replace(
        fit, rotations=rotations, translations=translations, expression=np.clip(expression, low, high), gaze=gaze, jaw=jaw
    )


def polynomial(values: np.ndarray, seconds: float, fps: float) -> np.ndarray:
    """Savitzky-Golay of second order over a window of so many seconds along axis 0: keeps peaks."""
    window = 2 * int(round(seconds * fps / 2)) + 1
    window = min(window, len(values) - (1 - len(values) % 2))
    if window < 5:
        return values
    return savgol_filter(values, window, 2, axis=0, mode="interp")


def smooth_rotations(rotations: np.ndarray, smooth) -> np.ndarray:
    """Rotations (T, 3, 3) smoothed in the tangent space at the middle frame by ``smooth`` on (T, 3)."""
    middle = rotations[len(rotations) // 2]
    return so3.exp(smooth(so3.log(rotations @ middle.T))) @ middle


def gaussian(values: np.ndarray, seconds: float, fps: float) -> np.ndarray:
    """Gaussian of so many seconds (sigma) along axis 0."""
    return gaussian_filter1d(values, seconds * fps, axis=0, mode="nearest")


def _smooth_translations(translations: np.ndarray, fps: float) -> np.ndarray:
    """Depth is the least certain coordinate: it is smoothed more, along the line of sight."""
    direction = translations[:, :2] / translations[:, 2:]
    depth = np.exp(gaussian(np.log(translations[:, 2]), DEPTH_SECONDS, fps))
    direction = polynomial(direction, POSE_SECONDS, fps)
    return np.concatenate([direction * depth[:, None], depth[:, None]], 1)


def _median3(values: np.ndarray) -> np.ndarray:
    if len(values) < 3:
        return values
    padded = np.concatenate([values[:1], values, values[-1:]])
    return np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)
