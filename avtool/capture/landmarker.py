"""478 face landmarks (MediaPipe's Attention Mesh, arXiv 2006.10962) and their tracking from frame to frame.

Shape legend: points (478, 3): x, y in pixels of the image with pixel centers at +0.5, z in pixels, smaller is nearer,
zero at the head's middle. Indices are MediaPipe's: 468 of the face mesh, then five for each iris.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import AvtoolError
from .detector import Face, FaceDetector
from .models import load_model
from .regions import Roi, sample_roi

logger = logging.getLogger("avtool")

NUM_LANDMARKS = 478
NUM_MESH = 468
# Outer eye corners: the person's right, then left. Their line is what "upright" means here.
EYE_CORNERS = (33, 263)
MIN_PRESENCE = 0.5
# A narrower face gives landmarks that jump by several percent of its size.
MIN_FACE_PIXELS = 32
# Detections below it are often a part of a face or a thing.
SURE_SCORE = 0.75
# Faces that a warning about several faces counts: not posters or bystanders far behind.
RIVAL_SIZE = 0.3


@dataclass(frozen=True)
class Landmarks:
    """Landmarks of one face.

    Attributes:
        points: (478, 3) float32, see the module's legend.
        presence: the network's belief in [0, 1] that its square holds a face.
        roi: the square for the next frame.
    """

    points: np.ndarray
    presence: float
    roi: Roi

    @property
    def eye_distance(self) -> float:
        """Between the outer eye corners, in pixels; the unit of landmark errors."""
        right, left = self.points[list(EYE_CORNERS), :2]
        return float(np.linalg.norm(left - right))

    @property
    def bounds(self) -> np.ndarray:
        """(4,) x0, y0, x1, y1 of the face mesh in pixels."""
        mesh = self.points[:NUM_MESH, :2]
        return np.concatenate([mesh.min(0), mesh.max(0)])


class FaceLandmarker:
    """The landmark network.

    Args:
        device: where it runs.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.network = load_model("face_landmark_with_attention", device)
        # The model itself says which mesh points its lip and eye heads refine.
        heads = self.network.options("Landmarks2TransformMatrix")
        self._refined = [np.array(head["subset_idxs"]) for head in heads]

    def __call__(self, image: np.ndarray, roi: Roi, passes: int = 1) -> Landmarks:
        """Landmarks of the face in a square.

        Args:
            image: uint8 (H, W, 3).
            roi: the square; passes after the first use the square around the landmarks just found.
            passes: two after a detection, one when the square comes from the frame before.
        """
        assert passes >= 1
        for _ in range(passes):
            landmarks = self._once(image, roi)
            roi = landmarks.roi
        return landmarks

    def _once(self, image: np.ndarray, roi: Roi) -> Landmarks:
        side = self.network.input_shape[1]
        outputs = self.network(sample_roi(image, roi, side).to(self.device))
        mesh, lips, right_eye, left_eye, right_iris, left_iris, flag = (value.cpu().numpy() for value in outputs)
        points = np.zeros((NUM_LANDMARKS, 3))
        points[:NUM_MESH] = mesh.reshape(-1, 3)
        for indices, refined in zip(self._refined, (lips, right_eye, left_eye)):
            points[indices, :2] = refined.reshape(-1, 2)
        for start, iris, eye in ((468, right_iris, self._refined[1]), (473, left_iris, self._refined[2])):
            points[start : start + 5, :2] = iris.reshape(-1, 2)
            # The iris heads give no depth; the lid contour's mean (its first 16 points) stands in.
            points[start : start + 5, 2] = points[eye[:16], 2].mean()
        points[:, :2] = roi.to_image(points[:, :2] / side)
        points[:, 2] *= roi.size / side
        presence = 1 / (1 + math.exp(-float(flag.ravel()[0])))
        return Landmarks(points.astype(np.float32), presence, roi_of_points(points))


def roi_of_points(points: np.ndarray) -> Roi:
    """The upright square around landmarks (478, 3), 1.5 times their extent, as MediaPipe tracks."""
    right, left = points[EYE_CORNERS[0], :2], points[EYE_CORNERS[1], :2]
    angle = math.atan2(left[1] - right[1], left[0] - right[0])
    level = Roi(0.0, 0.0, 1.0, angle)
    upright = level.from_image(points[:NUM_MESH, :2])
    low, high = upright.min(0), upright.max(0)
    center = level.to_image((low + high) / 2)
    return Roi(float(center[0]), float(center[1]), 1.5 * float((high - low).max()), angle)


class FaceTracker:
    """Detector and landmark network together.

    Args:
        device: where they run.
        one_face: several faces in one picture are an error, instead of a warning that the largest is taken.
    """

    def __init__(self, device: str | torch.device = "cpu", one_face: bool = False) -> None:
        self.one_face = one_face
        self.detector = FaceDetector(device)
        self.landmarker = FaceLandmarker(device)

    def __call__(self, image: np.ndarray, roi: Roi | None = None, name: str = "image") -> Landmarks | None:
        """Landmarks of the largest face.

        Args:
            image: uint8 (H, W, 3).
            roi: where the face was in the frame before (``Landmarks.roi``), or None to detect it.
            name: what warnings call the image.

        Returns:
            None when there is no face, or none that is large enough.
        """
        if roi is not None:
            landmarks = self.landmarker(image, roi)
            if landmarks.presence >= MIN_PRESENCE and _inside(landmarks, image):
                return landmarks
        for found in self.detector.stages(image):
            faces = [self.detector.verify(image, face) for face in found]
            # The largest of the sure ones; doubtful ones only when there is nothing else.
            faces.sort(key=lambda face: (face.score < SURE_SCORE, -face.size))
            for face in faces:
                landmarks = self.landmarker(image, face.roi, passes=2)
                if landmarks.presence >= MIN_PRESENCE:
                    return self._accept(landmarks, face, faces, name)
        return None

    def track(self, frames: Iterable[np.ndarray], name: str = "video") -> Iterator[Landmarks | None]:
        """Landmarks of every frame, each looked for where the face was in the one before."""
        roi = None
        for idx, frame in enumerate(frames):
            landmarks = self(frame, roi, f"{name}, frame {idx}")
            roi = landmarks.roi if landmarks else None
            yield landmarks

    def _accept(self, landmarks: Landmarks, chosen: Face, faces: list[Face], name: str) -> Landmarks | None:
        """Warns about rivals, or refuses them; refuses a face that is too small to be measured."""
        bounds = landmarks.bounds
        pixels = min(bounds[2] - bounds[0], bounds[3] - bounds[1])
        if pixels < MIN_FACE_PIXELS:
            logger.warning(
                "%s: the face is only %d pixels wide, expected at least %d: use a larger photo", name, pixels, MIN_FACE_PIXELS
            )
            return None
        rivals = [face for face in faces if face.score >= SURE_SCORE and face.size >= RIVAL_SIZE * chosen.size]
        if len(rivals) > 1 and self.one_face:
            raise AvtoolError(f"{name}: expected one face, found {len(rivals)}", "crop the photo to the person that you mean")
        if len(rivals) > 1:
            logger.warning("%s: found %d faces, using the largest: crop the photo to choose another", name, len(rivals))
        return landmarks


def _inside(landmarks: Landmarks, image: np.ndarray) -> bool:
    """Whether most of the face lies in the image; a lost track drifts out of it."""
    height, width = image.shape[:2]
    mesh = landmarks.points[:NUM_MESH, :2]
    return bool(((mesh >= 0) & (mesh <= (width, height))).all(1).mean() > 0.5)
