"""eval on an avatar's own pictures: the truth is known, so every convention between track, crop and render is tested."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_avatar import SIZE, make_avatar, photo_track

from avtool import metrics
from avtool.artifacts.track import Track
from avtool.prior.avatar import Avatar
from avtool.prior.evaluate import EvalOptions, Meters, evaluate, montage, spread

COUNT = 4


@pytest.fixture(scope="module")
def avatar() -> Avatar:
    return make_avatar()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, avatar: Avatar) -> Path:
    """Pictures of the avatar, their track.json, and avatar.safetensors."""
    folder = tmp_path_factory.mktemp("held out")
    photo_track(avatar, folder, COUNT).save(folder / "track.json")
    avatar.save(folder / "avatar.safetensors")
    return folder


@pytest.fixture
def track(folder: Path) -> Track:
    return Track.load(folder / "track.json")


def shift(track: Track, k: int, meters: float) -> Track:
    """The track with frame k's head moved to the right."""
    frames = list(track.frames)
    viewmat = np.array(frames[k].viewmat)
    viewmat[0, 3] += meters
    frames[k] = replace(frames[k], viewmat=viewmat)
    return replace(track, frames=frames)


def test_an_avatar_matches_its_own_pictures_and_a_wrong_pose_does_not(avatar: Avatar, track: Track) -> None:
    options = EvalOptions(size=SIZE)
    report = evaluate(avatar, track, options, Meters()).report
    refined, unrefined = report["refined"], report["unrefined"]
    assert refined["psnr"]["n"] == COUNT and refined["psnr"]["mean"] > 38
    assert refined["ssim"]["mean"] > 0.97
    assert unrefined["psnr"]["mean"] <= refined["psnr"]["mean"]
    wrong = evaluate(avatar, shift(track, 1, 0.02), options, Meters()).report["refined"]["psnr"]["per_frame"]
    assert wrong[1] < 30 and wrong[0] == pytest.approx(refined["psnr"]["per_frame"][0])


def test_crops_and_sizes_other_than_the_picture_agree_too(avatar: Avatar, track: Track) -> None:
    crop = (12.0, 8.0, 64.0)
    frames = []
    for k, frame in enumerate(track.frames):
        matte = Image.open(track.resolve(frame.matte)).crop((12, 8, 76, 72))
        matte.save(track.base / f"{k}_cropped.png")
        frames.append(replace(frame, crop=crop, matte=f"{k}_cropped.png"))
    report = evaluate(avatar, replace(track, frames=frames), EvalOptions(size=128), Meters()).report
    assert report["refined"]["psnr"]["mean"] > 29, "twice the pictures' resolution: only their blur differs"


def test_what_lies_beyond_a_frame_is_not_measured(avatar: Avatar, track: Track) -> None:
    """A crop that reaches below its picture: the avatar's shoulders go on there, the picture does not."""
    cut = 60
    frames = []
    for k, frame in enumerate(track.frames):
        for name in (frame.image, frame.matte):
            Image.open(track.resolve(name)).crop((0, 0, SIZE, cut)).save(track.base / f"cut_{name}")
        padded = Image.new("L", (SIZE, SIZE))
        padded.paste(Image.open(track.base / f"cut_{frame.matte}"), (0, 0))
        padded.save(track.base / f"padded_{k}.png")
        frames.append(replace(frame, image=f"cut_{frame.image}", matte=f"padded_{k}.png", height=cut, crop=(0.0, 0.0, float(SIZE))))
    evaluation = evaluate(avatar, replace(track, frames=frames), EvalOptions(size=SIZE), Meters())
    assert evaluation.report["refined"]["psnr"]["mean"] > 36
    for real, shown in evaluation.shown:
        assert (shown[cut + 1 :] == 1).all() and (real[cut + 1 :] == 1).all() and (shown[:cut] < 0.9).any()


def test_above_the_chin_leaves_out_what_lies_below(avatar: Avatar, track: Track, folder: Path) -> None:
    spoiled = []
    for k, frame in enumerate(track.frames):
        pixels = np.array(Image.open(track.resolve(frame.image)))
        pixels[int(frame.landmarks[metrics.CHIN, 1] + 3 + SIZE * 8 / 256) :] = (0, 0, 255)
        Image.fromarray(pixels).save(folder / f"spoiled_{k}.png")
        spoiled.append(replace(frame, image=f"spoiled_{k}.png"))
    report = evaluate(avatar, replace(track, frames=spoiled), EvalOptions(size=SIZE), Meters()).report["refined"]
    assert report["psnr"]["mean"] < 25 and report["psnr_above_chin"]["mean"] > 36


