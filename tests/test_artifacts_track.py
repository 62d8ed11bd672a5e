"""Tracks: what is written reads back, and every kind of damage is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avtool.artifacts.track import SCHEMA, Frame, Track, data_directory
from avtool.artifacts.track_arrays import MAX_LANDMARK_FRAMES
from avtool.cameras import orbit_viewmats
from avtool.errors import AvtoolError, FormatError


def make_track(num_frames: int = 3, video: bool = False, base: Path = Path(), **changes: object) -> Track:
    rng = np.random.default_rng(4)
    viewmats = orbit_viewmats(torch.linspace(-0.5, 0.5, num_frames), torch.zeros(num_frames), 0.8).numpy()
    frames = [
        Frame(
            image=None if video else f"photos/höhe {i}.png", frame_idx=i if video else None, width=640, height=480,
            K=np.array([[700.0, 0, 320], [0, 700, 240], [0, 0, 1]]), viewmat=viewmats[i].astype(np.float64),
            expression=rng.random(52), neck=rng.normal(size=3) * 0.1, head=np.zeros(3), jaw=np.zeros(3),
            eyes=rng.normal(size=(2, 3)) * 0.1, landmarks=200 + 200 * rng.random((478, 2)),
            matte=None if video else f"mattes/{i}.png", crop=(150.5, 100.25, 333.0), residual=0.012,
            timestamp=i / 25 if video else None,
        )
        for i in range(num_frames)
    ]  # fmt: skip
    extra = {"video": "clip.mp4", "fps": 25.0, "mattes_video": "x.data/mattes.mp4"} if video else {}
    track = Track("anny-test", rng.normal(size=100), frames, seed=7, metadata={"note": "ä"}, base=base, **extra)
    return replace(track, **changes)


def assert_same(a: Track, b: Track, landmark_tolerance: float) -> None:
    assert (a.head_model, a.video, a.fps, a.seed, a.metadata) == (b.head_model, b.video, b.fps, b.seed, b.metadata)
    np.testing.assert_allclose(a.identity, b.identity, atol=1e-7)
    assert len(a.frames) == len(b.frames)
    for f, g in zip(a.frames, b.frames):
        assert (f.image, f.frame_idx, f.width, f.height) == (g.image, g.frame_idx, g.width, g.height)
        for name in ("K", "viewmat", "neck", "head", "jaw", "eyes", "crop"):
            np.testing.assert_allclose(getattr(f, name), getattr(g, name), atol=1e-5, err_msg=name)
        np.testing.assert_allclose(f.expression, g.expression, atol=5e-4)
        np.testing.assert_allclose(f.landmarks, g.landmarks, atol=landmark_tolerance)


@pytest.mark.parametrize("video", [False, True])
def test_a_track_reads_back(tmp_path: Path, video: bool) -> None:
    track = make_track(video=video, base=tmp_path)
    track.save(tmp_path / "track.json")
    assert_same(track, Track.load(tmp_path / "track.json"), 0.03 if video else 1e-3)
    assert json.loads((tmp_path / "track.json").read_text())["schema"] == SCHEMA


def test_static_offsets_read_back(tmp_path: Path) -> None:
    offsets = np.random.default_rng(0).normal(size=(50, 3)) * 1e-3
    make_track(base=tmp_path, offsets=offsets).save(tmp_path / "track.json")
    loaded = Track.load(tmp_path / "track.json")
    np.testing.assert_allclose(loaded.offsets, offsets, atol=1e-7)
    assert loaded.params().offsets.shape == (50, 3)


def test_relative_paths_follow_the_file(tmp_path: Path) -> None:
    (tmp_path / "out" / "deep").mkdir(parents=True)
    make_track(base=tmp_path).save(tmp_path / "out" / "deep" / "track.json")
    loaded = Track.load(tmp_path / "out" / "deep" / "track.json")
    assert loaded.frames[0].image == "../../photos/höhe 0.png"
    assert loaded.resolve(loaded.frames[0].image).resolve() == (tmp_path / "photos/höhe 0.png").resolve()


def test_a_moved_track_is_still_whole(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    make_track(video=True, base=tmp_path / "a").save(tmp_path / "a" / "track.json")
    (tmp_path / "a").rename(tmp_path / "b")
    assert len(Track.load(tmp_path / "b" / "track.json").frames) == 3
    (data_directory(tmp_path / "b" / "track.json") / "frames.safetensors").unlink()
    with pytest.raises(AvtoolError, match="frames.safetensors: missing"):
        Track.load(tmp_path / "b" / "track.json")


def test_a_long_videos_track_stays_small(tmp_path: Path) -> None:
    """Five minutes at 30 frames a second."""
    one = make_track(1, video=True).frames[0]
    frames = [replace(one, frame_idx=i, timestamp=i / 30) for i in range(9000)]
    make_track(1, video=True, base=tmp_path, frames=frames).save(tmp_path / "long.json")
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size < 10e6, f"{size / 1e6:.1f} MB"
    loaded = Track.load(tmp_path / "long.json")
    assert len(loaded.frames) == 9000
    assert 0 < sum(frame.landmarks is not None for frame in loaded.frames) <= MAX_LANDMARK_FRAMES


def test_batches_have_the_shapes_of_the_contract() -> None:
    track = make_track(5)
    params = track.params([0, 3])
    assert params.identity.shape == (2, 100) and params.expression.shape == (2, 52) and params.eyes.shape == (2, 2, 3)
    assert track.viewmats().shape == (5, 4, 4) and track.Ks([1]).shape == (1, 3, 3)
    assert track.viewmats().dtype == torch.float32


def test_an_existing_track_is_kept_without_force(tmp_path: Path) -> None:
    path = tmp_path / "track.json"
    path.write_text("mine")
    with pytest.raises(AvtoolError, match="already exists"):
        make_track().save(path)
    assert path.read_text() == "mine"
    make_track(base=tmp_path).save(path, force=True)
    assert len(Track.load(path).frames) == 3


def damaged(tmp_path: Path, change) -> Path:
    path = tmp_path / "track.json"
    make_track(base=tmp_path).save(path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(schema="track/2"), "upgrade avtool"),
        (lambda d: d.update(schema="metrics/1"), "expected track/1, found metrics/1"),
        (lambda d: d["identity"].__setitem__(3, float("nan")), "identity: expected finite numbers, found 1 NaN"),
        (lambda d: d["frames"][1]["expression"].__setitem__(0, float("inf")), r"frames\[1\].expression"),
        (lambda d: d["frames"][1].update(K=[[1, 2], [3, 4]]), r"frames\[1\].K: expected numbers of shape \(3, 3\)"),
        (lambda d: d["frames"][0].pop("viewmat"), r"frames\[0\].viewmat.*found nothing"),
        (lambda d: d["frames"][0]["viewmat"][0].__setitem__(0, 5.0), r"frames\[0\].viewmat: expected a rotation"),
        (lambda d: d["frames"][2].update(expression=[0.0] * 51), r"frames\[2\].expression: expected 52"),
        (lambda d: d["frames"][0].update(width=0), "width"),
        (lambda d: d["frames"][0].update(width="wide"), "expected int, found str"),
        (lambda d: d["frames"][0]["K"][0].__setitem__(0, -1.0), "focal lengths above 0"),
        (lambda d: d.update(frames=[]), "at least one frame"),
        (lambda d: d.update(head_model=None), "head_model"),
        (lambda d: d.pop("identity"), "identity"),
        (lambda d: d["frames"].__setitem__(0, 3), r"frames\[0\]: expected an object"),
        (lambda d: d.update(frames=7), "arrays"),
    ],
)
def test_damage_is_named(tmp_path: Path, change, words: str) -> None:
    path = damaged(tmp_path, change)
    with pytest.raises(FormatError, match=words) as caught:
        Track.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\x89PNG\r\n\x1a\n\xff\xfe", b"3"])
def test_what_is_no_track_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "track.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="expected a track"):
        Track.load(path)


def test_a_missing_track_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(AvtoolError, match="no such track.*avtool track"):
        Track.load(tmp_path / "track.json")


def test_a_track_with_nan_is_never_written(tmp_path: Path) -> None:
    track = make_track(base=tmp_path, identity=np.full(100, np.nan))
    with pytest.raises((FormatError, ValueError)):
        track.save(tmp_path / "track.json")
    assert not (tmp_path / "track.json").exists()


def test_a_track_comes_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_track(base=tmp_path).save(tmp_path / "track.json")
    with open(tmp_path / "track.json", encoding="utf-8") as handle:
        monkeypatch.setattr("sys.stdin", handle)
        assert len(Track.load("-").frames) == 3
