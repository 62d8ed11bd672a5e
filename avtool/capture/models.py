"""The shipped models: which files, and the checksums they must have (origin and licence: data/NOTICE.md)."""

from __future__ import annotations

from pathlib import Path

import torch

from .tflite import TfliteModel

DATA = Path(__file__).parent / "data"

CHECKSUMS = {
    "face_detection_short_range": "3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633",
    "face_detection_full_range": "99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3",
    "face_landmark_with_attention": "e06a804e0144f9929eda782122916b35d60c697c3c9344013ca2bbe76a6ce2b4",
    "selfie_segmentation": "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
}


def load_model(name: str, device: str | torch.device = "cpu", directory: Path = DATA) -> TfliteModel:
    """A shipped model by name.

    Raises:
        FormatError: the file is damaged or is not the one that avtool ships.
    """
    return TfliteModel(directory / f"{name}.tflite", CHECKSUMS[name]).to(device)
