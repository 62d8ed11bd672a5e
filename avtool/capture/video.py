"""Videos in and out, through the ffmpeg program that imageio-ffmpeg brings.

Frames are uint8 (H, W, 3) RGB, upright, with square pixels. A frame's index counts decoded frames from zero.
"""

from __future__ import annotations

import logging
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from ..artifacts.files import atomic_write
from ..errors import AvtoolError, FormatError

logger = logging.getLogger("avtool")

VIDEO_SUFFIXES = frozenset(".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .wmv .flv .3gp .ts .y4m .ogv".split())
# What every video that avtool renders says about itself.
SYNTHETIC = {"comment": "synthetic: rendered by avtool"}
# Fewer of the promised frames than this mean that the file was cut off.
MIN_COMPLETE = 0.9
# Sound that players of MP4 files know; the container would take more.
_PLAYABLE_AUDIO = ("aac", "mp3")
_SQUARE_PIXELS = "scale='if(gt(sar,0),round(iw*sar),iw)':ih,setsar=1"
_TRUNCATION_MARKS = ("moov atom not found", "partial file", "Truncat", "truncat", "File ended prematurely")


@dataclass(frozen=True)
class VideoInfo:
    """What a video holds: frame size (upright, square pixels), rate, number of frames, whether there is sound."""

    width: int
    height: int
    fps: float
    num_frames: int
    has_audio: bool


def is_video(path: str | Path) -> bool:
    """Whether a file name looks like a video."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def probe_video(path: str | Path) -> VideoInfo:
    """Reads what a video holds; counts its frames without decoding them.

    Raises:
        AvtoolError: no such file.
        FormatError: not a video, or cut off.
    """
    path = _existing(path)
    result = _run(["-nostdin", "-i", _url(path), "-map", "0:v:0", "-c", "copy", "-f", "null", "-"])
    log = result.stderr
    streams = [line for line in log.partition("Output #0")[0].splitlines() if re.match(r"\s*Stream #0:", line)]
    video = next((line for line in streams if "Video:" in line and "attached pic" not in line), None)
    counts = re.findall(r"frame=\s*(\d+)", log)
    num_frames = int(counts[-1]) if counts else 0
    if video is None or num_frames == 0 or result.returncode != 0:
        raise _unreadable(path, log)
    fps = _frame_rate(video)
    duration = re.search(r"Duration: (\d+):(\d+):([\d.]+)", log)
    if duration and fps:
        hours, minutes, seconds = (float(part) for part in duration.groups())
        promised = fps * (hours * 3600 + minutes * 60 + seconds)
        if num_frames < MIN_COMPLETE * promised - 2 and _is_truncated(log):
            found = f"{num_frames} of about {promised:.0f} frames: it was cut off"
            raise FormatError(path, "", "a complete video", found, "copy or export it again")
    first = next(iter(read_video(path, stop=1)))
    has_audio = any("Audio:" in line for line in streams)
    return VideoInfo(first.shape[1], first.shape[0], fps or 25.0, num_frames, has_audio)


def read_video(path: str | Path, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[np.ndarray]:
    """Decodes frames start, start + step, ... before stop, one at a time.

    Closing the iterator ends the decoder.

    Raises:
        AvtoolError: no such file.
        FormatError: not a video, or cut off within the wanted frames.
    """
    if start < 0 or step < 1 or (stop is not None and stop <= start):
        raise ValueError(f"read_video: expected 0 <= start < stop and step >= 1, found {start}, {stop}, {step}")
    path = _existing(path)
    select = [f"gte(n,{start})"]
    if stop is not None:
        select.append(f"lt(n,{stop})")
    if step > 1:
        select.append(f"not(mod(n-{start},{step}))")
    command = ["-nostdin", "-i", _url(path), "-map", "0:v:0"]
    if len(select) > 1 or start:
        command += ["-vf", f"select='{'*'.join(select)}',{_SQUARE_PIXELS}"]
    else:
        command += ["-vf", _SQUARE_PIXELS]
    if stop is not None:
        command += ["-frames:v", str(len(range(start, stop, step)))]
    # A picture stream carries its size in each frame, so rotation and pixel aspect are ffmpeg's business alone.
    command += ["-fps_mode", "passthrough", "-c:v", "ppm", "-f", "image2pipe", "-"]
    with _pipe(command, stdout=subprocess.PIPE) as (process, log):
        count = 0
        while (frame := _read_ppm(process.stdout)) is not None:
            count += 1
            yield frame
        code = process.wait()
        text = _read_log(log)
        if count == 0 or (code != 0 and stop is None) or (stop is None and _is_truncated(text)):
            raise _unreadable(path, text, count)


def read_frames(path: str | Path, indices: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Decodes chosen frames in one pass, in increasing order, each with its index.

    Raises:
        AvtoolError: the video has fewer frames.
    """
    wanted = sorted(set(indices))
    if not wanted:
        return
    first, last = wanted[0], wanted[-1]
    frames = read_video(path, first, last + 1)
    found = 0
    try:
        for idx, frame in enumerate(frames, first):
            if idx == wanted[found]:
                found += 1
                yield idx, frame
    finally:
        frames.close()
    if found < len(wanted):
        raise AvtoolError(f"{path}: expected at least {last + 1} frames, found no frame {wanted[found]}", "check the video")


