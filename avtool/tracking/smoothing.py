"""Zero-phase smoothing of a tracked clip: filters that look as far ahead as back, so nothing lags.

Shapes: T frames. Gaps (frames without a face) split a clip into runs that are smoothed by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import savgol_filter

from . import so3
from .fit_state import Fit
from .landmark_model import LandmarkModel

ROTATION_SECONDS = 0.2
DEPTH_SECONDS = 0.04
EXPRESSION_SECONDS = 0.02
BUST_SECONDS = 0.16


def smooth_pose(rotations: np.ndarray, runs: list[slice], fps: float) -> np.ndarray:
    """Rotations (T, 3, 3) of the first stage, smoothed before the second stage lays the mesh onto the picture.

    Args:
        runs: contiguous frames.
        fps: tracked frames per second.
    """
    smooth = rotations.copy()
    for run in runs:
        smooth[run] = smooth_rotations(rotations[run], lambda x: polynomial(x, ROTATION_SECONDS, fps))
    return smooth


def smooth_rest(fit: Fit, model: LandmarkModel, expression_names: list[str], runs: list[slice], fps: float) -> Fit:
    """Smooths depth, expression and gaze of T frames after the second stage.

    The place in the image is left alone, for it is what landmarks measure best; so are blinks, which last two or three
    frames, and the jaw.
    """
    translations, expression, gaze = fit.translations.copy(), fit.expression.copy(), fit.gaze.copy()
    lively = [bool(expression_names) and expression_names[i].startswith(("eyeBlink", "jawOpen")) for i in model.expression_idx]
    for run in runs:
        depth = np.exp(gaussian(np.log(translations[run, 2:]), DEPTH_SECONDS, fps))
        translations[run] *= depth / translations[run, 2:]
        expression[run] = np.where(lively, expression[run], gaussian(expression[run], EXPRESSION_SECONDS, fps))
        gaze[run] = _median3(gaze[run])
    return replace(fit, translations=translations, expression=expression, gaze=gaze)


def polynomial(values: np.ndarray, seconds: float, fps: float) -> np.ndarray:
    """Savitzky-Golay of second order over a window of so many seconds along axis 0: keeps peaks."""
    window = 2 * int(round(seconds * fps / 2)) + 1
    window = min(window, len(values) - (1 - len(values) % 2))
    if window < 5:
        return values
    return savgol_filter(values, window, 2, axis=0, mode="interp")


def smooth_rotations(rotations: np.ndarray, smooth: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Rotations (T, 3, 3) smoothed in the tangent space at the middle frame by ``smooth`` on (T, 3)."""
    middle = rotations[len(rotations) // 2]
    return so3.exp(smooth(so3.log(rotations @ middle.T))) @ middle


def gaussian(values: np.ndarray, seconds: float, fps: float) -> np.ndarray:
    """Gaussian of so many seconds (sigma) along axis 0."""
    return gaussian_filter1d(values, seconds * fps, axis=0, mode="nearest")


def _median3(values: np.ndarray) -> np.ndarray:
    if len(values) < 3:
        return values
    padded = np.concatenate([values[:1], values, values[-1:]])
    return np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)
