"""Detection, landmarks and their tracking on real pictures; regions; mattes."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avtool.capture import FaceTracker, HeadMatte, Roi, head_crop, read_frames, read_video
from avtool.capture.matte import face_component, guided_filter
from avtool.capture.regions import sample_roi


@pytest.fixture(scope="module")
def tracker() -> FaceTracker:
    return FaceTracker()


@pytest.fixture(scope="module")
def matte() -> HeadMatte:
    return HeadMatte()


@pytest.fixture(scope="module")
def photo(astronaut: Path) -> np.ndarray:
    return np.asarray(Image.open(astronaut).convert("RGB"))


def test_regions_round_trip_and_sample_where_they_say() -> None:
    roi = Roi(70.0, 50.0, 40.0, 0.7)
    points = np.random.default_rng(0).normal(size=(9, 2))
    np.testing.assert_allclose(roi.from_image(roi.to_image(points)), points, atol=1e-12)
    np.testing.assert_allclose(Roi(70, 50, 40, math.pi / 2).to_image([1.0, 0.5]), [70, 70], atol=1e-12)
    ramp = np.stack(np.broadcast_arrays(*np.meshgrid(np.arange(120) * 2, np.arange(100) * 2), 7), -1).astype(np.uint8)
    for side in (40, 16, 8):  # the last two average before they interpolate
        sampled = sample_roi(ramp, roi, side)[0, ..., :2].numpy() * 255 / 2 + 0.5
        unit = (np.arange(side) + 0.5) / side
        np.testing.assert_allclose(sampled, roi.to_image(np.stack(np.meshgrid(unit, unit), -1)), atol=2e-3)


def test_landmarks_sit_on_the_astronaut(tracker: FaceTracker, photo: np.ndarray) -> None:
    found = tracker(photo)
    assert found.points.shape == (478, 3) and found.presence > 0.99
    # Read off an enlarged overlay: pupils, mouth corners, chin.
    expected = {468: (203.5, 101), 473: (246.5, 103.5), 61: (202.5, 139.5), 291: (245.5, 140.5), 152: (222, 178)}
    for index, place in expected.items():
        assert np.linalg.norm(found.points[index, :2] - place) < 2.0
    again = tracker(photo, found.roi)
    assert np.abs(again.points - found.points).mean() < 0.02 * found.eye_distance


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_any_quarter_turn(quarters: int, tracker: FaceTracker, matte: HeadMatte, photo: np.ndarray) -> None:
    upright, turned = tracker(photo), tracker(np.rot90(photo, quarters))
    points = turned.points[:, :2]
    for _ in range(quarters):  # undo one counter-clockwise turn of a 512 px square
        points = np.stack([512 - points[:, 1], points[:, 0]], 1)
    errors = np.linalg.norm(points - upright.points[:, :2], axis=1)
    assert errors.mean() < 0.03 * upright.eye_distance
    x0, y0, size = head_crop(upright)
    crop = x0, y0, size
    for _ in range(quarters):
        crop = crop[1], 512 - crop[0] - size, size
    alpha = np.rot90(matte(np.rot90(photo, quarters), turned, crop, 128).alpha, -quarters)
    assert np.abs(alpha - matte(photo, upright, (x0, y0, size), 128).alpha).mean() < 0.03


@pytest.mark.parametrize("angle", [45, 130, 200])
def test_any_angle(angle: int, tracker: FaceTracker, photo: np.ndarray) -> None:
    found = tracker(np.asarray(Image.fromarray(photo).rotate(angle)))
    difference = math.degrees(found.roi.angle) + angle - math.degrees(tracker(photo).roi.angle)
    assert abs((difference + 180) % 360 - 180) < 5
    assert found.eye_distance == pytest.approx(tracker(photo).eye_distance, rel=0.03)


def test_small_faces_in_large_photos(tracker: FaceTracker, photo: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    large = np.full((900, 1200, 3), 127, np.uint8)
    small = np.asarray(Image.fromarray(photo).resize((256, 256), Image.Resampling.LANCZOS))
    large[600:856, 300:556] = small
    found, expected = tracker(large), tracker(small)
    assert np.linalg.norm(found.points[:, :2] - (300, 600) - expected.points[:, :2], axis=1).mean() < 1.5
    tiny = np.full((256, 256, 3), 127, np.uint8)
    tiny[60:170, 60:170] = np.asarray(Image.fromarray(photo).resize((110, 110), Image.Resampling.LANCZOS))
    assert tracker(tiny, name="tiny.png") is None  # a face of 20 pixels
    assert "tiny.png: the face is only" in caplog.text
    assert tracker(np.full((300, 200, 3), 90, np.uint8)) is None


def test_the_largest_of_several_faces(
    tracker: FaceTracker, photo: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    face = photo[:240, 100:350]
    small = np.asarray(Image.fromarray(face).resize((175, 168)))
    pair = np.concatenate([np.pad(small, ((40, 32), (0, 0), (0, 0)), mode="edge"), face], 1)
    with caplog.at_level(logging.WARNING, "avtool"):
        found = tracker(pair, name="party.jpg")
    assert np.linalg.norm(found.points[:, :2] - (75, 0) - tracker(photo).points[:, :2], axis=1).mean() < 2
    assert "party.jpg: found 2 faces" in caplog.text


def test_every_frame_of_carphone(tracker: FaceTracker, carphone: Path) -> None:
    found = list(tracker.track(read_video(carphone)))
    assert len(found) == 120 and all(item is not None and item.presence > 0.9 for item in found)
    steps = [np.abs(a.points - b.points).mean() / a.eye_distance for a, b in zip(found, found[1:])]
    assert max(steps) < 0.15


def test_a_lost_face_is_found_again(tracker: FaceTracker, photo: np.ndarray) -> None:
    gone = np.full_like(photo, 128)
    shifted = np.roll(photo, 150, 1)
    found = list(tracker.track([photo, gone, shifted, photo]))
    assert found[1] is None
    np.testing.assert_allclose(found[2].points[:, 0] - found[0].points[:, 0], 150, atol=3)
    np.testing.assert_allclose(found[3].points, found[0].points, atol=3)  # the old square held no face


def test_real_clips(shared: Path, tracker: FaceTracker) -> None:
    for clip in sorted(shared.glob("data/*/crop.mp4")):
        frames = dict(read_frames(clip, [0, 40, 80]))
        found = [tracker(frame) for frame in frames.values()]
        assert all(item is not None and item.presence > 0.9 for item in found), clip.parent.name


def test_head_crop_frames_hair_and_shoulders(tracker: FaceTracker, photo: np.ndarray) -> None:
    found = tracker(photo)
    x0, y0, size = head_crop(found)
    assert size == pytest.approx(2.2 * (found.bounds[2:] - found.bounds[:2]).max(), abs=1)
    assert y0 < 10 and y0 + size > 230 and x0 < 130 and x0 + size > 300  # hair spans x 140-290, y 12-130
    assert (x0, y0, size) == head_crop(found.points[:, :2])


def test_matte_of_the_astronaut(matte: HeadMatte, tracker: FaceTracker, photo: np.ndarray) -> None:
    found = tracker(photo)
    result = matte(photo, found)
    x0, y0, size = result.crop
    assert result.alpha.shape == (size, size) and result.alpha.dtype == np.float32

    def at(x: int, y: int) -> float:
        return result.alpha[int(y - y0), int(x - x0)]

    inside = [(225, 120), (225, 30), (165, 80), (285, 80), (225, 195), (225, 235)]  # face, hair, neck, suit
    outside = [(115, 30), (330, 40), (330, 130), (120, 110)]
    assert min(at(*place) for place in inside) > 0.9 and max(at(*place) for place in outside) < 0.1
    larger = (x0 - 60.0, y0 - 60.0, size + 120.0)
    wide = matte(photo, found, larger, 360).alpha
    assert wide[: int(60 - y0) - 1].max() == 0  # above the photo's top edge
    part = wide[70:-70, 70:-70]
    assert np.abs(part - result.alpha[10:-10, 10:-10]).mean() < 0.02


def test_matte_against_masks_of_a_scan(shared: Path, matte: HeadMatte, tracker: FaceTracker) -> None:
    views = shared / "data" / "headscan_leeperrysmith" / "views"
    overlaps = []
    for name in ("000", "004"):
        image = np.asarray(Image.open(views / f"{name}.png").convert("RGB"))
        truth = np.asarray(Image.open(views / f"{name}_mask.png").convert("L"))
        found = tracker(image)
        if found is None:
            continue
        whole = (0.0, 0.0, float(max(image.shape[:2])))
        alpha = matte(image, found, whole, image.shape[1]).alpha[: image.shape[0], : image.shape[1]]
        head = np.s_[: int(found.bounds[3])]  # above the chin: the scan's bust ends in the air
        overlaps.append(((alpha > 0.5) & (truth > 127))[head].sum() / ((alpha > 0.5) | (truth > 127))[head].sum())
    assert overlaps and min(overlaps) > 0.9


def test_component_drops_blobs_and_threads() -> None:
    alpha = np.zeros((128, 128), np.float32)
    alpha[30:100, 40:90], alpha[10:25, 100:120], alpha[60, 90:110], alpha[50:70, 105:125] = 1, 0.9, 1, 1
    kept = alpha * face_component(alpha, np.array([[0.5, 0.5]]))
    assert kept[60, 60] == 1 and kept[15, 110] == 0 and kept[60, 115] == 0
    assert face_component(alpha, np.array([[0.02, 0.9]])).all()  # no face to hold on to: nothing is dropped


def test_guided_filter_follows_the_edge() -> None:
    guide = np.zeros((64, 64), np.float32)
    guide[:, 32:] = 0.8
    soft = np.clip((np.arange(64, dtype=np.float32)[None] - 27) / 10, 0, 1).repeat(64, 0)
    sharp = guided_filter(guide, soft)
    assert sharp[20, 33] - sharp[20, 30] > 1.5 * (soft[20, 33] - soft[20, 30])
    np.testing.assert_allclose(guided_filter(guide, np.full((64, 64), 0.3)), 0.3, atol=1e-4)
