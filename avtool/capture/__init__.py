"""Capture: photos and videos in, faces, landmarks and mattes out, and expression tracks of other programs."""

from .detector import Face, FaceDetector
from .landmarker import FaceLandmarker, FaceTracker, Landmarks
from .regions import Roi

__all__ = ["Face", "FaceDetector", "FaceLandmarker", "FaceTracker", "Landmarks", "Roi"]