class VideoWriter:
    """Writes an H.264 video; nothing appears at ``path`` before the video is complete.

    Use as a context manager: leaving it normally finishes the file, leaving it by an exception removes it.

    Args:
        path: the output, .mp4.
        fps: frames a second.
        size: (width, height); odd sizes grow by one repeated pixel, which the codec demands.
        audio_from: a video whose sound is added, if it has any.
        audio_start: seconds of that sound to skip.
        metadata: tags, for example SYNTHETIC.
        quality: x264's constant rate factor; 17 shows no visible loss.
        gray: whether frames are uint8 (H, W) and are stored without color.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float,
        size: tuple[int, int],
        audio_from: str | Path | None = None,
        metadata: Mapping[str, str] | None = None,
        *,
        audio_start: float = 0.0,
        quality: int = 17,
        gray: bool = False,
    ) -> None:
        if fps <= 0 or min(size) < 1:
            raise ValueError(f"VideoWriter: expected a positive rate and size, found {fps} and {size}")
        self.path, self.size, self.gray = Path(path), size, gray
        self.audio_from, self.audio_start, self.metadata = audio_from, audio_start, dict(metadata or {})
        self.rate = Fraction(fps).limit_denominator(1001)
        self.quality = quality
        self.num_frames = 0

    def __enter__(self) -> VideoWriter:
        self._directory = tempfile.TemporaryDirectory(prefix="avtool-")
        self._silent = Path(self._directory.name) / "silent.mp4"
        width, height = (side + side % 2 for side in self.size)
        command = ["-f", "rawvideo", "-pix_fmt", "gray" if self.gray else "rgb24", "-s", f"{width}x{height}"]
        command += ["-r", str(self.rate), "-i", "-", "-an", "-c:v", "libx264", "-crf", str(self.quality)]
        # BT.709 is what players assume for untagged video; the tags keep colors from shifting in those that do not.
        command += ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-pix_fmt", "yuv420p", "-preset", "medium"]
        command += ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
        self._pipe = _pipe([*command, str(self._silent)], stdin=subprocess.PIPE)
        self._process, self._log = self._pipe.__enter__()
        return self

    def write(self, frame: np.ndarray) -> None:
        """Adds a frame: uint8 (H, W, 3), or (H, W) when gray."""
        shape = (self.size[1], self.size[0]) if self.gray else (self.size[1], self.size[0], 3)
        if frame.dtype != np.uint8 or frame.shape != shape:
            raise ValueError(f"VideoWriter: expected uint8 {shape}, found {frame.dtype} {frame.shape}")
        grow = [(0, self.size[1] % 2), (0, self.size[0] % 2)] + [(0, 0)] * (frame.ndim - 2)
        if grow[0][1] or grow[1][1]:
            frame = np.pad(frame, grow, mode="edge")
        try:
            self._process.stdin.write(np.ascontiguousarray(frame).data)
        except BrokenPipeError as error:
            raise AvtoolError(f"{self.path}: writing the video failed: {_reason(_read_log(self._log))}") from error
        self.num_frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            self._pipe.__exit__(None, None, None)
            self._directory.cleanup()

    def _finish(self) -> None:
        if self.num_frames == 0:
            raise AvtoolError(f"{self.path}: expected at least one frame to write, found none", "check the input")
        self._process.stdin.close()
        if self._process.wait() != 0:
            raise AvtoolError(f"{self.path}: writing the video failed: {_reason(_read_log(self._log))}")
        with atomic_write(self.path) as temporary:
            self._wrap(temporary)

    def _wrap(self, output: Path) -> None:
        """Puts pictures, sound and tags into one file whose index comes first."""
        tags = [part for key, value in self.metadata.items() for part in ("-metadata", f"{key}={value}")]
        tail = [*tags, "-map_chapters", "-1", "-movflags", "+faststart", "-y", str(output)]
        silent = ["-nostdin", "-i", str(self._silent)]
        duration = float(self.num_frames / self.rate)
        codec = _audio_codec(self.audio_from) if self.audio_from is not None else None
        if codec is not None:
            seek = ["-ss", f"{self.audio_start:.6f}"] if self.audio_start > 0 else []
            sound = [*seek, "-t", f"{duration:.6f}", "-i", _url(Path(self.audio_from))]
            maps = ["-map", "0:v", "-map", "1:a:0", "-map_metadata", "-1", "-c:v", "copy"]
            for choice in ("copy", "aac") if codec in _PLAYABLE_AUDIO else ("aac",):
                done = _run([*silent, *sound, *maps, "-c:a", choice, *tail]).returncode == 0
                if done and _audio_codec(output) is not None:
                    return
            logger.warning("%s: the sound of %s could not be kept: the video is silent", self.path, self.audio_from)
        result = _run([*silent, "-map", "0:v", "-map_metadata", "-1", "-c", "copy", *tail])
        if result.returncode != 0:
            raise AvtoolError(f"{self.path}: writing the video failed: {_reason(result.stderr)}")


def _audio_codec(path: str | Path) -> str | None:
    """Name of the first sound stream's codec, or None when there is no sound in it."""
    log = _run(["-nostdin", "-i", _url(_existing(path)), "-map", "0:a:0?", "-c", "copy", "-f", "null", "-"]).stderr
    match = re.search(r"Stream #0:\d+.*?Audio: (\w+)", log.partition("Output #0")[0])
    empty = re.search(r"audio:0\s?KiB", log) is not None
    return match[1] if match and not empty else None


