"""Tracking: photos or a video of one person to a Track, by a staged fit of the head model."""

from .options import TrackingOptions
from .photos import track_photos
from .result import TrackResult, save_track
from .video import track_video

__all__ = ["TrackResult", "TrackingOptions", "save_track", "track_photos", "track_video"]
