"""Capture: photos and videos in, faces, landmarks and mattes out, and expression tracks of other programs."""

from .detector import Face, FaceDetector
from .images import LoadedImage, list_images, load_image
from .landmarker import FaceLandmarker, FaceTracker, Landmarks
from .matte import HeadMatte, Matte, head_crop
from .regions import Roi
from .video import VideoInfo, VideoWriter, probe_video, read_frames, read_video

__all__ = [
    "Face",
    "FaceDetector",
    "FaceLandmarker",
    "FaceTracker",
    "HeadMatte",
    "Landmarks",
    "LoadedImage",
    "Matte",
    "Roi",
    "VideoInfo",
    "VideoWriter",
    "head_crop",
    "list_images",
    "load_image",
    "probe_video",
    "read_frames",
    "read_video",
]
