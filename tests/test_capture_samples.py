"""Samples of tracks: exact cameras, padding, mattes of every kind; takes of Live Link Face."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avtool.artifacts.track import Frame, Track
from avtool.cameras import project
from avtool.capture import VideoWriter
from avtool.capture import samples as samples_module
from avtool.capture.drivers import ROTATIONS, read_live_link
from avtool.capture.samples import AHEAD, crop_square, load_samples, stream_samples
from avtool.errors import AvtoolError, FormatError

VIEWMAT = np.diag([1.0, -1.0, -1.0, 1.0])
VIEWMAT[2, 3] = 0.6


def ramp(width: int, height: int) -> np.ndarray:
    """An image whose red is x and whose green is y, at pixel centers times two."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([2 * x + 1, 2 * y + 1, np.full_like(x, 90)], -1).astype(np.uint8)


def frame(**changes: object) -> Frame:
    K = np.array([[150.0, 0, 60], [0, 150, 50], [0, 0, 1]])
    fields = dict(
        image="a.png", frame_idx=None, width=120, height=100, K=K, viewmat=VIEWMAT, expression=np.zeros(5),
        neck=np.zeros(3), head=np.zeros(3), jaw=np.zeros(3), eyes=np.zeros((2, 3)), crop=(20.0, 10.0, 80.0),
    )  # fmt: skip
    return Frame(**(fields | changes))


def track(base: Path, *frames: Frame, **changes: object) -> Track:
    return Track(head_model="test", identity=np.zeros(4), frames=list(frames), base=base, **changes)


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("size", [80, 40, 27, 160])
@pytest.mark.parametrize("crop", [(20.0, 10.0, 80.0), (13.25, 5.5, 71.3)])
def test_cameras_of_crops_are_exact(size: int, crop: tuple[float, float, float], tmp_path: Path) -> None:
    """A point's color, read where the crop's camera sees it, is its place in the full image."""
    save(tmp_path / "a.png", ramp(120, 100))
    save(tmp_path / "m.png", np.full((64, 64), 255, np.uint8))
    samples = load_samples(track(tmp_path, frame(crop=crop, matte="m.png")), [0], size)
    points = torch.tensor([[0.0, 0.0, 0.0], [0.05, 0.03, 0.02], [-0.06, -0.05, 0.05]])
    seen, _ = project(points, samples.viewmats, samples.Ks)
    truth, _ = project(points, samples.viewmats, torch.tensor(frame().K, dtype=torch.float32)[None])
    grid = (seen / size * 2 - 1)[:, None]
    colors = torch.nn.functional.grid_sample(samples.images.permute(0, 3, 1, 2), grid, align_corners=False)
    np.testing.assert_allclose(colors[0, :2, 0].T.numpy() * 255 / 2, truth[0].numpy(), atol=0.6)
    assert samples.images.shape == (1, size, size, 3) and samples.mattes.shape == (1, size, size, 1)
    assert float(samples.mattes.min()) == 1.0 and samples.params.expression.shape == (1, 5)


def test_area_average_is_exact() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = crop_square(pixels, (8.0, 16.0, 48.0), 12)
    expected = pixels[16:64, 8:56].reshape(12, 4, 12, 4, 3).mean((1, 3))
    assert np.abs(found - expected).max() <= 1
    np.testing.assert_array_equal(crop_square(pixels, (8.0, 16.0, 48.0), 48), pixels[16:64, 8:56])


def test_outside_is_white_with_matte_zero(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.zeros((100, 120, 3), np.uint8))
    save(tmp_path / "whole.png", np.full((100, 120), 255, np.uint8))  # a mask of the whole photo, as others write them
    samples = load_samples(track(tmp_path, frame(crop=(-30.0, -20.0, 100.0), matte="whole.png")), None, 100)
    image, matte = samples.images[0], samples.mattes[0]
    assert bool((image[:20] == 1).all()) and bool((image[:, :30] == 1).all()) and bool((image[21:, 31:] == 0).all())
    assert bool((matte[:20] == 0).all()) and bool((matte[:, :30] == 0).all()) and bool((matte[21:, 31:] == 1).all())
    far = load_samples(track(tmp_path, frame(crop=(500.0, 500.0, 50.0))), [0], 16, with_matte=False)
    assert bool((far.images == 1).all()) and far.mattes is None


def test_order_repeats_and_video(tmp_path: Path) -> None:
    levels = [20, 60, 100, 140, 180]
    with VideoWriter(tmp_path / "v.mp4", 25, (64, 64)) as pictures, \
         VideoWriter(tmp_path / "m.mp4", 25, (32, 32), gray=True) as mattes:  # fmt: skip
        for level in levels:
            pictures.write(np.full((64, 64, 3), level, np.uint8))
            mattes.write(np.full((32, 32), 255 - level, np.uint8))
    frames = [frame(image=None, frame_idx=k, width=64, height=64, crop=(0.0, 0.0, 64.0)) for k in (0, 2, 4)]
    clip = track(tmp_path, *frames, video="v.mp4", fps=25.0)
    mattes_of_all = Track(**{**clip.__dict__, "mattes_video": "m.mp4"})
    samples = load_samples(mattes_of_all, [2, 0, 2, 1], 32)
    np.testing.assert_allclose(samples.images.mean((1, 2, 3)).numpy() * 255, [180, 20, 180, 100], atol=3)
    np.testing.assert_allclose(samples.mattes.mean((1, 2, 3)).numpy() * 255, [155, 235, 155, 195], atol=3)


    streamed = list(stream_samples(mattes_of_all, [2, 0, 1, 1], 32, 2))
    assert [chosen for chosen, _ in streamed] == [[0, 1], [2]]
    assert torch.equal(torch.cat([part.images for _, part in streamed]), samples.images[[1, 3, 0]])
    assert torch.equal(torch.cat([part.mattes for _, part in streamed]), samples.mattes[[1, 3, 0]])


