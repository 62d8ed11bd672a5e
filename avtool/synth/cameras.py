"""Where synthetic people stand and are seen from."""

import numpy as np

from avtool.head import HeadModel, HeadParams
from avtool.synth.motion import Motion


def aim(yaw: float, pitch: float, roll: float, distance: float, target: np.ndarray) -> np.ndarray:
    """viewmat (4, 4) of a camera on a sphere around target (3,) metres; yaw to the person's left, pitch up, roll about the view, radians."""
    forward = -np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    cos, sin = np.cos(roll), np.sin(roll)
    rotation = np.stack([cos * right + sin * down, cos * down - sin * right, forward])
    viewmat = np.eye(4)
    viewmat[:3, :3] = rotation
    viewmat[:3, 3] = -rotation @ (np.asarray(target) - distance * forward)
    return viewmat


def head_params(model: HeadModel, identity: np.ndarray, motion: Motion, offsets: np.ndarray | None = None) -> HeadParams:
    """The head model's parameters of one person at one moment."""
    import torch

    return HeadParams(
        *(torch.from_numpy(np.asarray(value, np.float32)) for value in
          (identity, motion.expression, motion.neck, motion.head, motion.jaw, motion.eyes)),
        offsets=None if offsets is None else torch.from_numpy(np.asarray(offsets, np.float32)),
    )


def pose_vertices(model: HeadModel, identity: np.ndarray, motion: Motion, offsets: np.ndarray | None = None) -> np.ndarray:
    """(V, 3) metres."""
    import torch

    with torch.no_grad():
        return model(head_params(model, identity, motion, offsets)).vertices.numpy()
