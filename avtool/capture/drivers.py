"""Drivers that bring expressions without pictures: takes of the Live Link Face app.

The app writes one CSV a take: Timecode, BlendShapeCount, 52 blend shapes with capitalized ARKit names, then
HeadYaw/Pitch/Roll and the same for both eyes.

Shape legend: T frames, E expressions.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ..errors import AvtoolError, FormatError

ROTATIONS = tuple(f"{part}{axis}" for part in ("Head", "LeftEye", "RightEye") for axis in ("Yaw", "Pitch", "Roll"))
UNITS = {"radians": 1.0, "degrees": math.pi / 180}
# Head rotations of a live take stay below this many radians; what is beyond it must be degrees.
MAX_RADIANS = math.pi


@dataclass(frozen=True)
class DriverTake:
    """A recorded performance in the head model's terms.

    Attributes:
        expression: (T, E) weights in [0, 1], in the order of the names that were asked for.
        head: (T, 3) axis-angle in radians, world axes (x to the person's left, y up, z out of the face).
        eyes: (T, 2, 3) axis-angle of left and right eye, relative to the head.
        timestamps: (T,) seconds from the first frame.
        missing: names asked for that the take does not have; their weights are zero.
    """

    expression: np.ndarray
    head: np.ndarray
    eyes: np.ndarray
    timestamps: np.ndarray
    missing: tuple[str, ...]


def read_live_link(
    path: str | Path, expression_names: Sequence[str], *, unit: str = "auto", fps: float = 60.0
) -> DriverTake:
    """Reads a Live Link Face CSV.

    Args:
        path: the file.
        expression_names: the head model's expressions; ARKit names are matched without regard to case.
        unit: of the rotations, "radians", "degrees" or "auto" (degrees when a value exceeds pi).
        fps: frames a second of the timecode.

    Raises:
        AvtoolError: no such file.
        FormatError: not such a CSV, or a value that is not a number, with its line.
    """
    if unit not in (*UNITS, "auto"):
        raise ValueError(f"read_live_link: unit must be auto, radians or degrees, found {unit!r}")
    header, rows = _read_rows(Path(path))
    columns = {name.strip().casefold(): k for k, name in enumerate(header)}
    if "timecode" not in columns or "jawopen" not in columns:
        expected = "a Live Link Face CSV with the columns Timecode and JawOpen"
        raise FormatError(path, "header", expected, ", ".join(header[:4]) or "nothing", "export the take as CSV")
    values = _numbers(Path(path), header, rows, columns["timecode"])
    missing = tuple(name for name in expression_names if name.casefold() not in columns)
    expression = np.zeros((len(rows), len(expression_names)))
    for k, name in enumerate(expression_names):
        if name not in missing:
            expression[:, k] = values[:, columns[name.casefold()]]
    angles = np.zeros((len(rows), len(ROTATIONS)))
    for k, name in enumerate(ROTATIONS):
        if name.casefold() in columns:
            angles[:, k] = values[:, columns[name.casefold()]]
    if unit == "auto":
        unit = "degrees" if np.abs(angles).max() > MAX_RADIANS else "radians"
    rotations = _axis_angles(angles.reshape(-1, 3, 3) * UNITS[unit])
    times = np.array([_seconds(Path(path), row[columns["timecode"]], fps, line) for line, row in enumerate(rows, 2)])
    # A take that runs over midnight starts its timecode again.
    times = times + 86400.0 * np.cumsum(np.concatenate([[False], np.diff(times) < -43200.0]))
    return DriverTake(np.clip(expression, 0.0, 1.0), rotations[:, 0], rotations[:, 1:], times - times[0], missing)


def _read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            rows = [row for row in csv.reader(handle) if any(cell.strip() for cell in row)]
    except FileNotFoundError as error:
        raise AvtoolError(f"{path}: no such file", "check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(path, "", "a CSV text", "binary data", "export the take as CSV") from error
    if len(rows) < 2:
        raise FormatError(path, "", "a header and at least one frame", f"{len(rows)} lines", "export the take again")
    for line, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]):
            found = f"{len(row)} values, so the file may be cut off"
            raise FormatError(path, f"line {line}", f"{len(rows[0])} values", found, "export the take again")
    return rows[0], rows[1:]


def _numbers(path: Path, header: list[str], rows: list[list[str]], timecode: int) -> np.ndarray:
    """(T, columns) with zero in the timecode's column."""
    values = np.zeros((len(rows), len(header)))
    for k, row in enumerate(rows):
        for column, cell in enumerate(row):
            if column == timecode:
                continue
            try:
                values[k, column] = float(cell)
            except ValueError as error:
                raise FormatError(path, f"line {k + 2}, {header[column]}", "a number", repr(cell)) from error
    if not np.isfinite(values).all():
        k, column = np.argwhere(~np.isfinite(values))[0]
        raise FormatError(path, f"line {k + 2}, {header[column]}", "a finite number", values[k, column])
    return values


def _seconds(path: Path, timecode: str, fps: float, line: int) -> float:
    """HH:MM:SS:FF or HH:MM:SS:FF.sub, where FF counts frames."""
    parts = timecode.strip().replace(";", ":").split(":")
    try:
        hours, minutes, seconds, frames = (float(part) for part in parts)
    except ValueError as error:
        raise FormatError(path, f"line {line}, Timecode", "HH:MM:SS:FF", repr(timecode)) from error
    return hours * 3600 + minutes * 60 + seconds + frames / fps


def _axis_angles(angles: np.ndarray) -> np.ndarray:
    """Yaw, pitch, roll (T, K, 3) to axis-angle (T, K, 3).

    ARKit's face has the world axes used here. Signs are those of ARKit's own angles; takes whose exporter turned them round need
    a change of sign by the caller. Positive yaw turns toward the person's left (about +y), positive pitch
    nods down (about +x), positive roll tips the head toward the person's right shoulder (about +z).
    """
    shape = angles.shape
    turned = Rotation.from_euler("YXZ", angles.reshape(-1, 3))
    return turned.as_rotvec().reshape(shape)