def test_photos_are_streamed_as_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the series, only so many pictures are read ahead."""
    opened = []
    read = samples_module.load_image

    def counted(path: Path) -> object:
        opened.append(path)
        return read(path)

    monkeypatch.setattr(samples_module, "load_image", counted)
    save(tmp_path / "a.png", ramp(120, 100))
    save(tmp_path / "m.png", np.full((64, 64), 255, np.uint8))
    series = track(tmp_path, *[frame(matte="m.png", crop=(float(k), 10.0, 60.0)) for k in range(3 * AHEAD)])
    parts = stream_samples(series, range(3 * AHEAD), 16, 4)
    first, found = next(parts)
    assert first == [0, 1, 2, 3] and len(opened) <= AHEAD
    whole = load_samples(series, None, 16)
    rest = [part for _, part in parts]
    assert torch.equal(torch.cat([found.images, *(part.images for part in rest)]), whole.images)
    assert torch.equal(torch.cat([found.Ks, *(part.Ks for part in rest)]), whole.Ks)
    assert len(whole.params) == sum(map(lambda part: len(part.params), [found, *rest]))


def test_a_track_without_mattes_gets_them(astronaut: Path, tmp_path: Path) -> None:
    item = frame(image=str(astronaut), width=512, height=512, crop=(106.0, 7.0, 240.0))
    samples = load_samples(track(tmp_path, item), [0], 64)
    assert float(samples.mattes[0, 28, 30]) > 0.95 and float(samples.mattes[0, 4, 2]) < 0.05


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(AvtoolError, match=r"a\.png: no such file"):
        load_samples(track(tmp_path, frame()), [0], 16, with_matte=False)
    save(tmp_path / "a.png", ramp(120, 100))
    with pytest.raises(AvtoolError, match=r"m\.png: no such file"):
        load_samples(track(tmp_path, frame(matte="m.png")), [0], 16)
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(FormatError, match=r"m\.png"):
        load_samples(track(tmp_path, frame(matte="m.png")), [0], 16)


def take(path: Path, rows: list[str], columns: str = "EyeBlinkLeft,JawOpen") -> Path:
    header = f"Timecode,BlendShapeCount,{columns},{','.join(ROTATIONS)}"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_live_link_take(tmp_path: Path) -> None:
    zeros = ",0" * 6
    rows = [f"23:59:59:30.5,61,0.25,0.5,0.3,0,0{zeros}", f"23:59:59:54,61,1.2,0.75,0,0.2,0{zeros}",
            f"00:00:00:00,61,0,0,0,0,-0.1{zeros}"]  # fmt: skip
    found = read_live_link(take(tmp_path / "take ü.csv", rows), ["jawOpen", "cheekPuff", "eyeBlinkLeft"])
    np.testing.assert_allclose(found.expression, [[0.5, 0, 0.25], [0.75, 0, 1.0], [0, 0, 0]])
    np.testing.assert_allclose(found.head, [[0, 0.3, 0], [0.2, 0, 0], [0, 0, -0.1]], atol=1e-12)
    np.testing.assert_allclose(found.timestamps, [0, 23.5 / 60, 29.5 / 60], atol=1e-9)
    assert found.missing == ("cheekPuff",) and found.eyes.shape == (3, 2, 3)
    degrees = take(tmp_path / "d.csv", [f"00:00:00:00,61,0,0,30,0,0{zeros}"])
    for unit in ("auto", "degrees"):
        assert read_live_link(degrees, ["jawOpen"], unit=unit).head[0, 1] == pytest.approx(np.pi / 6)


@pytest.mark.parametrize(
    "rows, word",
    [
        ([], "at least one frame"),
        (["00:00:00:00,61,0.1,0.2"], "cut off"),
        (["00:00:00:00,61,x,0" + ",0" * 9], "line 2, EyeBlinkLeft"),
        (["00:00:00:00,61,nan,0" + ",0" * 9], "finite"),
        (["noon,61,0,0" + ",0" * 9], "HH:MM:SS:FF"),
    ],
)
def test_bad_takes_name_the_line(rows: list[str], word: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=word) as caught:
        read_live_link(take(tmp_path / "take.csv", rows), ["jawOpen"])
    assert "take.csv" in str(caught.value)


def test_foreign_takes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("time,x\n1,2\n")
    (tmp_path / "b.csv").write_bytes(bytes(range(128, 256)))
    for name in ("a.csv", "b.csv"):
        with pytest.raises(FormatError, match=name):
            read_live_link(tmp_path / name, ["jawOpen"])
    with pytest.raises(AvtoolError, match="no such file"):
        read_live_link(tmp_path / "none.csv", ["jawOpen"])
