"""Where rendered frames go: a video file or a series of PNGs. Nothing half-written is left when the work is interrupted.

Shapes: a frame is (H, W, 3) uint8 RGB. Backgrounds are (3,) or (S, S, 3) float in [0, 1].
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor
from torch import Tensor

from avtool.artifacts.files import refuse_existing
from avtool.errors import AvtoolError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")
SYNTHETIC_NOTE = "Synthetic video: a rendered avatar, not a recording of a person. Made with avtool."
_PATTERN = re.compile(r"%0?\d*d")


class Sink(Protocol):
    """Takes frames in order."""

    def write(self, frame: NDArray[np.uint8]) -> None: ...


def is_video(output: Path) -> bool:
    """Whether an output path names a video; everything else is a directory, or a pattern like out/%05d.png."""
    return output.suffix.lower() in VIDEO_SUFFIXES


def check_output(output: Path, force: bool) -> None:
    """Refuses an output before any work starts: an existing one without force, or an unknown kind of file."""
    if is_video(output):
        refuse_existing(output, force)
        return
    directory, name = split_pattern(output)
    if directory.is_file() or (name is None and output.suffix and not output.is_dir()):
        expected = f"a video ({', '.join(VIDEO_SUFFIXES)}), a directory or a pattern like frames/%05d.png"
        raise AvtoolError(f"{output}: expected {expected}")
    if directory.is_dir() and any(directory.glob("*.png")) and not force:
        raise AvtoolError(f"{directory}: already holds PNG files", "pass --force to overwrite them, or choose another --output")
    refuse_existing(directory / ".probe" if directory.is_dir() else directory, force)


def split_pattern(output: Path) -> tuple[Path, str | None]:
    """A PNG output's directory and file name pattern (None: the default)."""
    if not _PATTERN.search(output.name):
        return output, None
    if output.suffix.lower() != ".png" or len(_PATTERN.findall(output.name)) > 1 or output.name.count("%") > 1:
        raise AvtoolError(f"{output}: expected one frame number and the suffix .png", "write it as frames/%05d.png")
    return output.parent, output.name


@contextmanager
def open_sink(
    output: Path, fps: float, size: tuple[int, int], audio_from: Path | None = None, audio_start: float = 0.0
) -> Iterator[Sink]:
    """A sink for `output`; the result appears under its name only when the body ends well.

    Args:
        output: a video, a directory or a pattern; see `is_video`.
        fps: frames per second of a video.
        size: (width, height) of the frames.
        audio_from, audio_start: a video whose sound is kept, or None; seconds of it to skip.
    """
    if not is_video(output):
        with _open_pngs(output) as sink:
            yield sink
        return
    from avtool.capture.video import VideoWriter

    metadata = {"title": output.stem, "comment": SYNTHETIC_NOTE, "description": SYNTHETIC_NOTE}
    with VideoWriter(output, fps, size, audio_from, metadata, audio_start=audio_start) as writer:
        yield writer


class _PngSink:
    def __init__(self, directory: Path, pattern: str) -> None:
        self.directory, self.pattern, self.count = directory, pattern, 0

    def write(self, frame: NDArray[np.uint8]) -> None:
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text("Comment", SYNTHETIC_NOTE)
        Image.fromarray(frame).save(self.directory / (self.pattern % self.count), pnginfo=info)
        self.count += 1


@contextmanager
def _open_pngs(output: Path) -> Iterator[Sink]:
    """PNGs are written beside the target and moved in at the end; other files of an existing directory stay."""
    directory, pattern = split_pattern(output)
    temporary = directory.with_name(f".{directory.name[:100]}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield _PngSink(temporary, pattern or "%05d.png")
        if not directory.exists():
            temporary.rename(directory)
            return
        for file in sorted(temporary.iterdir()):
            file.replace(directory / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def parse_background(text: str, size: int) -> Tensor:
    """A color name, #rrggbb or an image file -> (3,) or, for an image, (size, size, 3) cut to fill the square."""
    try:
        color = ImageColor.getrgb(text)
        return torch.tensor(color[:3], dtype=torch.float32) / 255
    except ValueError:
        pass
    file = Path(text)
    if not file.is_file():
        raise AvtoolError(f"--background {text}: neither a color nor an image file", "use white, black, #rrggbb or a file")
    from avtool.capture.images import load_image

    pixels = load_image(file).pixels
    height, width = pixels.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    square = Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.asarray(square, np.float32) / 255)
