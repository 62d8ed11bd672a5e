"""The report on synthetic people at tiny size, and its bar: a detector made for real faces finds them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import synth_report  # noqa: E402

from avtool.artifacts.track import Track  # noqa: E402
from avtool.capture.detector import FaceDetector  # noqa: E402
from avtool.synth import look  # noqa: E402
from avtool.synth.cameras import aim  # noqa: E402
from avtool.synth.dataset import DatasetOptions, make_dataset  # noqa: E402

OPTIONS = DatasetOptions(identities=3, views=6, size=256, seed=10, samples=1, texture_size=512)


@pytest.fixture(scope="module")
def tracks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """People of whom more wear glasses and caps than usual."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(look, "GLASSES_SHARE", 0.6)
        patch.setattr(look, "CAP_SHARE", 0.4)
        return make_dataset(tmp_path_factory.mktemp("report") / "heads", OPTIONS)


def test_the_detector_finds_synthetic_people(tracks: list[Path]) -> None:
    """At least 98 % of the views within 45 degrees of frontal, glasses included."""
    assert any(Track.load(path).metadata["look"]["glasses"] for path in tracks)
    crops = [crop for path in tracks for crop in synth_report.read_crops(Track.load(path), OPTIONS.views)]
    assert len(crops) >= 10
    detector = FaceDetector()
    found = [synth_report.is_found(detector, crop) for crop in crops]
    assert np.mean(found) >= synth_report.FOUND_BAR
    empty = replace(crops[0], matte=np.zeros_like(crops[0].matte))
    elsewhere = replace(crops[0], landmarks=crops[0].landmarks * 0.1)
    assert not synth_report.is_found(detector, empty) and not synth_report.is_found(detector, elsewhere)


def test_yaw_counts_the_turn_of_the_head(tracks: list[Path]) -> None:
    """A camera 30 degrees to the left of somebody who looks there sees the face from the front."""
    frame = replace(Track.load(tracks[0]).frames[0], neck=np.zeros(3), head=np.zeros(3), viewmat=aim(0.5, 0.2, 0.1, 1.0, np.zeros(3)))
    assert abs(synth_report.view_yaw(frame) - 0.5) < 1e-6
    assert abs(synth_report.view_yaw(replace(frame, neck=np.array([0, 0.2, 0]), head=np.array([0, 0.3, 0])))) < 1e-6


def test_skin_is_skin(tracks: list[Path]) -> None:
    """The mask leaves out eyes and mouth, and its mean is the color that was painted over it."""
    crop = synth_report.read_crops(Track.load(tracks[0]), 1)[0]
    mask = synth_report.skin_mask(crop)
    assert 800 < mask.sum() < 0.3 * mask.size
    for idx in (13, 468, 473):  # the upper lip and both pupils
        x, y = crop.landmarks[idx].astype(int)
        assert not mask[y, x]
    x, y = crop.landmarks[151].astype(int)  # the forehead's middle
    assert mask[y, x]
    even = replace(crop, rgb=np.broadcast_to(np.array([0.5, 0.5, 0.5], np.float32), crop.rgb.shape))
    values = dict(zip(synth_report.MEASURES, synth_report.measure(even)))
    assert abs(values["skin L*"] - 53.39) < 0.1 and abs(values["skin a*"]) < 0.1
    assert values["contrast on skin (sd of luminance)"] < 1e-6


def test_verdicts() -> None:
    real = np.array([1.0, 3.0])
    assert synth_report.verdict(real, np.array([2.1]), ("more", "less")) == "alike (+0.1 sd)"
    assert synth_report.verdict(real, np.array([0.5]), ("more", "less")) == "synthetic is clearly less (-1.5 sd)"
    assert synth_report.verdict(real, np.array([5.0]), ("more", "less")) == "synthetic is far more (+3.0 sd)"


def test_the_report(tracks: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A data set compared with one of its own people."""
    markdown, picture = tmp_path / "report.md", tmp_path / "sheet.png"
    arguments = [str(tracks[0].parents[1]), "--real", str(tracks[1]), "--people", "1", "--columns", "3"]
    assert synth_report.main([*arguments, "--sheet", str(picture), "--markdown", str(markdown)]) == 0
    report = capsys.readouterr().out
    assert report == markdown.read_text(encoding="utf-8")
    assert all(f"| {name} |" in report for name in synth_report.MEASURES) and "bar 98 %: met" in report
    assert picture.is_file()
    assert synth_report.main([str(tmp_path), "--real", str(tracks[1])]) == 1
