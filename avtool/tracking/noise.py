"""What the face detector's landmarks are worth: calibrated bias and covariance, applied as a whitening transform.

The residuals of neighboring landmarks are strongly correlated (ten modes hold three quarters of the variance), so the
landmarks are not independent measurements. The covariance is kept as diagonal + low rank,
C = D^(1/2) (I + U S U^T) D^(1/2), which whitens in O(L k) instead of O(L^2).
Residuals are millimetres at the face's depth, predicted minus detected, in axes that turn with the face in the image plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np

from safetensors.numpy import load_file

NUM_LANDMARKS = 478
NUM_MODES = 60
DEFAULT_SIGMA_MM = 2.0
JITTER_MM = 0.5
"""Frame-to-frame noise of the detector on real photos, which noise-free renders do not show."""


@dataclass(frozen=True)
class LandmarkNoise:
    """bias (L, 2) mm; inverse_sigma (2L,) 1/mm; modes (2L, k) orthonormal; shrink (k,) = (1 + S)^(-1/2) - 1."""

    bias: np.ndarray
    inverse_sigma: np.ndarray
    modes: np.ndarray
    shrink: np.ndarray

    def whiten(self, residuals: np.ndarray) -> np.ndarray:
        """(2L, ...) mm -> (2L, ...) of unit covariance."""
        scale = self.inverse_sigma.reshape(-1, *([1] * (residuals.ndim - 1)))
        scaled = residuals * scale
        return scaled + (self.modes * self.shrink) @ (self.modes.T @ scaled) if len(self.shrink) else scaled


def factorize(
    bias: np.ndarray, covariance: np.ndarray, correlation: float = 1.0, num_modes: int = NUM_MODES
) -> LandmarkNoise:
    """Diagonal + low-rank form of a covariance.

    Args:
        bias: (L, 2) mm.
        covariance: (2L, 2L) mm^2.
        correlation: factor on the off-diagonal part. 1 believes the calibration; 0 trusts every landmark by itself,
            which follows the image most closely and says the least about the true shape.
    """
    covariance = covariance.astype(np.float64) + JITTER_MM**2 * np.eye(len(covariance))
    covariance = correlation * covariance + (1.0 - correlation) * np.diag(np.diag(covariance))
    sigma = np.sqrt(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance / np.outer(sigma, sigma))
    floor = values[:-num_modes].mean() if num_modes < len(values) else 1e-3
    values, vectors = values[-num_modes:], vectors[:, -num_modes:]
    sigma = sigma * np.sqrt(floor)
    strength = np.maximum(values / floor - 1.0, 0.0)
    # Independent landmarks have no modes: multiplying by nothing would be most of the work of whitening.
    kept = strength > 1e-6
    return LandmarkNoise(bias.astype(np.float64), 1.0 / sigma, vectors[:, kept], (1.0 + strength[kept]) ** -0.5 - 1.0)


def independent(num_landmarks: int, sigma_mm: float = DEFAULT_SIGMA_MM) -> LandmarkNoise:
    """No bias, the same independent noise everywhere: for models that were not calibrated."""
    size = 2 * num_landmarks
    # Ten correlated landmarks tell about as much as one, so independent noise must be taken as larger.
    sigma = np.full(size, sigma_mm * np.sqrt(10.0))
    return LandmarkNoise(np.zeros((num_landmarks, 2)), 1.0 / sigma, np.zeros((size, 1)), np.zeros(1))


@lru_cache(maxsize=8)
def load_noise(model_id: str, landmark_ids: tuple[int, ...], correlation: float = 1.0) -> LandmarkNoise:
    """The shipped calibration restricted to ``landmark_ids``; independent noise for other models than the calibrated one."""
    source = resources.files("avtool.tracking") / "data" / "landmark_noise.safetensors"
    if not model_id.startswith("anny") or not source.is_file():
        return independent(len(landmark_ids))
    with resources.as_file(source) as path:
        tensors = load_file(path)
    ids = np.array(landmark_ids)
    rows = np.stack([2 * ids, 2 * ids + 1], -1).ravel()
    covariance = tensors["cov"].astype(np.float64)[np.ix_(rows, rows)]
    return factorize(tensors["bias"][ids], covariance, correlation)
