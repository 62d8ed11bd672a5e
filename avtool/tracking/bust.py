"""Divides the head's pose into the bust (viewmat), the neck joint and the head joint, so that shoulders land where they are.

Landmarks see the head alone. For one photo the bust is assumed to take a fraction of the head's turn, and neck and head
joint to share the rest. Between pictures of one scene the bust is measured: the torso's appearance in a reference picture
is carried by the mesh and aligned to every other picture (direct alignment, Gauss-Newton on the six angles of bust and
neck), with the head's pose as found by the landmarks held fixed.
Shapes: N torso points. Rotations (3, 3), metres, pixels of a bust window of WINDOW pixels a side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from ..head import HeadModel, HeadParams
from . import so3

TURN_FRACTION = np.array([0.25, 0.45, 0.35])
"""Part of the head's pitch, yaw and roll that the bust takes in a single photo: people turn to the camera with both, and
nod mostly with the head."""
NECK_SHARE = 0.5
WINDOW = 128
WINDOW_SCALE, WINDOW_SHIFT = 2.4, 0.6
"""Side of the bust window and how far its center lies below the landmarks' one, over the landmarks' extent."""
BLURS = (4.0, 1.5)
ITERATIONS = 6
BUST_SIGMA, NECK_SIGMA = np.radians(8.0), np.radians(10.0)
APPEARANCE_SIGMA = 0.35
EFFECTIVE_POINTS = 60.0
"""Neighboring torso points see the same cloth: all of them count as this many independent ones."""
POINT_STRIDE = 2
"""Every so many-th triangle of the torso: neighbors tell the same, and alignment costs in proportion."""
MIN_POINTS = 30
MIN_CORRELATION = 0.55


@dataclass(frozen=True)
class BustPose:
    """bust (3, 3): world to camera; neck (3, 3): the neck joint's rotation."""

    bust: np.ndarray
    neck: np.ndarray


def bust_window(landmarks: np.ndarray) -> tuple[float, float, float]:
    """x0, y0, size of the square that holds neck and shoulders, for landmarks (478, 2) px."""
    low, high = landmarks[:468, :2].min(0), landmarks[:468, :2].max(0)
    extent = float((high - low).max())
    center = (low + high) / 2 + (0.0, WINDOW_SHIFT * extent)
    size = WINDOW_SCALE * extent
    return float(center[0] - size / 2), float(center[1] - size / 2), size


def assumed_pose(rotation: np.ndarray) -> BustPose:
    """Bust and neck for the head's rotation (3, 3) to the camera, when nothing else is known."""
    turn = so3.log(so3.FRONTAL.T @ rotation)
    return with_shared_neck(so3.FRONTAL @ so3.exp(TURN_FRACTION * turn), rotation)


def with_shared_neck(bust: np.ndarray, rotation: np.ndarray) -> BustPose:
    """The neck takes its share of what turns the bust into the head."""
    return BustPose(bust, so3.scaled(bust.T @ rotation, NECK_SHARE))


