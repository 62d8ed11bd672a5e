"""Finds faces: BlazeFace at short range, then at full range, then turned, then in tiles.

Anchors and decoding follow MediaPipe's face_detection graphs (Apache-2.0); the model cards call the networks BlazeFace
(arXiv 1907.05047).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from .models import load_model
from .regions import Roi, sample_roi

MIN_SCORE = 0.5
NMS_OVERLAP = 0.3
# The networks mistake faces turned by more than about 45 degrees for upright ones, with a lower score than this.
CERTAIN_SCORE = 0.85
CERTAIN_ANGLE = math.radians(30)
# Smaller tiles than this would only find faces that are too small to be measured.
MIN_TILE = 384
TILE_DIVISIONS = (2, 4)
# Neighbors share a quarter: larger faces were found by the stage before.
TILE_STEP = 0.75


@dataclass(frozen=True)
class Face:
    """A detected face.

    Attributes:
        box: (4,) x0, y0, x1, y1 in pixels; brows to chin. For a turned face the box of its upright square's center.
        keypoints: (6, 2) pixels: the two eyes (the person's right one first), nose tip, mouth, the two ear fronts.
        score: in [0, 1].
    """

    box: np.ndarray
    keypoints: np.ndarray
    score: float

    @property
    def size(self) -> float:
        """Longer side of the box in pixels."""
        return float(max(self.box[2] - self.box[0], self.box[3] - self.box[1]))

    @property
    def roi(self) -> Roi:
        """The rotated square that the landmark network wants: eyes level, 1.5 times the box."""
        along = self.keypoints[1] - self.keypoints[0]
        center = (self.box[:2] + self.box[2:]) / 2
        return Roi(float(center[0]), float(center[1]), 1.5 * self.size, math.atan2(along[1], along[0]))


class FaceDetector:
    """Both BlazeFace networks.

    Args:
        device: where they run.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.short = load_model("face_detection_short_range", device)
        self.full = load_model("face_detection_full_range", device)
        # Short range: two anchors a cell on the 16 x 16 grid, six on the 8 x 8 grid; full range: one on 48 x 48.
        self._anchors = {128: _grid_anchors([(16, 2), (8, 6)]), 192: _grid_anchors([(48, 1)])}

    def detect(self, image: np.ndarray) -> list[Face]:
        """Faces of the first stage that finds any, the largest first.

        Args:
            image: uint8 (H, W, 3).
        """
        return next((faces for faces in self.stages(image) if faces), [])

    def stages(self, image: np.ndarray) -> Iterator[list[Face]]:
        """Faces as found by one stage after the other, cheapest first; a stage runs when it is asked for."""
        height, width = image.shape[:2]
        whole = Roi(width / 2, height / 2, max(width, height))
        yield self._search(image, [whole], self.short)
        yield self._search(image, [whole], self.full)
        yield self._search(image, _turns(whole, (1, 2, 3)), self.short)
        for division in TILE_DIVISIONS:
            size = whole.size / division
            if size >= MIN_TILE:
                yield self._search(image, _tiles(width, height, size), self.full)
        yield self._search(image, _turns(whole, (1, 2, 3)), self.full)

    def verify(self, image: np.ndarray, face: Face) -> Face:
        """Looks again, in all four turns, at a face whose score or angle leaves doubt.

        Returns:
            what the surest turn says, or the face itself when it is certain or none of the turns sees it.
        """
        if face.score >= CERTAIN_SCORE and abs(face.roi.angle) <= CERTAIN_ANGLE:
            return face
        around = Roi(face.roi.x, face.roi.y, 2.5 * face.size, face.roi.angle)
        found = [self._search(image, [roi], self.short) for roi in _turns(around, (0, 1, 2, 3))]
        same = [other for faces in found for other in faces if _overlaps(face.box, other.box[None])[0] > NMS_OVERLAP]
        return max(same, key=lambda other: other.score, default=face)

    def _search(self, image: np.ndarray, rois: list[Roi], network: torch.nn.Module) -> list[Face]:
        """Runs one network on some squares and merges what it finds."""
        faces = []
        for start in range(0, len(rois), 16):
            batch = rois[start : start + 16]
            side = network.input_shape[1]
            pixels = torch.cat([sample_roi(image, roi, side, "zeros") for roi in batch])
            boxes, scores = network(pixels.to(self.device) * 2 - 1)
            boxes, scores = boxes.cpu().numpy(), scores[..., 0].sigmoid().cpu().numpy()
            for k, roi in enumerate(batch):
                faces += _decode(boxes[k], scores[k], self._anchors[side], side, roi)
        faces.sort(key=lambda face: -face.score)
        return sorted(_suppress(faces), key=lambda face: -face.size)


def _grid_anchors(grids: list[tuple[int, int]]) -> np.ndarray:
    """Centers of the anchors (A, 2) in unit coordinates, for grids of (cells a side, anchors a cell)."""
    levels = []
    for cells, repeats in grids:
        unit = (np.arange(cells) + 0.5) / cells
        centers = np.stack(np.meshgrid(unit, unit), -1).reshape(-1, 2)
        levels.append(centers.repeat(repeats, 0))
    return np.concatenate(levels)


def _turns(roi: Roi, quarters: tuple[int, ...]) -> list[Roi]:
    """The same square turned by quarters of a circle."""
    return [Roi(roi.x, roi.y, roi.size, roi.angle + k * math.pi / 2) for k in quarters]


def _tiles(width: int, height: int, size: float) -> list[Roi]:
    """Overlapping squares that cover the image."""

    def centers(extent: float) -> np.ndarray:
        count = max(1, math.ceil((extent - size) / (TILE_STEP * size)) + 1)
        return np.linspace(size / 2, extent - size / 2, count) if extent > size else np.array([extent / 2])

    return [Roi(float(x), float(y), size) for y in centers(height) for x in centers(width)]


def _decode(raw: np.ndarray, scores: np.ndarray, anchors: np.ndarray, side: int, roi: Roi) -> list[Face]:
    """Network output (A, 16), (A,) of one square to faces in image pixels.

    A row holds the box center and extent, then six keypoints, all in network pixels relative to the anchor.
    """
    kept = scores >= MIN_SCORE
    points = raw[kept].reshape(-1, 8, 2) / side
    centers, extents = points[:, 0] + anchors[kept], points[:, 1]
    keypoints = roi.to_image(points[:, 2:] + anchors[kept][:, None])
    centers = roi.to_image(centers)
    # Boxes are nearly square, so a turned one is replaced by the upright one of the same extent.
    half = extents.max(-1, keepdims=True) * roi.size / 2 * np.ones(2)
    if roi.angle == 0.0:
        half = extents * roi.size / 2
    boxes = np.concatenate([centers - half, centers + half], 1)
    return [
        Face(box, points, float(score))
        for box, points, score in zip(boxes, keypoints, scores[kept])
        if (box[2:] > box[:2]).all()
    ]


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of one box with others."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.clip(high - low, 0, None).prod(1)
    area = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return shared / (area - shared)


def _suppress(faces: list[Face]) -> list[Face]:
    """Merges overlapping detections of one face by a mean weighted with the scores; expects the best first."""
    merged = []
    while faces:
        overlap = _overlaps(faces[0].box, np.stack([face.box for face in faces]))
        overlap[0] = 1.0
        group = [face for face, value in zip(faces, overlap) if value > NMS_OVERLAP]
        weights = np.array([face.score for face in group])
        box = np.average([face.box for face in group], 0, weights)
        keypoints = np.average([face.keypoints for face in group], 0, weights)
        merged.append(Face(box, keypoints, faces[0].score))
        faces = [face for face, value in zip(faces, overlap) if value <= NMS_OVERLAP]
    return merged
