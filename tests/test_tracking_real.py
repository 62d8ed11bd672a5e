"""Tracking of a real photo and a real video, from pixels to files."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avtool.artifacts.track import Track
from avtool.capture.samples import load_samples
from avtool.capture.video import probe_video
from avtool.head import HeadModel, load_head_model
from avtool.tracking import TrackingOptions, TrackResult, save_track, track_photos, track_video
from avtool.tracking.overlay import TILE, write_overlay

LIMIT = 0.013


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model()


@pytest.fixture(scope="module")
def portrait(astronaut: Path, head: HeadModel) -> TrackResult:
    return track_photos([astronaut], head)


@pytest.fixture(scope="module")
def clip(carphone: Path, head: HeadModel) -> TrackResult:
    return track_video(carphone, head, options=TrackingOptions(max_frames=12, stride=2))


def test_the_mesh_lies_on_the_astronaut(portrait: TrackResult) -> None:
    (frame,) = portrait.frames
    assert frame.residual <= LIMIT
    assert portrait.metadata["landmark_error"] == pytest.approx(frame.residual)
    assert np.asarray(frame.K)[0, 2] == 256.0 and not portrait.metadata["focal_known"]


def test_the_photometric_stage_helps_on_the_astronaut(portrait: TrackResult) -> None:
    stage = portrait.metadata["photometric"]
    assert stage["taken"]
    before, after = stage["silhouette_iou_above_chin"]
    assert after > before
    assert stage["image_error"][1] < 0.9 * stage["image_error"][0]
    assert stage["landmark_error"][1] <= 1.15 * stage["landmark_error"][0]


def test_without_the_stage_nothing_is_rendered(astronaut: Path, head: HeadModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("rendered")

    monkeypatch.setattr("avtool.tracking.photos.refine_person", refuse)
    track = track_photos([astronaut], head, photometric=False)
    assert track.frames[0].residual <= LIMIT and "photometric" not in track.metadata
    # A known person's shape is not to be refined either, with or without the switch.
    again = track_photos([astronaut], head, identity=track)
    np.testing.assert_array_equal(again.identity, track.identity)


def test_a_track_with_its_mattes_reads_back(portrait: TrackResult, head: HeadModel, tmp_path: Path) -> None:
    path = tmp_path / "track.json"
    save_track(portrait, path)
    loaded = Track.load(path, head)
    np.testing.assert_allclose(loaded.identity, portrait.identity, atol=1e-5)
    np.testing.assert_allclose(loaded.frames[0].viewmat, portrait.frames[0].viewmat, atol=1e-6)
    assert loaded.frames[0].matte == "track.data/matte_0000.png"
    samples = load_samples(loaded, None, 64)
    assert 0.2 < float(samples.mattes.mean()) < 0.9
    with pytest.raises(Exception, match="exists"):
        save_track(portrait, path)
    sheet = tmp_path / "overlay.png"
    write_overlay(loaded, head, sheet)
    picture = np.asarray(Image.open(sheet)).astype(int)
    assert picture.shape == (TILE, 3 * TILE, 3)
    changed = np.abs(picture[:, :TILE] - picture[:, TILE : 2 * TILE]).max(-1) > 20
    assert 0.1 < changed.mean() < 0.8


def test_exif_turns_the_photo_and_gives_the_focal(astronaut: Path, head: HeadModel, tmp_path: Path) -> None:
    photo = Image.open(astronaut).convert("RGB").crop((0, 0, 480, 400))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise for display
    exif.get_ifd(0x8769)[0xA405] = 50  # focal length in 35 mm film
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    photo.save(tmp_path / "upright.png")
    options = TrackingOptions(photometric=False, mattes=False)
    turned = track_photos([tmp_path / "turned.jpg"], head, options=options)
    upright = track_photos([tmp_path / "upright.png"], head, options=TrackingOptions(photometric=False, mattes=False, focal_mm=50.0))
    (a,), (b,) = turned.frames, upright.frames
    assert (a.width, a.height) == (480, 400)
    assert turned.metadata["focal_known"] and a.K[0][0] == pytest.approx(b.K[0][0], rel=0.02)
    assert np.abs(np.asarray(a.landmarks) - np.asarray(b.landmarks)).mean() < 1.0


def test_photos_of_one_person_share_shape_and_focal(astronaut: Path, head: HeadModel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.asarray(Image.open(astronaut).convert("RGB"))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[:, ::-1].copy()).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no picture")
    options = TrackingOptions(photometric=False, mattes=False)
    with caplog.at_level(logging.WARNING, "avtool"):
        track = track_photos([tmp_path / name for name in ("a.png", "b.png", "c.png")], head, options=options)
    assert [Path(frame.image).name for frame in track.frames] == ["a.png", "b.png"]
    assert "c.png" in caplog.text and "skipped" in caplog.text
    assert track.frames[0].K[0][0] == track.frames[1].K[0][0] and len(track.metadata["focal_px"]) == 1
    assert np.asarray(track.identity).ndim == 1


def test_every_frame_of_a_part_of_carphone(clip: TrackResult) -> None:
    assert [frame.frame_idx for frame in clip.frames] == list(range(0, 24, 2))
    assert clip.metadata["frames_without_face"] == 0
    assert clip.metadata["landmark_error"] <= LIMIT
    assert max(frame.residual for frame in clip.frames) < 2 * LIMIT
    assert clip.metadata["photometric"]["pictures"] == 4


def test_a_clips_bust_is_steadier_than_its_head(clip: TrackResult) -> None:
    centers = np.array([np.asarray(frame.viewmat)[:3, :3] for frame in clip.frames])
    steps = np.linalg.norm(np.diff(centers, axis=0), axis=(1, 2))
    assert np.degrees(steps.max()) < 4.0


def test_a_videos_files_are_small_and_whole(clip: TrackResult, head: HeadModel, tmp_path: Path) -> None:
    path = tmp_path / "clip.json"
    save_track(clip, path)
    loaded = Track.load(path, head)
    assert loaded.mattes_video == "clip.data/mattes.mp4"
    assert probe_video(loaded.resolve(loaded.mattes_video)).num_frames == len(clip.frames) == len(loaded.frames)
    samples = load_samples(loaded, [0, 5], 64)
    wanted = np.stack([np.asarray(Image.fromarray(m).resize((64, 64), Image.Resampling.BOX)) for m in decoded(clip, [0, 5])]) / 255.0
    assert np.abs(samples.mattes[..., 0].numpy() - wanted).mean() < 0.02
    total = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    # 10 MB for a minute at 25 frames a second, every file's header counted as if it grew with the frames.
    assert total / len(clip.frames) * 1500 < 10e6
    video = tmp_path / "overlay.mp4"
    write_overlay(loaded, head, video)
    assert probe_video(video).num_frames == len(clip.frames)


def decoded(clip: TrackResult, indices: list[int]) -> list[np.ndarray]:
    import io

    return [np.asarray(Image.open(io.BytesIO(clip.matte_images[k]))) for k in indices]
