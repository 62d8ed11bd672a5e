"""The arrays beside a video's track: one row per frame in a safetensors file, small enough for long videos.

Landmarks are stored relative to the frame's crop in steps of 1/8192 of its side, which is well below their noise.
Beyond MAX_LANDMARK_FRAMES frames only every n-th frame keeps them: they are a record of the fit, not needed later.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import AvtoolError, FormatError
from .tensors import load_tensors, require, save_tensors

if TYPE_CHECKING:
    from .track import Frame

KIND = "track-frames"
SCHEMA = f"{KIND}/1"
LANDMARK_STEPS = 8192
MAX_LANDMARK_FRAMES = 2500
"""2500 x 478 x 2 x 2 bytes = 4.8 MB: with the other rows a track of ten minutes stays under 10 MB."""

_ROWS = {
    "K": (3, 3), "viewmat": (4, 4), "neck": (3,), "head": (3,), "jaw": (3,), "eyes": (2, 3), "crop": (3,),
    "expression": (None,), "residual": (), "timestamp": (), "frame_idx": (), "size": (2,),
}  # fmt: skip
_HALF = ("expression", "residual")


def write(path: Path, frames: Sequence[Frame], offsets: np.ndarray | None) -> None:
    """Stores frames (F of them, may be none) and static offsets (V, 3) or None."""
    tensors = {}
    if offsets is not None:
        tensors["offsets"] = torch.tensor(np.asarray(offsets), dtype=torch.float32)
    if frames:
        for name in ("K", "viewmat", "neck", "head", "jaw", "eyes", "crop", "expression", "residual"):
            rows = np.stack([np.asarray(getattr(frame, name), np.float32) for frame in frames])
            tensors[name] = torch.from_numpy(rows).to(torch.float16 if name in _HALF else torch.float32)
        times = [-1.0 if frame.timestamp is None else frame.timestamp for frame in frames]
        tensors["timestamp"] = torch.tensor(times, dtype=torch.float32)
        indices = [-1 if frame.frame_idx is None else frame.frame_idx for frame in frames]
        tensors["frame_idx"] = torch.tensor(indices, dtype=torch.int32)
        tensors["size"] = torch.tensor([[frame.width, frame.height] for frame in frames], dtype=torch.int32)
        tensors.update(_pack_landmarks(frames))
    save_tensors(path, tensors, SCHEMA)


def read(path: Path, num_frames: int) -> tuple[list[Frame], np.ndarray | None]:
    """Frames and static offsets as ``write`` stored them; ``num_frames`` is what the JSON file promises."""
    from .track import Frame

    if not path.is_file():
        raise AvtoolError(f"{path}: missing", "copy a track together with the .data directory beside it")
    tensors, _ = load_tensors(path, KIND)
    offsets = tensors["offsets"].numpy().astype(np.float64) if "offsets" in tensors else None
    if num_frames == 0:
        return [], offsets
    require(path, tensors, {name: (num_frames, *shape) for name, shape in _ROWS.items()})
    rows = {name: tensors[name].numpy().astype(np.float64) for name in _ROWS}
    landmarks = _unpack_landmarks(path, tensors, rows["crop"])
    frames = []
    for i in range(num_frames):
        arrays = {name: rows[name][i] for name in ("K", "viewmat", "expression", "neck", "head", "jaw", "eyes")}
        arrays["viewmat"][:3, :3] = _nearest_rotation(arrays["viewmat"][:3, :3])
        frame_idx, time = int(rows["frame_idx"][i]), float(rows["timestamp"][i])
        frames.append(
            Frame(
                image=None, frame_idx=None if frame_idx < 0 else frame_idx, width=int(rows["size"][i, 0]),
                height=int(rows["size"][i, 1]), landmarks=landmarks.get(i), crop=tuple(rows["crop"][i].tolist()),
                residual=float(rows["residual"][i]), timestamp=None if time < 0 else time, **arrays,
            )
        )  # fmt: skip
    return frames, offsets


def _nearest_rotation(rotation: np.ndarray) -> np.ndarray:
    """Removes the rounding of float32 only; a matrix that is no rotation is left for the check to refuse."""
    u, s, vt = np.linalg.svd(rotation)
    return u @ vt if np.abs(s - 1).max() < 1e-4 else rotation


def _pack_landmarks(frames: Sequence[Frame]) -> dict[str, torch.Tensor]:
    with_landmarks = [i for i, frame in enumerate(frames) if frame.landmarks is not None and frame.crop[2] > 0]
    stride = -(-len(with_landmarks) // MAX_LANDMARK_FRAMES) or 1
    kept = with_landmarks[::stride]
    if not kept:
        return {}
    packed = []
    for i in kept:
        x0, y0, size = frames[i].crop
        relative = (np.asarray(frames[i].landmarks, np.float64) - (x0, y0)) / size
        packed.append(np.clip(np.round(relative * LANDMARK_STEPS), -32768, 32767).astype(np.int16))
    return {
        "landmarks": torch.from_numpy(np.stack(packed)),
        "landmark_rows": torch.tensor(kept, dtype=torch.int32),
    }


def _unpack_landmarks(path: Path, tensors: dict[str, torch.Tensor], crops: np.ndarray) -> dict[int, np.ndarray]:
    if "landmarks" not in tensors:
        return {}
    require(path, tensors, {"landmark_rows": (None,), "landmarks": (None, None, 2)})
    rows = tensors["landmark_rows"].tolist()
    if len(rows) != len(tensors["landmarks"]) or any(not 0 <= row < len(crops) for row in rows):
        raise FormatError(path, "landmark_rows", "one frame's row for each set of landmarks", f"{len(rows)} rows")
    relative = tensors["landmarks"].numpy().astype(np.float64) / LANDMARK_STEPS
    return {row: relative[k] * crops[row, 2] + crops[row, :2] for k, row in enumerate(rows)}
