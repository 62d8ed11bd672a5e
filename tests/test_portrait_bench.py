"""The portrait benches at tiny size: their tables, and that better pictures get better figures."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy_people import make_people

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import joining  # noqa: E402
import portrait_motion  # noqa: E402
import portrait_static  # noqa: E402
from portrait_common import Case, OneShot, Tables, load_case, mean_of, run_command  # noqa: E402
from synth_report import view_yaw  # noqa: E402

from avtool.artifacts.track import Track  # noqa: E402
from avtool.capture.samples import crop_square  # noqa: E402
from avtool.head import HeadModel, load_head_model  # noqa: E402
from avtool.portrait.config import PRESETS  # noqa: E402
from avtool.portrait.network import Portrait  # noqa: E402
from avtool.prior.config import TrainConfig  # noqa: E402
from avtool.prior.evaluate import Meters  # noqa: E402
from avtool.prior.prior import Prior  # noqa: E402

SIZE = PRESETS["tiny"].size
ROWS = ["portrait", "mean head", "mean head, own shape", "photo on the mesh"]


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model()


@pytest.fixture(scope="module")
def people(head: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people, one moment each, seen from five sides."""
    return make_people(tmp_path_factory.mktemp("static") / "people", head, 2, 5, SIZE, 1)


@pytest.fixture(scope="module")
def untrained(head: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("portrait") / "tiny.safetensors"
    Portrait.create(PRESETS["tiny"], head).save(file, {"stage": "static"})
    return file


@pytest.fixture(scope="module")
def case(people: Path, head: HeadModel) -> Case:
    views = next(portrait_static.synthetic_views(people, head, 1))
    assert views.source == 2 and views.targets == [0, 1, 3, 4]
    return load_case(views.track, views.name, views.source, views.targets, SIZE, Meters())


def test_the_static_bench_writes_its_tables_and_goes_on(people: Path, untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tmp_path / "out"), "--portrait", str(untrained), "--held-out", str(people), "--quick"]
    assert portrait_static.main(arguments) == 0
    text = capsys.readouterr().out
    saved = json.loads((tmp_path / "out" / "table.json").read_text())
    table = saved["tables"]["synthetic people"]
    assert list(table) == ROWS and saved["protocol"]["size"] == SIZE
    assert all(list(cases) == ["person00", "person01"] for cases in table.values())
    assert all(math.isfinite(found["psnr"]) and found["ssim"] <= 1 for cases in table.values() for found in cases.values())
    assert text == (tmp_path / "out" / "table.md").read_text()
    assert all(f"| {row} | 2 |" in text for row in ROWS) and "portrait against photo on the mesh" in text
    sheet = np.asarray(Image.open(tmp_path / "out" / "sheets" / "person00.png"))
    assert sheet.shape == (5 * (SIZE + 14), 5 * SIZE, 3)
    # Nothing is measured twice, and another portrait's figures never mix with these.
    table["portrait"]["person00"]["psnr"] = 77.0
    (tmp_path / "out" / "table.json").write_text(json.dumps(saved))
    assert portrait_static.main(arguments) == 0 and "77" not in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "table.json").read_text())["tables"]["synthetic people"]["portrait"]["person00"]["psnr"] == 77.0
    saved["protocol"]["portrait"] = "another"
    (tmp_path / "out" / "table.json").write_text(json.dumps(saved))
    with pytest.raises(SystemExit, match="another portrait"):
        portrait_static.main(arguments)


def test_the_truth_beats_the_baselines_and_they_an_untrained_portrait(
    people: Path, head: HeadModel, untrained: Path, tmp_path: Path
) -> None:
    rows = portrait_static.make_rows(OneShot(untrained, head), Prior.load("default"), head)
    # Not exactly the truth, which has no finite PSNR.
    rows = {"truth": lambda case: (case.real[1:] * 0.98).astype(np.float32), **rows}
    tables = Tables(tmp_path, {})
    for views in portrait_static.synthetic_views(people, head, 2):
        portrait_static.compare(views, rows, SIZE, Meters(), tables, tmp_path)
    means = {row: mean_of(list(cases.values())) for row, cases in tables.data["synthetic people"].items()}
    for figure in ("psnr", "ssim"):
        assert all(means["truth"][figure] > means[row][figure] for row in ROWS)
    assert means["photo on the mesh"]["psnr"] > means["mean head, own shape"]["psnr"] > means["portrait"]["psnr"]
    assert "better in 2 of 2" in tables.finish()


def test_a_photo_on_the_mesh_is_the_photo_where_it_was_taken(case: Case, head: HeadModel) -> None:
    """Drawn from its own camera, a photo comes back but for the rim that it shows at a grazing angle."""
    from projection import ProjectedPhoto

    samples, one = case.samples, slice(0, 1)
    vertices = head(samples.params.index(one)).vertices[0].numpy()
    camera = samples.viewmats[0].numpy(), samples.Ks[0].numpy()
    photo, matte = samples.images[0].numpy(), samples.mattes[0, ..., 0].numpy()
    projected = ProjectedPhoto(head, photo, matte, vertices, *camera)
    colors, alpha = projected.draw(vertices, *camera, SIZE)
    inner = torch.nn.functional.max_pool2d(torch.from_numpy(1 - matte)[None, None], 7, 1, 3)[0, 0].numpy() < 0.05
    assert inner.sum() > 500 and alpha[inner].min() > 0.99
    assert np.abs(colors - photo)[inner].mean() < 0.02
    assert np.abs(np.roll(colors, 3, 1) - photo)[inner].mean() > 0.03