def test_landmarks_and_identity_compare_the_render_with_the_real_frame(avatar: Avatar, track: Track) -> None:
    real = np.asarray(track.frames[0].landmarks)
    moved = real + 0.05 * metrics.interocular(real) * np.array([0.6, 0.8])

    class Mean:
        name = "mean color"

        def __call__(self, aligned: np.ndarray) -> np.ndarray:
            assert aligned.shape == (112, 112, 3)
            return aligned.reshape(-1, 3).mean(0).astype(np.float32)

    meters = Meters(lpips=lambda a, b: 0.25, detect=lambda image: moved, recognizer=Mean())
    one = track.select([0])
    report = evaluate(avatar, one, EvalOptions(size=SIZE, modes=("unrefined",)), meters).report["unrefined"]
    assert report["landmark_distance"]["mean"] == pytest.approx(5.0, abs=0.02)
    assert report["identity_similarity"]["mean"] > 0.99 and report["lpips"]["mean"] == 0.25
    lost = evaluate(avatar, one, EvalOptions(size=SIZE, modes=("unrefined",)), Meters(detect=lambda image: None)).report
    assert lost["unrefined"]["landmark_distance"] == {"mean": None, "std": None, "n": 0, "per_frame": [None]}


def test_frames_are_spread_evenly() -> None:
    assert spread(100, 3) == [0, 50, 99] or spread(100, 3) == [0, 49, 99]
    assert spread(2, 5) == [0, 1] and spread(4, None) == [0, 1, 2, 3]


def test_a_montage_shows_real_render_and_error() -> None:
    real, image = np.zeros((8, 8, 3), np.float32), np.full((8, 8, 3), 0.2, np.float32)
    sheet = montage([(real, image)] * 7)
    assert sheet.shape == (6 * 8, 2 * 3 * 8, 3)
    assert (sheet[:8, :8] == 0).all() and (sheet[:8, 8:16] == 51).all() and (sheet[:8, 16:24] == 153).all()
    assert (sheet[8:, 24:] == 255).all(), "the second block has one row"


def test_the_command_writes_metrics_with_their_protocol_and_reasons(avtool, folder: Path) -> None:
    done = avtool(
        "eval", "avatar.safetensors", "track.json", "-o", "metrics.json", "--size", "64", "--montage", "montage.png",
        "--max-frames", "2", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = json.loads((folder / "metrics.json").read_text())
    assert data["protocol"]["resolution"] == 64 and data["protocol"]["background"] == [1.0, 1.0, 1.0]
    assert len(data["refined"]["psnr"]["per_frame"]) == 2 and "recognizer" in data["absent"]["identity_similarity"]
    assert "PSNR" in done.stderr and done.stdout == ""
    assert Image.open(folder / "montage.png").size == (3 * 64, 2 * 64)
    again = avtool("eval", "avatar.safetensors", "track.json", "-o", "metrics.json", cwd=folder)
    assert again.returncode == 1 and "--force" in again.stderr


def test_the_command_measures_identity_with_a_named_recognizer_on_stdout(avtool, folder: Path) -> None:
    network = torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten())
    torch.jit.trace(network, torch.zeros(1, 3, 112, 112)).save(str(folder / "toy.pt"))
    done = avtool(
        "eval", "avatar.safetensors", "track.json", "-o", "-", "-q", "--size", "96", "--refine", "no", "--recognizer", "toy.pt",
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert "refined" not in data and "identity_similarity" in data["unrefined"] and data["protocol"]["recognizer"] == "toy.pt"


def test_a_track_of_another_head_is_refused(avtool, folder: Path, track: Track) -> None:
    replace(track, head_model="flame-2023").save(folder / "alien.json", force=True)
    done = avtool("eval", "avatar.safetensors", "alien.json", "-o", "alien_metrics.json", cwd=folder)
    assert done.returncode == 1 and "alien.json" in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "alien_metrics.json").exists()
