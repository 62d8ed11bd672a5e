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
from avtool.synth.learn_motion import choose
from avtool.synth.base import SynthHead
from avtool.synth.cameras import aim, pose_vertices
from avtool.synth.dataset import DatasetOptions, make_dataset
from avtool.synth.draw import Scene
from avtool.synth.identity import HeadParts, build_person, sample_offsets
from avtool.synth.lighting import sample_lighting
from avtool.synth.look import sample_look
from avtool.synth.motion import Motion, sample_motion

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


def test_the_command_draws_resumes_and_starts_anew(avtool, tmp_path: Path) -> None:
    """A real run with two processes; one with more people adds to it; other options need --force."""
    heads = tmp_path / "heads"
    base = ("synth-data", "-o", str(heads), "--views", "2", "--size", "48", "--expressions", "1", "--seed", "3")
    report = json.loads(avtool(*base, "--identities", "2", "--jobs", "2", "--json").stdout)
    assert report["identities"] == 2 and report["pictures"] == 4
    first = (heads / "person_0000" / "000.png").stat().st_mtime_ns
    assert avtool(*base, "--identities", "3").returncode == 0
    assert (heads / "person_0002" / "track.json").is_file()
    assert (heads / "person_0000" / "000.png").stat().st_mtime_ns == first
    track = Track.load(heads / "person_0000" / "track.json")
    assert np.array_equal(track.frames[0].expression, track.frames[1].expression), "one moment, two views"
    assert track.metadata["light"] in ("even", "varied") and track.offsets is not None
    (heads / "mine.txt").write_text("kept")
    refused = avtool(*base, "--identities", "1", "--samples", "1")
    assert refused.returncode == 1 and "--force" in refused.stderr
    assert avtool(*base, "--identities", "1", "--samples", "1", "--force").returncode == 0
    assert (heads / "mine.txt").read_text() == "kept" and not (heads / "person_0001").exists()
    absent = avtool("synth-data", "-o", str(tmp_path / "x"), "--assets", str(tmp_path / "absent"))
    assert absent.returncode == 1 and "absent" in absent.stderr and not (tmp_path / "x").exists()


def test_offsets_leave_teeth_and_eyeballs_in_shape() -> None:
    """Faces become asymmetric by a millimetre or so; eyeballs move as a whole, with their lids, and teeth not at all."""
    head = SynthHead(load_head_model())
    offsets = 1e3 * sample_offsets(head, np.random.default_rng(0))
    face = offsets[head.region_mask("face") == 1]
    assert 0.4 < face.std() < 2.0 and np.abs(offsets).max() < 6
    assert np.abs(offsets[head.region_mask("teeth_up", "teeth_lo") == 1]).max() < 1e-3
    for side in ("l", "r"):
        ball = offsets[head.region_mask(f"eye_{side}") == 1]
        assert np.ptp(ball, 0).max() < 0.2 and np.abs(ball).max() > 0.1


def test_learned_moments_are_those_of_clips() -> None:
    """The shipped moments are plausible, and drawing from them stays near: talking people rarely pull faces."""
    names = load_head_model().expression_names
    rng = np.random.default_rng(0)
    drawn = [sample_motion(names, rng, "learned") for _ in range(200)]
    expressions = np.array([motion.expression for motion in drawn])
    jaw = expressions[:, names.index("jawOpen")]
    assert expressions.min() >= 0 and expressions.max() <= 1 and 0.01 < jaw.mean() < 0.3 and jaw.max() > 0.1
    assert np.abs([motion.head for motion in drawn]).max() < 0.7
    extreme = np.array([sample_motion(names, rng, "extreme").expression for _ in range(400)])
    drawable = [k for k, name in enumerate(names) if not name.startswith("eyeLook")]
    assert (extreme.max(0)[drawable] > 0.5).mean() > 0.9, "nearly every shape is shown at its extreme"


def test_typical_moments_are_chosen() -> None:
    """Three kinds of frames, three moments: one of each."""
    kinds = np.eye(3).repeat([50, 5, 20], 0)
    noise = np.random.default_rng(1).normal(0, 0.01, kinds.shape)
    chosen = choose(kinds + noise, np.zeros((75, 4, 3)), 3, np.random.default_rng(0))
    assert sorted(kinds[chosen].argmax(1)) == [0, 1, 2]


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