def test_a_failing_command_ends_the_bench_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="(?s)exit 2.*no-such-command"):
        run_command(["no-such-command", tmp_path])


def test_a_scan_is_placed_by_its_exact_cameras(head: HeadModel, people: Path, tmp_path: Path) -> None:
    """A head "scanned" in decimeters, in a space turned against the head model's: scale and views come back."""
    track = Track.load(people / "person00" / "track.json", head)
    turn = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    mesh = head(track.params([2]))
    lines = [f"v {x} {y} {z}" for x, y, z in 10 * mesh.vertices[0].numpy() @ turn.T]
    (tmp_path / "scan.obj").write_text("\n".join(lines + [f"f {a}/1 {b}/1 {c}/1" for a, b, c in (head.faces + 1).tolist()]))
    (tmp_path / "views").mkdir()
    Image.new("L", (SIZE, SIZE), 255).save(tmp_path / "views" / "mask.png")

    def entry(index: int) -> dict:
        frame = track.frames[index]
        viewmat = np.asarray(frame.viewmat)
        camera = {"R": (viewmat[:3, :3] @ turn.T).tolist(), "t": (10 * viewmat[:3, 3]).tolist(), "K": np.asarray(frame.K).tolist()}
        return {**camera, "width": SIZE, "height": SIZE, "image": f"{index}.png", "mask": "mask.png"}

    points = head.landmarks(mesh.vertices)[0].numpy().astype(np.float64)
    scale = portrait_static.scan_scale(tmp_path, entry(2), track.frames[2], points)
    assert abs(scale - 0.1) < 0.002
    frame = portrait_static._scan_frame(tmp_path, tmp_path, entry(4), entry(2), track.frames[2], points, 0.1)
    assert np.allclose(frame.viewmat, track.frames[4].viewmat, atol=1e-5)
    assert Path(frame.matte).is_file() and frame.crop[2] > SIZE / 3


def test_driven_pictures_are_scored_by_what_is_tracked_in_them(
    people: Path, head: HeadModel, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told by a tracker that finds the driver's motion in every picture, turned by ten degrees, and no face in the first."""
    turn = np.array([0.0, math.radians(10), 0.0])
    monkeypatch.setattr(portrait_motion, "track_again", lambda pictures, frames, *_: [None, *(replace(f, neck=turn) for f in frames[1:])])
    portrait = tmp_path / "driven.safetensors"
    Portrait.create(PRESETS["tiny"], head).save(portrait, {"stage": "motion", "motion": "tracker"})
    clips = [str(people / name / "track.json") for name in ("person00", "person01")]
    arguments = [str(tmp_path / "out"), "--portrait", f"one={portrait}", f"two={portrait}", "--clips", *clips, "--quick"]
    assert portrait_motion.main([*arguments, "--only", "self-reenactment", "cross-reenactment", "novel views"]) == 0
    text, tables = capsys.readouterr().out, json.loads((tmp_path / "out" / "table.json").read_text())["tables"]
    assert list(tables["self-reenactment"]) == ["one", "two", "one, frozen expression", "two, frozen expression", "real frames"]
    assert list(tables["cross-reenactment"]["one"]) == ["person00 by person01", "person01 by person00"]
    assert list(tables["novel views"]) == ["one", "two"]
    found = tables["self-reenactment"]["two"]["person01"]
    assert abs(found["pose_distance"] - 10) < 1e-3 and found["expression_distance"] == 0 and abs(found["tracked"] - 2 / 3) < 1e-6
    assert "psnr" not in tables["self-reenactment"]["real frames"]["person00"]
    assert "### novel views" in text and (tmp_path / "out" / "sheets" / "novel_person00.png").is_file()


def test_a_turned_camera_goes_around_the_head(people: Path, head: HeadModel) -> None:
    track = Track.load(people / "person00" / "track.json", head)
    center = torch.tensor([[0.01, 0.05, 0.02]])
    before = track.viewmats([1])
    after = portrait_motion.turned(before, center, math.radians(25))
    seen = [(center @ v[0, :3, :3].mT + v[0, :3, 3]) for v in (before, after)]
    assert torch.allclose(*seen, atol=1e-5)
    gained = view_yaw(replace(track.frames[1], viewmat=after[0].numpy())) - view_yaw(track.frames[1])
    assert abs(math.degrees(gained) - 25) < 1e-3


def test_a_crop_is_put_back_where_it_was(people: Path, head: HeadModel) -> None:
    frame = replace(Track.load(people / "person00" / "track.json", head).frames[0], width=200, height=150, crop=(90.0, -10.0, 128.0))
    pixels = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
    whole = portrait_motion.put_back(pixels, frame)
    assert whole.shape == (150, 200, 3) and (whole[:, :89] == 255).all() and (whole[120:] == 255).all()
    again = crop_square(whole, frame.crop, 64)[8:, :52] / 255
    assert np.abs(again - pixels[8:, :52]).mean() < 0.1 < np.abs(again - np.roll(pixels, 2, 1)[8:, :52]).mean()


def test_far_views_are_those_beside_the_photos(people: Path, head: HeadModel) -> None:
    track = Track.load(people / "person00" / "track.json", head)  # yaws of -28, -14, 0, 14 and 28 degrees
    assert joining.far_frames(track.select([1, 2]), track) == [0, 3, 4]
    assert joining.far_frames(track, track) == []