class BustSolver:
    """Poses the torso of one person and aligns it to pictures."""

    def __init__(self, head: HeadModel, identity: np.ndarray, offsets: np.ndarray | None = None) -> None:
        params = HeadParams.zeros(head)
        params = HeadParams(
            torch.as_tensor(identity, dtype=torch.float32), *(getattr(params, n) for n in ("expression", "neck", "head", "jaw", "eyes")),
            offsets=None if offsets is None else torch.as_tensor(offsets, dtype=torch.float32),
        )
        with torch.no_grad():
            mesh = head(params)
        vertices = mesh.vertices.double().numpy()
        column = {name: j for j, name in enumerate(head.joint_names)}
        joints = mesh.joints.double().numpy()
        self.neck_joint = joints[column["neck"]]
        self.head_joint = joints[column["head"]] if "head" in column else self.neck_joint
        self.points, self.normals, self.weights = _torso_points(head, vertices, column)

    def translation(self, pose: BustPose, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
        """Translation (3,) of the viewmat that leaves the head where the landmarks put it."""
        bone = pose.neck @ (self.head_joint - self.neck_joint) + self.neck_joint
        return translation + rotation @ self.head_joint - pose.bust @ bone

    def viewmat(self, pose: BustPose, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
        """(4, 4) world to camera of the bust."""
        matrix = np.eye(4)
        matrix[:3, :3] = pose.bust
        matrix[:3, 3] = self.translation(pose, rotation, translation)
        return matrix

    def camera_points(self, pose: BustPose, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
        """Torso points (N, 3) in the camera."""
        shift = self.translation(pose, rotation, translation)
        still = self.points @ pose.bust.T + shift
        bent = ((self.points - self.neck_joint) @ pose.neck.T + self.neck_joint) @ pose.bust.T + shift
        turned = self.points @ rotation.T + translation
        return self.weights[:, 0:1] * still + self.weights[:, 1:2] * bent + self.weights[:, 2:3] * turned

    def facing(self, pose: BustPose, points: np.ndarray) -> np.ndarray:
        """(N,) whether the surface looks at the camera."""
        direction = points / np.linalg.norm(points, axis=1, keepdims=True)
        return ((self.normals @ pose.bust.T) * direction).sum(1) < -0.25


def _torso_points(head: HeadModel, vertices: np.ndarray, column: dict[str, int]) -> tuple[np.ndarray, ...]:
    """Centers of torso and neck triangles (N, 3), their normals and (N, 3) weights of bust, neck and head."""
    names = [name for name in ("torso", "neck") if name in head.region_names]
    mask = head.region_mask(*names).cpu().numpy()
    faces = head.faces.cpu().numpy()[mask][::POINT_STRIDE]
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    skin = head.skin_weights.double().cpu().numpy()[faces].mean(1)
    neck = skin[:, column["neck"]]
    still = skin[:, column["root"]] if "root" in column else np.zeros_like(neck)
    return corners.mean(1), normals, np.stack([still, neck, 1.0 - still - neck], -1)


@dataclass(frozen=True)
class BustView:
    """One picture for the alignment: window (WINDOW, WINDOW) gray float, its square in the image, and the head's camera."""

    gray: np.ndarray
    square: tuple[float, float, float]
    focal: float
    center: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Window coordinates (N, 2), pixel centers at integers, of camera points (N, 3)."""
        image = self.focal * points[:, :2] / np.maximum(points[:, 2:], 1e-3) + self.center
        return (image - self.square[:2]) / self.square[2] * WINDOW - 0.5

    def levels(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The picture and its two derivatives for each blur, coarse first."""
        smooth = [ndimage.gaussian_filter(self.gray, sigma, mode="nearest") for sigma in BLURS]
        return [(s, *np.gradient(s)[::-1]) for s in smooth]


@dataclass(frozen=True)
class Reference:
    """The torso's appearance: values (levels, N) and which points count (N,)."""

    values: np.ndarray
    visible: np.ndarray
    bust: np.ndarray


def make_reference(solver: BustSolver, view: BustView, pose: BustPose) -> Reference:
    """Reads the torso's appearance out of a picture in which its pose is known."""
    points = solver.camera_points(pose, view.rotation, view.translation)
    pixels = view.pixels(points)
    visible = solver.facing(pose, points) & _inside(pixels)
    values = np.stack([_sample(level[0], pixels) for level in view.levels()])
    return Reference(values, visible, pose.bust)


def align(solver: BustSolver, reference: Reference, view: BustView, starts: list[BustPose]) -> tuple[BustPose, float]:
    """The bust's pose in a picture by aligning the reference's appearance.

    Args:
        starts: poses to start from; the first is also the prior.

    Returns:
        the pose, and the correlation of the torso's appearance there, in [-1, 1] (-1 when too little is visible).
    """
    levels = view.levels()
    best, best_score = starts[0], -1.0
    scored = [(_correlation(solver, reference, view, levels[0][0], 0, pose), pose) for pose in starts]
    _, pose = max(scored, key=lambda pair: pair[0])
    for index, level in enumerate(levels):
        pose = _gauss_newton(solver, reference, view, level, index, pose, starts[0])
        score = _correlation(solver, reference, view, level[0], index, pose)
        if index == len(levels) - 1:
            best, best_score = pose, score
    return best, best_score


def _gauss_newton(
    solver: BustSolver,
    reference: Reference,
    view: BustView,
    level: tuple[np.ndarray, np.ndarray, np.ndarray],
    index: int,
    pose: BustPose,
    prior: BustPose,
) -> BustPose:
    inverse = np.repeat([BUST_SIGMA**-2, NECK_SIGMA**-2], 3)
    for _ in range(ITERATIONS):
        pixels, slopes = _differentiate(solver, view, pose)
        valid = reference.visible & _inside(pixels)
        if valid.sum() < MIN_POINTS:
            return pose
        residual, spread = _normalized_difference(_sample(level[0], pixels)[valid], reference.values[index][valid])
        gradient = np.stack([_sample(level[1], pixels), _sample(level[2], pixels)], -1)[valid] / spread
        jacobian = np.einsum("nd,ndk->nk", gradient, slopes[valid])
        robust = 1.0 / np.maximum(1.0, np.abs(residual) / (2 * APPEARANCE_SIGMA))
        scale = EFFECTIVE_POINTS / valid.sum() / APPEARANCE_SIGMA**2
        matrix = scale * jacobian.T @ (robust[:, None] * jacobian) + np.diag(inverse)
        offset = np.concatenate([so3.log(pose.bust @ prior.bust.T), so3.log(pose.neck @ prior.neck.T)])
        slope = scale * jacobian.T @ (robust * residual) + inverse * offset
        step = -np.linalg.solve(matrix, slope)
        step *= min(1.0, np.radians(6.0) / max(np.abs(step).max(), 1e-9))
        pose = BustPose(so3.exp(step[:3]) @ pose.bust, so3.exp(step[3:]) @ pose.neck)
        if np.abs(step).max() < 1e-3:
            break
    return pose


def _differentiate(solver: BustSolver, view: BustView, pose: BustPose) -> tuple[np.ndarray, np.ndarray]:
    """Window pixels (N, 2) and their derivatives (N, 2, 6) by left turns of bust and neck."""
    tiny = 1e-4
    pixels = view.pixels(solver.camera_points(pose, view.rotation, view.translation))
    slopes = np.empty((*pixels.shape, 6))
    turns = so3.exp(tiny * np.eye(3))
    for axis in range(3):
        for k, moved in (
            (axis, BustPose(turns[axis] @ pose.bust, pose.neck)),
            (axis + 3, BustPose(pose.bust, turns[axis] @ pose.neck)),
        ):
            shifted = view.pixels(solver.camera_points(moved, view.rotation, view.translation))
            slopes[:, :, k] = (shifted - pixels) / tiny
    return pixels, slopes


def _correlation(
    solver: BustSolver, reference: Reference, view: BustView, image: np.ndarray, index: int, pose: BustPose
) -> float:
    pixels = view.pixels(solver.camera_points(pose, view.rotation, view.translation))
    valid = reference.visible & _inside(pixels)
    if valid.sum() < MIN_POINTS:
        return -1.0
    difference, _ = _normalized_difference(_sample(image, pixels)[valid], reference.values[index][valid])
    return float(1.0 - (difference**2).mean() / 2.0)


def _normalized_difference(values: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
    """Difference after both have mean 0 and spread 1 (light changes), and the spread of ``values``."""
    spread = max(float(values.std()), 1e-3)
    return (values - values.mean()) / spread - (target - target.mean()) / max(float(target.std()), 1e-3), spread


def _sample(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(image, pixels[:, ::-1].T, order=1, mode="nearest")


def _inside(pixels: np.ndarray) -> np.ndarray:
    return ((pixels > 1.0) & (pixels < WINDOW - 2.0)).all(1)
