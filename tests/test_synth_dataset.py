"""The synthetic data set at tiny size: exact parameters, mattes, reproducibility, resuming."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avtool.artifacts.track import Track
from avtool.cameras import project
from avtool.errors import AvtoolError
from avtool.head import load_head_model
from avtool.synth.__main__ import main
from avtool.synth.base import SynthHead
from avtool.synth.cameras import aim, pose_vertices
from avtool.synth.dataset import DatasetOptions, make_dataset
from avtool.synth.draw import Scene
from avtool.synth.identity import HeadParts, build_person
from avtool.synth.lighting import sample_lighting
from avtool.synth.look import sample_look
from avtool.synth.motion import Motion

OPTIONS = DatasetOptions(identities=2, views=2, size=64, seed=5, texture_size=256)


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(np.float64)


@pytest.fixture(scope="module")
def tracks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_dataset(tmp_path_factory.mktemp("synth") / "heads", OPTIONS)


def test_layout(tracks: list[Path]) -> None:
    assert [path.parent.name for path in tracks] == ["person_0000", "person_0001"]
    root = tracks[0].parents[1]
    assert (root / "contact_sheet.png").is_file()
    assert json.loads((root / "dataset.json").read_text())["size"] == 64
    track = Track.load(tracks[0])
    assert len(track.frames) == 2
    for frame in track.frames:
        assert tuple(frame.crop) == (0.0, 0.0, 64.0) and frame.width == frame.height == 64
        assert _pixels(track.resolve(frame.image)).shape == (64, 64, 3)
        assert _pixels(track.resolve(frame.matte)).shape == (64, 64)


def test_parameters_are_exact(tracks: list[Path]) -> None:
    """The head model, posed and projected with what the track says, gives the stored landmarks and lies inside the matte."""
    head = load_head_model()
    track = Track.load(tracks[0])
    assert track.head_model == head.model_id
    vertices = head(track.params()).vertices
    pixels, depth = project(head.landmarks(vertices), track.viewmats(), track.Ks())
    assert (depth > 0.3).all()
    for k, frame in enumerate(track.frames):
        assert np.abs(pixels[k].numpy() - frame.landmarks).max() < 0.01
        matte = _pixels(track.resolve(frame.matte))
        skull = project(vertices[k], track.viewmats()[k], track.Ks()[k])[0].numpy()
        inside = skull[(skull >= 1).all(1) & (skull < 63).all(1)].astype(int)
        assert (matte[inside[:, 1], inside[:, 0]] > 127).mean() > 0.97


def test_matte_matches_image(tracks: list[Path]) -> None:
    """White where the matte is empty, somebody where it is full; both occur."""
    track = Track.load(tracks[1])
    for frame in track.frames:
        image, matte = _pixels(track.resolve(frame.image)), _pixels(track.resolve(frame.matte))
        assert (image[matte == 0] == 255).all()
        assert (matte == 0).mean() > 0.08 and (matte == 255).mean() > 0.25
        partial = (matte > 0) & (matte < 255)
        floor = 255 - matte[partial]  # what white shows through
        assert (image[partial].min(1) >= floor - 1).all()


def test_people_and_views_differ(tracks: list[Path]) -> None:
    first, second = (Track.load(path) for path in tracks)
    assert np.abs(np.asarray(first.identity) - np.asarray(second.identity)).max() > 0.5
    assert not np.allclose(first.frames[0].expression, first.frames[1].expression) or not np.allclose(
        first.frames[0].viewmat, first.frames[1].viewmat
    )
    assert np.abs(_pixels(first.resolve("000.png")) - _pixels(second.resolve("000.png"))).mean() > 3


def test_repeatable_and_independent_of_count(tracks: list[Path], tmp_path: Path) -> None:
    """Person 0 is the same when it is made alone."""
    alone = make_dataset(tmp_path / "alone", DatasetOptions(identities=1, views=2, size=64, seed=5, texture_size=256))
    for name in ("000.png", "001_matte.png", "track.json"):
        assert (alone[0].parent / name).read_bytes() == (tracks[0].parent / name).read_bytes()


def test_processes_agree_and_resume(tracks: list[Path], tmp_path: Path) -> None:
    """Two processes give the same bytes; what is complete is left alone, what is not is made again."""
    root = tmp_path / "heads"
    again = make_dataset(root, OPTIONS, jobs=2)
    for mine, other in zip(again, tracks):
        assert (mine.parent / "001.png").read_bytes() == (other.parent / "001.png").read_bytes()
    again[1].unlink()
    kept = again[0].stat().st_mtime_ns
    make_dataset(root, OPTIONS)
    assert again[0].stat().st_mtime_ns == kept
    assert again[1].read_bytes() == tracks[1].read_bytes()


def test_other_options_are_refused(tracks: list[Path]) -> None:
    with pytest.raises(AvtoolError, match="size"):
        make_dataset(tracks[0].parents[1], DatasetOptions(identities=2, views=2, size=32, seed=5, texture_size=256))


def test_command_reports_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-o", str(tmp_path / "x"), "--assets", str(tmp_path / "absent")]) == 1
    assert "absent" in capsys.readouterr().err
    assert main(["-o", str(tmp_path / "x"), "--identities", "0"]) == 1
    assert not (tmp_path / "x").exists()


def test_detector_finds_synthetic_faces(tmp_path: Path) -> None:
    """A detector made for real faces finds them, near where the parameters put the landmarks."""
    from avtool.capture import FaceTracker

    track = Track.load(make_dataset(tmp_path / "heads", DatasetOptions(identities=1, views=1, size=256, seed=2, texture_size=512))[0])
    found = FaceTracker()(np.asarray(Image.open(track.resolve("000.png"))))
    assert found is not None
    expected = np.asarray(track.frames[0].landmarks)
    eyes = np.linalg.norm(expected[33] - expected[263])
    assert np.linalg.norm(found.points[:, :2] - expected, axis=1).mean() / eyes < 0.06


def test_a_laugh_shows_bright_teeth() -> None:
    """In even light the teeth between parted lips are far brighter than the cavity, and no darker than the skin around."""
    head = SynthHead(load_head_model())
    parts, rng = HeadParts(head, 256), np.random.default_rng(3)
    person = build_person(parts, np.zeros(head.model.num_identity, np.float32), sample_look(rng), sample_lighting(rng, 0.0))
    weights = {"jawOpen": 0.3, "mouthSmileLeft": 0.8, "mouthSmileRight": 0.8, "mouthUpperUpLeft": 0.4, "mouthUpperUpRight": 0.4}
    expression = np.array([weights.get(name, 0.0) for name in head.model.expression_names], np.float32)
    motion = Motion(expression, *np.zeros((3, 3), np.float32), np.zeros((2, 3), np.float32))
    vertices = pose_vertices(head.model, person.identity, motion)
    landmarks = head.model.landmarks(torch.from_numpy(vertices)).numpy()
    viewmat, K = aim(0, 0, 0, 1.0, landmarks[[13, 14]].mean(0)), np.array([[1200.0, 0, 64], [0, 1200, 64], [0, 0, 1]])
    black = replace(person, teeth=np.broadcast_to(np.array([0, 0, 0, 255], np.uint8), person.teeth.shape).copy())
    shown, hidden = (
        Scene(who.meshes(vertices, motion), who.lighting).draw(viewmat, K, (128, 128)).rgb.mean(-1) for who in (person, black)
    )
    teeth = shown - hidden > 0.2
    assert teeth.sum() > 150
    assert shown[teeth].mean() > 0.9 * shown[100:, 30:98].mean() > 0.3


def test_photographs_are_used(shared: Path, tmp_path: Path) -> None:
    """With assets the same person has another skin, and the tone stays the look's."""
    options = DatasetOptions(identities=1, views=1, size=64, seed=5, texture_size=256, assets=str(shared / "assets" / "makehuman"))
    track = Track.load(make_dataset(tmp_path / "heads", options)[0])
    assert track.metadata["photographic"] is True
    image = torch.from_numpy(_pixels(track.resolve("000.png")))
    assert image.std() > 20
