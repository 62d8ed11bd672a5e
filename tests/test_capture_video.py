"""Reading and writing videos: what comes out, what is refused, and that no ffmpeg stays behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from avtool.capture.video import SYNTHETIC, VideoWriter, probe_video, read_frames, read_video
from avtool.errors import AvtoolError, FormatError


def ffmpeg(*arguments: object) -> str:
    command = [get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-y", *(str(a) for a in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stderr


def children() -> list[str]:
    """Command lines of the ffmpeg programs that this process started and has not collected."""
    import os

    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if f"PPid:\t{os.getpid()}\n" in text and "ffmpeg" in text.splitlines()[0]:
            found.append(text.splitlines()[0])
    return found


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames of 64 x 48 at 25 a second whose brightness is 5 times their index, with sound."""
    path = tmp_path_factory.mktemp("clip") / "a clip: 100%.mp4"
    source = "color=c=black:s=64x48:r=25:d=1.6,format=gray,geq=lum='5*N'"
    ffmpeg("-f", "lavfi", "-i", source, "-f", "lavfi", "-i", "sine=d=1.6", "-pix_fmt", "yuv420p", "-crf", "4",
           "-c:a", "aac", "-movflags", "+faststart", f"file:{path}")  # fmt: skip
    return path


def levels(frames: list[np.ndarray]) -> list[int]:
    """Index of each frame of the clip, from its brightness."""
    return [round(frame.mean() / 5) for frame in frames]


def test_probe_and_read(clip: Path) -> None:
    info = probe_video(clip)
    assert (info.width, info.height, info.fps, info.num_frames, info.has_audio) == (64, 48, 25.0, 40, True)
    frames = list(read_video(clip))
    assert len(frames) == 40 and frames[0].shape == (48, 64, 3) and frames[0].dtype == np.uint8
    assert levels(frames) == list(range(40))


def test_frames_by_index_agree_with_reading_all(clip: Path) -> None:
    frames = list(read_video(clip))
    np.testing.assert_array_equal(list(read_video(clip, 7, 30, 4)), frames[7:30:4])
    chosen = dict(read_frames(clip, [33, 2, 20, 2]))
    assert list(chosen) == [2, 20, 33]
    assert all((chosen[k] == frames[k]).all() for k in chosen)
    with pytest.raises(AvtoolError, match="no frame 40"):
        list(read_frames(clip, [39, 40]))


def test_rotation_and_pixel_aspect_are_honored(clip: Path, tmp_path: Path) -> None:
    turned, wide = tmp_path / "turned.mp4", tmp_path / "wide.mp4"
    ffmpeg("-display_rotation", "90", "-i", f"file:{clip}", "-c", "copy", turned)
    assert next(read_video(turned)).shape == (64, 48, 3)
    assert (probe_video(turned).width, probe_video(turned).height) == (48, 64)
    ffmpeg("-i", f"file:{clip}", "-vf", "setsar=3/2", wide)
    assert next(read_video(wide)).shape == (48, 96, 3)


def test_cut_and_foreign_files_are_refused(clip: Path, tmp_path: Path) -> None:
    data = clip.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "no index.mp4").write_bytes(data[:200])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video" * 99)
    for name in ("cut.mp4", "no index.mp4", "empty.mp4", "text.mp4"):
        for use in (probe_video, lambda path: list(read_video(path))):
            with pytest.raises(FormatError) as caught:
                use(tmp_path / name)
            assert name in str(caught.value) and caught.value.hint and "\n" not in str(caught.value)
    with pytest.raises(AvtoolError, match="no such file"):
        probe_video(tmp_path / "none.mp4")
    ffmpeg("-i", f"file:{clip}", "-vn", tmp_path / "sound.m4a")
    with pytest.raises(FormatError):
        probe_video(tmp_path / "sound.m4a")


def test_an_abandoned_reader_ends_its_decoder(clip: Path) -> None:
    reader = read_video(clip)
    next(reader)
    assert len(children()) == 1
    reader.close()
    assert children() == []


def test_writer_round_trip_with_sound_and_tags(clip: Path, carphone: Path, tmp_path: Path) -> None:
    frames = [frame[:143, :175] for frame in read_video(carphone, 0, 30)]
    path = tmp_path / "out ü.mp4"
    with VideoWriter(path, 30000 / 1001, (175, 143), audio_from=clip, metadata=SYNTHETIC) as writer:
        for frame in frames:
            writer.write(frame)
        assert not path.exists()
    info = probe_video(path)
    assert (info.width, info.height, info.num_frames, info.has_audio) == (176, 144, 30, True)
    assert info.fps == pytest.approx(30000 / 1001)
    back = list(read_video(path))
    errors = [np.abs(a[:143, :175].astype(int) - b).mean() for a, b in zip(back, frames)]
    assert max(errors) < 4
    drift = np.mean([a[:143, :175].mean((0, 1)) - b.mean((0, 1)) for a, b in zip(back, frames)], 0)
    assert np.abs(drift).max() < 1.5  # no shift of colors or range
    assert "synthetic: rendered by avtool" in ffmpeg("-i", path)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat") and [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("codec", ["pcm_s16le", "adpcm_ms"])
def test_sound_that_players_do_not_know_is_encoded_again(codec: str, clip: Path, tmp_path: Path) -> None:
    driver, path = tmp_path / "driver.mkv", tmp_path / "out.mp4"
    ffmpeg("-i", f"file:{clip}", "-c:v", "copy", "-c:a", codec, driver)
    with VideoWriter(path, 25, (64, 48), audio_from=driver) as writer:
        for _ in range(30):
            writer.write(np.zeros((48, 64, 3), np.uint8))
    assert probe_video(path).has_audio and "Audio: aac" in ffmpeg("-i", path)


def test_gray_video_keeps_mattes(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 128).round().astype(np.uint8)[None].repeat(64, 0)
    with VideoWriter(tmp_path / "mattes.mp4", 25, (128, 64), gray=True) as writer:
        for _ in range(5):
            writer.write(ramp)
    frame = list(read_video(tmp_path / "mattes.mp4"))[3]
    assert np.abs(frame.astype(int) - ramp[..., None]).max() <= 6


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with pytest.raises(KeyboardInterrupt):
        with VideoWriter(path, 25, (64, 48)) as writer:
            writer.write(np.zeros((48, 64, 3), np.uint8))
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [] and children() == []
    with pytest.raises(AvtoolError, match="at least one frame"):
        with VideoWriter(path, 25, (64, 48)):
            pass
    with pytest.raises(ValueError, match="expected uint8"):
        with VideoWriter(path, 25, (64, 48)) as writer:
            writer.write(np.zeros((48, 48, 3), np.uint8))
    assert list(tmp_path.iterdir()) == [] and children() == []
