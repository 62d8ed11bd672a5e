"""reenact on a tiny random avatar: videos with sound, PNGs, cameras, transfer, interruption, bad input."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_avatar import SIZE, clip_track, make_avatar, photo_track

from avtool.artifacts.track import Track
from avtool.capture.video import probe_video, read_video
from avtool.errors import AvtoolError
from avtool.prior import sinks
from avtool.prior.avatar import Avatar
from avtool.prior.drive import Driver, driver_pictures, load_driver, steady_crops
from avtool.prior.reenact import (
    ReenactOptions,
    choose_transfer,
    face_distance_mm,
    neutral_camera,
    plan_motion,
    reenact,
)

FRAMES = 14


def ffmpeg(*arguments: object) -> str:
    from imageio_ffmpeg import get_ffmpeg_exe

    command = [get_ffmpeg_exe(), "-hide_banner", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True).stderr


@pytest.fixture(scope="module")
def avatar() -> Avatar:
    return make_avatar()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, avatar: Avatar) -> Path:
    """A directory with driver.mp4 (pictures and sound), its driver.json and avatar.safetensors."""
    folder = tmp_path_factory.mktemp("clip with spaces é")
    ffmpeg(
        "-f", "lavfi", "-i", f"testsrc=size={SIZE}x{SIZE}:rate=25", "-f", "lavfi", "-i", "sine=440", "-t", FRAMES / 25,
        "-pix_fmt", "yuv420p", folder / "driver.mp4",
    )  # fmt: skip
    clip_track(avatar, folder / "driver.mp4", FRAMES).save(folder / "driver.json")
    avatar.save(folder / "avatar.safetensors")
    return folder


@pytest.fixture
def driver(clip: Path, avatar: Avatar) -> Driver:
    return load_driver([str(clip / "driver.json")], avatar.head)


def test_a_video_has_the_drivers_frames_and_sound_and_says_that_it_is_synthetic(
    avatar: Avatar, driver: Driver, tmp_path: Path
) -> None:
    output, seen = tmp_path / "out.mp4", []
    report = reenact(avatar, driver, output, ReenactOptions(size=64, batch_size=4), lambda *args: seen.append(args[:2]))
    info = probe_video(output)
    assert (info.width, info.height, info.num_frames, info.has_audio) == (64, 64, FRAMES, True)
    assert info.fps == pytest.approx(25)
    assert "ynthetic" in ffmpeg("-i", output)
    assert seen[-1] == (FRAMES, FRAMES)
    assert report.frames_per_second == pytest.approx(FRAMES / report.render_seconds)
    assert report.frames_per_second_with_tracking is None, "the track was made beforehand: no figure with tracking"
    frames = np.stack(list(read_video(output))).astype(float)
    assert frames[0, :4, :4].min() > 240, "white background"
    assert np.abs(frames[0] - frames[3]).max() > 60, "the head turns"
    assert list(tmp_path.iterdir()) == [output]


def test_the_drivers_camera_puts_the_head_where_the_driver_is(avatar: Avatar, driver: Driver, tmp_path: Path) -> None:
    shifted = [replace(f, viewmat=f.viewmat + np.array([[0, 0, 0, 0.1], [0] * 4, [0] * 4, [0] * 4])) for f in driver.track.frames]
    moved = replace(driver, track=replace(driver.track, frames=shifted))
    centers = []
    for name, source in (("a", driver), ("b", moved)):
        reenact(avatar, source, tmp_path / name, ReenactOptions(size=64, max_frames=1))
        dark = np.asarray(Image.open(tmp_path / name / "00000.png").convert("L")) < 230
        centers.append(np.nonzero(dark)[1].mean())
    assert centers[1] - centers[0] == pytest.approx(0.1 * 2.2 * 64, abs=2.5)


def test_side_by_side_shows_the_driver_and_resampling_keeps_it_in_step(avatar: Avatar, driver: Driver, tmp_path: Path) -> None:
    options = ReenactOptions(size=64, side_by_side=True, fps=12.5)
    reenact(avatar, driver, tmp_path / "frames", options)
    files = sorted((tmp_path / "frames").iterdir())
    assert len(files) == FRAMES // 2
    shown = np.asarray(Image.open(files[3]))
    assert shown.shape == (64, 128, 3)
    real = list(driver_pictures(driver.track, steady_crops(driver.track), [6], 64))[0]
    assert np.array_equal(shown[:, :64], real)


@pytest.mark.parametrize("camera", ["fixed", "orbit"])
def test_own_cameras_frame_the_whole_head(avatar: Avatar, driver: Driver, camera: str) -> None:
    plan = plan_motion(avatar, driver, ReenactOptions(size=64, camera=camera))
    motion = plan.motion
    if camera == "fixed":
        assert (motion.viewmats == motion.viewmats[0]).all()
        assert motion.neck[:, 1].abs().max() > 0.05, "the driver's turn is in the joints"
    params = avatar.params_for(motion.expression, motion.neck, motion.head, motion.jaw, motion.eyes)
    with torch.no_grad():
        _, alphas = avatar.render(params, motion.viewmats, motion.Ks, 64, 64)
    assert 0.15 < alphas.mean() < 0.7
    assert alphas[:, 0].max() < 0.2, "room above the head"


def test_the_neutral_camera_sees_the_face_in_the_middle(avatar: Avatar) -> None:
    from avtool.cameras import project

    viewmat, K, center = neutral_camera(avatar, 100)
    uv, depth = project(center[None], viewmat, K)
    assert torch.allclose(uv[0], torch.tensor([50.0, 50.0]), atol=1.5) and float(depth) == pytest.approx(1.1)


def test_transfer_is_relative_for_another_person_only(avatar: Avatar, driver: Driver) -> None:
    assert face_distance_mm(avatar, driver) < 1e-2
    assert choose_transfer(avatar, driver, "auto") == "absolute"
    other = replace(driver, track=replace(driver.track, identity=-avatar.identity.numpy()))
    assert face_distance_mm(avatar, other) > 1
    assert choose_transfer(avatar, other, "auto") == "relative"
    few = replace(other, track=other.track.select([0, 1]))
    assert choose_transfer(avatar, few, "auto") == "absolute"
    with pytest.raises(AvtoolError, match="neutral"):
        choose_transfer(avatar, few, "relative")


def test_steady_crops_hold_still_or_follow_slowly(driver: Driver) -> None:
    rng = np.random.default_rng(0)
    track = driver.track

    def with_crops(crops: np.ndarray) -> Track:
        return replace(track, frames=[replace(f, crop=tuple(c)) for f, c in zip(track.frames, crops)])

    jitter = np.array([10.0, 20.0, 60.0]) + rng.normal(0, 2, (FRAMES, 3))
    still = steady_crops(with_crops(jitter))
    assert (still == still[0]).all() and 58 < still[0, 2] < 75
    walk = jitter + np.linspace(0, 200, FRAMES)[:, None] * [1, 0, 0]
    follow = steady_crops(with_crops(walk))
    steps = np.diff(follow[:, 0])
    assert (steps > 0).all() and np.abs(np.diff(steps)).max() < 4 and follow[:, 2].max() < 70


def test_backgrounds_are_colors_or_pictures(avatar: Avatar, driver: Driver, tmp_path: Path) -> None:
    assert torch.allclose(sinks.parse_background("#ff8000", 8), torch.tensor([1.0, 128 / 255, 0.0]))
    Image.fromarray(np.tile(np.array([10, 200, 30], np.uint8), (50, 80, 1))).save(tmp_path / "back.png")
    options = ReenactOptions(size=64, background=str(tmp_path / "back.png"), max_frames=1)
    reenact(avatar, driver, tmp_path / "out", options)
    corner = np.asarray(Image.open(tmp_path / "out" / "00000.png"))[0, 0]
    assert np.abs(corner.astype(int) - [10, 200, 30]).max() <= 1
    with pytest.raises(AvtoolError, match="neither a color"):
        sinks.parse_background("not-a-color", 8)


@pytest.mark.parametrize("name", ["out.mp4", "frames"])
def test_an_interruption_leaves_nothing(avatar: Avatar, driver: Driver, tmp_path: Path, name: str) -> None:
    def interrupt(done: int, total: int, message: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reenact(avatar, driver, tmp_path / name, ReenactOptions(size=48), interrupt)
    assert list(tmp_path.iterdir()) == []


def test_existing_outputs_are_refused_and_foreign_files_survive_force(avatar: Avatar, driver: Driver, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    sinks.check_output(folder / "%04d.png", force=False)
    reenact(avatar, driver, folder / "%04d.png", ReenactOptions(size=48, max_frames=2))
    assert sorted(f.name for f in folder.iterdir()) == ["0000.png", "0001.png", "notes.txt"]
    with pytest.raises(AvtoolError, match="already"):
        sinks.check_output(folder / "%04d.png", force=False)
    sinks.check_output(folder / "%04d.png", force=True)
    with pytest.raises(AvtoolError, match="expected"):
        sinks.check_output(tmp_path / "out.gif", force=False)


def test_photos_drive_too(avatar: Avatar, tmp_path: Path) -> None:
    track = photo_track(avatar, tmp_path / "photos", 3)
    track.save(tmp_path / "photos" / "track.json")
    driver = load_driver([str(tmp_path / "photos")], avatar.head)
    report = reenact(avatar, driver, tmp_path / "out.mp4", ReenactOptions(size=48, side_by_side=True))
    assert report.frames == 3 and report.transfer == "absolute"
    assert not probe_video(tmp_path / "out.mp4").has_audio


def test_the_command_works_as_written_in_the_readme_and_reports_json(avtool, clip: Path) -> None:
    done = avtool("reenact", "avatar.safetensors", "driver.json", "-o", "out.mp4", "--size", "64", "--json", cwd=clip)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["frames"] == FRAMES and data["frames_per_second"] > 0 and data["frames_per_second_with_tracking"] is None
    assert probe_video(clip / "out.mp4").num_frames == FRAMES
    again = avtool("reenact", "avatar.safetensors", "driver.json", "-o", "out.mp4", cwd=clip)
    assert again.returncode == 1 and "--force" in again.stderr and "Traceback" not in again.stderr
    piped = avtool(
        "reenact", "avatar.safetensors", "-", "-o", "piped", "--size", "48", "--max-frames", "2", "-q", cwd=clip,
        input=(clip / "driver.json").read_text(),
    )  # fmt: skip
    assert piped.returncode == 0 and piped.stdout == "" and len(list((clip / "piped").iterdir())) == 2


def test_bad_input_gets_one_line(avtool, clip: Path, avatar: Avatar) -> None:
    (clip / "text.mp4").write_text("not a video")
    alien = replace(Track.load(clip / "driver.json"), head_model="flame-2023-0000")
    alien.save(clip / "alien.json", force=True)
    for name, words in (("absent.mp4", "no such file"), ("text.mp4", "video"), ("alien.json", "flame-2023")):
        done = avtool("reenact", "avatar.safetensors", name, "-o", f"{name}.out.mp4", cwd=clip)
        assert done.returncode == 1 and words in done.stderr, done.stderr
        assert name in done.stderr and "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 2
        assert not (clip / f"{name}.out.mp4").exists()


def test_a_real_video_is_tracked_and_driven_with_both_rates_in_the_report(avatar: Avatar, carphone: Path, tmp_path: Path) -> None:
    driver = load_driver([str(carphone)], avatar.head, max_frames=12)
    report = reenact(avatar, driver, tmp_path / "out.mp4", ReenactOptions(size=64))
    assert report.frames == 12 and report.transfer == "relative", "another person, enough frames to know the neutral"
    assert report.frames_per_second_with_tracking is not None
    whole = report.frames / (report.render_seconds + report.tracking_seconds)
    assert report.frames_per_second_with_tracking == pytest.approx(whole)
    frames = np.stack(list(read_video(tmp_path / "out.mp4"))).astype(float)
    coverage = (frames.min(-1) < 235).mean((1, 2))
    assert ((coverage > 0.15) & (coverage < 0.9)).all(), "the head is in the picture, at a portrait's size"