def _ffmpeg() -> str:
    # Imported late: finding the program takes a moment, and photos do not need it.
    from imageio_ffmpeg import get_ffmpeg_exe

    try:
        return get_ffmpeg_exe()
    except RuntimeError as error:
        raise AvtoolError("ffmpeg was not found", "install it, or reinstall imageio-ffmpeg") from error


def _url(path: Path) -> str:
    """Names a file so that ffmpeg takes neither ':' nor '%' nor a leading '-' in it as syntax."""
    return f"file:{path}"


def _run(arguments: list[str]) -> subprocess.CompletedProcess:
    """Runs ffmpeg to its end; in a session of its own, so that Ctrl-C reaches us first and we end it."""
    with _pipe(arguments) as (process, log):
        code = process.wait()
        return subprocess.CompletedProcess(arguments, code, None, _read_log(log))


@contextmanager
def _pipe(arguments: list[str], **streams: int) -> Iterator[tuple[subprocess.Popen, IO[bytes]]]:
    """A running ffmpeg and its log; whatever happens, it is gone afterwards."""
    with tempfile.TemporaryFile() as log:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **streams}
        process = subprocess.Popen(
            [_ffmpeg(), "-hide_banner", *arguments], stderr=log, start_new_session=True, **streams
        )
        try:
            yield process, log
        finally:
            process.kill()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    try:
                        stream.close()
                    except BrokenPipeError:
                        # Frames still in the buffer have nowhere to go: the program is being ended on purpose.
                        pass
            process.wait()


def _read_log(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode("utf-8", "replace").replace("\r", "\n")


def _read_ppm(stream: IO[bytes]) -> np.ndarray | None:
    """The next picture of a stream of binary PPM, or None at its end."""
    header = b""
    while header.count(b"\n") < 3:
        line = stream.readline()
        if not line:
            return None
        header += line
    magic, width, height, top = header.split()
    assert magic == b"P6" and top == b"255"
    size = int(width) * int(height) * 3
    data = stream.read(size)
    if len(data) < size:
        return None
    return np.frombuffer(bytearray(data), np.uint8).reshape(int(height), int(width), 3)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        raise AvtoolError(f"{path}: expected a video, found a directory", "name a video file")
    if not path.exists():
        raise AvtoolError(f"{path}: no such file", "check the path")
    return path


def _frame_rate(stream: str) -> float | None:
    """Mean rate out of ffmpeg's description of a stream; it prints rounded numbers, so NTSC's are put right."""
    match = re.search(r"([\d.]+)(k?) (?:fps|tbr)", stream)
    if not match:
        return None
    rate = float(match[1]) * (1000 if match[2] else 1)
    for whole in (24, 30, 60, 120):
        if abs(rate - whole * 1000 / 1001) < 0.006:
            return whole * 1000 / 1001
    return rate


def _is_truncated(log: str) -> bool:
    return any(mark in log for mark in _TRUNCATION_MARKS)


def _reason(log: str) -> str:
    """The last line of ffmpeg's talk that says what went wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"rror|nvalid|not found|annot|denied|space", line)]
    return (telling or lines or ["no reason given"])[-1][:200]


def _unreadable(path: Path, log: str, count: int = 0) -> FormatError:
    if path.stat().st_size == 0:
        return FormatError(path, "", "a video", "an empty file", "copy it again")
    if _is_truncated(log):
        found = f"a file that was cut off after {count} frames" if count else "a file that was cut off"
        return FormatError(path, "", "a complete video", found, "copy or export it again")
    return FormatError(path, "", "a video that ffmpeg reads", "something else, or damaged data", "convert it to MP4")
