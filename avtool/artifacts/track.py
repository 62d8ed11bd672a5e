"""Track: per frame the camera, expression and pose of one person, and the shared identity.

On disk a track is one JSON file ("track/1") that names everything else by a path relative to itself: images, mattes,
the video, and for a video (or static offsets) the sibling directory ``<stem>.data`` with ``frames.safetensors``.

Shape legend: F frames, I identity coefficients, E expression coefficients, V vertices, L = 478 landmarks.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import __version__
from ..errors import AvtoolError, FormatError
from . import track_arrays
from .files import atomic_write, refuse_existing

if TYPE_CHECKING:
    from torch import Tensor

    from ..head import HeadModel, HeadParams

KIND = "track"
VERSION = 1
SCHEMA = f"{KIND}/{VERSION}"

_SHAPES = {"K": (3, 3), "viewmat": (4, 4), "neck": (3,), "head": (3,), "jaw": (3,), "eyes": (2, 3), "crop": (3,)}


@dataclass(frozen=True)
class Frame:
    """One tracked picture.

    Attributes:
        image: picture's path relative to the track file, or absolute; None for a frame of ``Track.video``.
        frame_idx: index in ``Track.video``; None for a photo.
        width, height: size of the full image in pixels, upright.
        K: (3, 3) intrinsics of the full image.
        viewmat: (4, 4) world to camera; carries the rigid pose of the whole bust.
        expression: (E,) weights; neck, head, jaw: (3,) and eyes: (2, 3) [left, right] axis-angle, radians.
        landmarks: (478, 2) pixels of the full image, or None.
        matte: path of an 8-bit gray PNG that covers exactly the crop square, or None.
        crop: (3,) x0, y0, size in pixels of the full image; may reach outside of it.
        residual: mean landmark error as a fraction of the inter-ocular distance.
        timestamp: seconds from the start of the video, or None.
        pseudo: of a picture that a program made of a real one (the same moment from another camera), the real picture's path,
            as ``image``; None for a real picture.
    """

    image: str | None
    frame_idx: int | None
    width: int
    height: int
    K: np.ndarray
    viewmat: np.ndarray
    expression: np.ndarray
    neck: np.ndarray
    head: np.ndarray
    jaw: np.ndarray
    eyes: np.ndarray
    landmarks: np.ndarray | None = None
    matte: str | None = None
    crop: tuple[float, float, float] | np.ndarray = (0.0, 0.0, 0.0)
    residual: float = 0.0
    timestamp: float | None = None
    pseudo: str | None = None


@dataclass(frozen=True)
class Track:
    """All frames of one person.

    Attributes:
        head_model: id of the head model the coefficients belong to.
        identity: (I,) shared by all frames.
        frames: the frames in order.
        video: path of the video relative to the track file, or absolute; None for photos.
        fps: frames per second of the video.
        offsets: (V, 3) static vertex offsets in metres, or None.
        mattes_video: gray video with one frame per track frame, each covering that frame's crop; or None.
        seed: seed of the fit.
        metadata: anything else that can be written as JSON.
        base: directory that relative paths refer to; not stored.
    """

    head_model: str
    identity: np.ndarray
    frames: list[Frame]
    video: str | None = None
    fps: float | None = None
    offsets: np.ndarray | None = None
    mattes_video: str | None = None
    seed: int = 0
    metadata: dict = field(default_factory=dict)
    base: Path = field(default_factory=Path)

    @staticmethod
    def load(path: str | Path, head: HeadModel | None = None) -> Track:
        """Reads and checks a track.

        Args:
            path: a track file, "-" for standard input, or a VHAP ``transforms.json`` or its directory.
            head: needed for a ``transforms.json`` only: the FLAME head model that its parameters belong to.

        Raises:
            FormatError: naming the file, the field, what was expected and what was found.
        """
        if str(path) == "-":
            return _from_text(sys.stdin.read(), "standard input", Path(), head)
        path = Path(path)
        if path.is_dir():
            for name in ("transforms.json", "track.json"):
                if (path / name).is_file():
                    return Track.load(path / name, head)
            raise FormatError(path, "", "a track file", "a directory without transforms.json or track.json")
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise AvtoolError(f"{path}: no such track", "make one with: avtool track photos/ -o track.json") from error
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            from .tensors import artifact_name  # torch is not needed to read a track

            hint = "make a track with: avtool track photos/ -o track.json"
            raise FormatError(path, "", "a track (JSON text)", artifact_name(content) or "binary data", hint) from error
        return _from_text(text, str(path), path.parent, head)

    def save(self, path: str | Path, force: bool = False) -> None:
        """Writes the JSON file and, for a video or with offsets, its ``<stem>.data/frames.safetensors``."""
        path = Path(path)
        refuse_existing(path, force)
        track = self.rebased(path.parent)
        _check(track, str(path))
        data = track._header()
        if track.video is not None or track.offsets is not None:
            arrays = data_directory(path) / "frames.safetensors"
            arrays.parent.mkdir(exist_ok=True)
            track_arrays.write(arrays, track.frames if track.video is not None else [], track.offsets)
            data["arrays"] = f"{arrays.parent.name}/{arrays.name}"
        data["frames"] = len(track.frames) if track.video is not None else [_frame_to_json(f) for f in track.frames]
        text = json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False)
        with atomic_write(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def rebased(self, directory: str | Path) -> Track:
        """The same track with its relative paths rewritten for ``directory``; absolute ones stay."""
        here, there = self.base.resolve(), Path(directory).resolve()

        def move(name: str | None) -> str | None:
            if name is None or os.path.isabs(name) or here == there:
                return name
            return Path(os.path.relpath(here / name, there)).as_posix()

        frames = [replace(frame, image=move(frame.image), matte=move(frame.matte), pseudo=move(frame.pseudo)) for frame in self.frames]
        return replace(
            self, frames=frames, video=move(self.video), mattes_video=move(self.mattes_video), base=Path(directory)
        )

    def resolve(self, name: str) -> Path:
        """Full path of a file that the track names."""
        return self.base / name

    def real_frames(self) -> list[int]:
        """Indices of the frames that are not pseudo."""
        return [idx for idx, frame in enumerate(self.frames) if frame.pseudo is None]

    def select(self, indices: Sequence[int]) -> Track:
        """The track of some of its frames; the matte video stays with the whole, so it is dropped."""
        return replace(self, frames=[self.frames[i] for i in indices], mattes_video=None)

    def params(self, indices: Sequence[int] | None = None) -> HeadParams:
        """HeadParams with a batch of the chosen frames: identity (B, I), expression (B, E), ..."""
        import torch

        from ..head import HeadParams

        frames = self._chosen(indices)
        stacked = {
            name: torch.tensor(np.stack([np.asarray(getattr(f, name)) for f in frames]), dtype=torch.float32)
            for name in ("expression", "neck", "head", "jaw", "eyes")
        }
        identity = torch.tensor(np.asarray(self.identity), dtype=torch.float32).expand(len(frames), -1)
        offsets = None if self.offsets is None else torch.tensor(np.asarray(self.offsets), dtype=torch.float32)
        return HeadParams(identity=identity, offsets=offsets, **stacked)

    def viewmats(self, indices: Sequence[int] | None = None) -> Tensor:
        """(B, 4, 4) world to camera."""
        return self._stack("viewmat", indices)

    def Ks(self, indices: Sequence[int] | None = None) -> Tensor:
        """(B, 3, 3) intrinsics of the full images."""
        return self._stack("K", indices)

    def _stack(self, name: str, indices: Sequence[int] | None) -> Tensor:
        import torch

        values = np.stack([np.asarray(getattr(f, name)) for f in self._chosen(indices)])
        return torch.tensor(values, dtype=torch.float32)

    def _chosen(self, indices: Sequence[int] | None) -> list[Frame]:
        return self.frames if indices is None else [self.frames[int(i)] for i in indices]

    def _header(self) -> dict:
        return {
            "schema": SCHEMA,
            "version": __version__,
            "head_model": self.head_model,
            "seed": self.seed,
            "video": self.video,
            "fps": self.fps,
            "mattes_video": self.mattes_video,
            "metadata": self.metadata,
            "identity": _numbers(self.identity),
        }


def data_directory(path: str | Path) -> Path:
    """The sibling directory of a track file for what does not fit into JSON: ``<stem>.data``."""
    path = Path(path)
    return path.with_name(f"{path.stem}.data")


def _numbers(array: np.ndarray | Sequence[float]) -> list:
    """Nested lists, rounded to what float32 could hold near 1."""
    return np.round(np.asarray(array, np.float64), 8).tolist()


def _frame_to_json(frame: Frame) -> dict:
    plain = {name: getattr(frame, name) for name in ("image", "width", "height", "matte", "residual", "timestamp")}
    arrays = {name: _numbers(getattr(frame, name)) for name in (*_SHAPES, "expression")}
    landmarks = None if frame.landmarks is None else np.round(np.asarray(frame.landmarks, np.float64), 3).tolist()
    pseudo = {} if frame.pseudo is None else {"pseudo": frame.pseudo}
    return {**plain, **pseudo, **arrays, "landmarks": landmarks}


def _from_text(text: str, name: str, base: Path, head: HeadModel | None) -> Track:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise FormatError(name, "", "a track (JSON)", f"text that does not parse: {error}") from error
    if isinstance(data, dict) and "schema" not in data and isinstance(data.get("frames"), list):
        from .formats.transforms import read_transforms

        track = read_transforms(data, name, base, head)
        _check(track, name)
        return track
    _check_schema(data, name)
    if isinstance(data.get("frames"), int):
        if not isinstance(data.get("arrays"), str):
            raise FormatError(name, "arrays", "the path of the frames' arrays", data.get("arrays"))
        frames, offsets = track_arrays.read(base / data["arrays"], data["frames"])
    else:
        frames = [_frame_from_json(item, name, i) for i, item in enumerate(_typed(data, "frames", list, name))]
        arrays = data.get("arrays")
        offsets = track_arrays.read(base / arrays, 0)[1] if isinstance(arrays, str) else None
    optional = {
        key: _typed(data, key, kind, name) if data.get(key) is not None else None
        for key, kind in (("video", str), ("fps", (int, float)), ("mattes_video", str))
    }
    track = Track(
        head_model=_typed(data, "head_model", str, name),
        identity=_array(data, "identity", (None,), name),
        frames=frames,
        offsets=offsets,
        seed=int(data.get("seed") or 0),
        metadata=data.get("metadata") or {},
        base=base,
        **optional,
    )
    _check(track, name)
    return track


def _check_schema(data: object, name: str) -> None:
    hint = "make one with: avtool track photos/ -o track.json"
    if not isinstance(data, dict):
        raise FormatError(name, "", f"a {SCHEMA} object", f"a JSON {type(data).__name__}", hint)
    found = data.get("schema")
    kind, _, number = str(found).partition("/")
    if kind != KIND or not number.isdigit():
        raise FormatError(name, "schema", SCHEMA, found if found is not None else "nothing", hint)
    if int(number) > VERSION:
        raise FormatError(name, "schema", SCHEMA, found, "a newer avtool wrote it: upgrade avtool")


def _typed(data: dict, key: str, kind: type | tuple[type, ...], file: str, prefix: str = ""):
    value = data.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        found = "nothing" if value is None else type(value).__name__
        raise FormatError(file, prefix + key, names, found)
    return value


def _array(data: dict, key: str, shape: tuple[int | None, ...], file: str, prefix: str = "") -> np.ndarray:
    expected = "numbers of shape (" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
    try:
        array = np.asarray(data[key], np.float64)
    except KeyError as error:
        raise FormatError(file, prefix + key, expected, "nothing") from error
    except (TypeError, ValueError) as error:
        raise FormatError(file, prefix + key, expected, "something else") from error
    if array.ndim != len(shape) or any(b is not None and a != b for a, b in zip(array.shape, shape)):
        raise FormatError(file, prefix + key, expected, f"shape {array.shape}")
    return array


def _frame_from_json(item: object, file: str, index: int) -> Frame:
    prefix = f"frames[{index}]."
    if not isinstance(item, dict):
        raise FormatError(file, prefix[:-1], "an object", type(item).__name__)
    arrays = {key: _array(item, key, shape, file, prefix) for key, shape in _SHAPES.items()}
    arrays["crop"] = tuple(float(value) for value in arrays["crop"])
    landmarks = None if item.get("landmarks") is None else _array(item, "landmarks", (None, 2), file, prefix)
    return Frame(
        image=_typed(item, "image", str, file, prefix),
        frame_idx=None,
        width=_typed(item, "width", int, file, prefix),
        height=_typed(item, "height", int, file, prefix),
        expression=_array(item, "expression", (None,), file, prefix),
        landmarks=landmarks,
        matte=item.get("matte"),
        residual=float(_typed(item, "residual", (int, float), file, prefix)),
        timestamp=item.get("timestamp"),
        pseudo=_typed(item, "pseudo", str, file, prefix) if item.get("pseudo") is not None else None,
        **arrays,
    )


def _check(track: Track, file: str) -> None:
    """The invariants every track keeps, whether it is read or written."""
    if not track.frames:
        raise FormatError(file, "frames", "at least one frame", "none")
    _check_finite(track.identity, file, "identity")
    if track.offsets is not None:
        _check_finite(track.offsets, file, "offsets")
    num_expression = len(track.frames[0].expression)
    for index, frame in enumerate(track.frames):
        prefix = f"frames[{index}]."
        for key in ("K", "viewmat", "expression", "neck", "head", "jaw", "eyes", "crop", "landmarks"):
            if getattr(frame, key) is not None:
                _check_finite(getattr(frame, key), file, prefix + key)
        if len(frame.expression) != num_expression:
            raise FormatError(file, prefix + "expression", f"{num_expression} numbers", len(frame.expression))
        if frame.width < 1 or frame.height < 1:
            raise FormatError(file, prefix + "width, height", "at least 1", f"{frame.width} x {frame.height}")
        if frame.image is None and (frame.frame_idx is None or track.video is None):
            raise FormatError(file, prefix + "image", "a path, or an index into the track's video", "neither")
        if frame.pseudo is not None and track.video is not None:
            raise FormatError(file, prefix + "pseudo", "only real frames in the track of a video", frame.pseudo)
        if not math.isfinite(frame.residual):
            raise FormatError(file, prefix + "residual", "a finite number", frame.residual)
        _check_camera(frame, file, prefix)


def _check_camera(frame: Frame, file: str, prefix: str) -> None:
    K, viewmat = np.asarray(frame.K, np.float64), np.asarray(frame.viewmat, np.float64)
    if K[0, 0] <= 0 or K[1, 1] <= 0:
        raise FormatError(file, prefix + "K", "focal lengths above 0", f"{K[0, 0]:g} and {K[1, 1]:g}")
    if not np.allclose(K[2], (0, 0, 1), atol=1e-6):
        raise FormatError(file, prefix + "K", "a last row of 0 0 1", K[2].tolist())
    rotation = viewmat[:3, :3]
    error = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if error > 1e-3 or np.linalg.det(rotation) < 0 or not np.allclose(viewmat[3], (0, 0, 0, 1), atol=1e-6):
        raise FormatError(file, prefix + "viewmat", "a rotation and a translation", f"a matrix off by {error:.3g}")


def _check_finite(values: object, file: str, key: str) -> None:
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array))
        found = f"{len(bad)} NaN or infinite values, the first at flat index {bad[0]}"
        raise FormatError(file, key, "finite numbers", found, "track again")
