"""The example scripts, run as a user runs them, at a tiny size."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avtool.prior.avatar import Avatar

TINY = {
    "PEOPLE": "2",
    "VIEWS": "2",
    "EXPRESSIONS": "1",
    "SIZE": "64",
    "SYNTH_FLAGS": "--identities 2 --views 2",
    "PORTRAIT_FLAGS": "--preset tiny --steps 3 --batch-size 2",
    "PSEUDO_FLAGS": "--views 2 --max-frames 3 --threshold 1",  # what three steps teach agrees with nobody
    "TRAIN_FLAGS": "--preset tiny --refiner tiny --uv-size 64 --steps 3 --batch-size 4 --views-per-identity 2",
    "INVERT_FLAGS": "--steps 3 --size 64",
    "FINETUNE_FLAGS": "--steps 3 --size 64",
    "REENACT_FLAGS": "--max-frames 4",
    "EVAL_FLAGS": "--max-frames 1",
}
SCRIPTS = ("quickstart.sh", "run_tests.sh", "pipeline.sh", "one_shot.sh", "setup.sh")


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory, repository: Path, astronaut: Path, carphone: Path) -> Path:
    """What the demo lays out, and a clip of six frames."""
    directory = tmp_path_factory.mktemp("footage")
    script = repository / "examples" / "demo_footage.py"
    subprocess.run([sys.executable, script, directory], check=True)
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(directory / "carphone.mp4"))
    size = next(reader)["size"]
    writer = imageio_ffmpeg.write_frames(str(directory / "short.mp4"), size, fps=25, macro_block_size=1)
    writer.send(None)
    for _, picture in zip(range(6), reader):
        writer.send(picture)
    writer.close()
    (directory / "photos").mkdir()
    shutil.copyfile(directory / "astronaut.png", directory / "photos" / "astronaut.png")
    return directory


def environment() -> dict[str, str]:
    """The avtool that is being tested comes first in PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **TINY, "PATH": path}


def frames_of(video: Path) -> list[np.ndarray]:
    """Flat pictures of a video of 64 x 64 pixels."""
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(video))
    assert next(reader)["size"] == (64, 64)
    return [np.frombuffer(data, np.uint8) for data in reader]


def check_results(out: Path) -> None:
    pictures = frames_of(out / "out.mp4")
    assert len(pictures) == 4
    # A head on white: neither blank nor noise from edge to edge.
    assert all(20 < picture.mean() < 250 and picture.std() > 10 for picture in pictures)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["schema"] == "metrics/1" and metrics["refined"]["psnr"]["mean"] > 5
    for name in ("track.json", "fit.png", "inverted.safetensors", "avatar.safetensors", "contact_sheet.png"):
        assert (out / name).stat().st_size > 0, name
    assert not [path.name for path in out.rglob("*.tmp*")]


def test_the_demo_footage_is_what_the_readme_says(footage: Path) -> None:
    from PIL import Image

    assert Image.open(footage / "astronaut.png").size == (512, 512)
    photos, held_out = (sorted(p.name for p in (footage / name).iterdir()) for name in ("carphone_photos", "carphone_heldout"))
    assert len(photos) == 3 and len(held_out) == 10
    assert max(photos) < min(held_out), "what is measured must come later than what was shown"


def test_the_pipeline_script_runs_every_command(repository: Path, footage: Path, tmp_path: Path) -> None:
    """A prior of its own included: no part of the chain depends on the shipped one."""
    out = tmp_path / "aus gabe"
    done = subprocess.run(
        ["sh", repository / "examples" / "pipeline.sh", footage / "photos", footage / "short.mp4", out],
        env=environment(), cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(out / "out.mp4")
    check_results(out)
    assert (out / "points.ply").is_file() and (out / "prior.safetensors").is_file()
    assert not list(tmp_path.glob("*.safetensors")), "results belong into the output directory"


def test_the_one_shot_script_joins_both_systems(repository: Path, footage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    places = [footage / "carphone_photos", footage / "short.mp4", footage / "short.mp4", out]
    done = subprocess.run(
        ["sh", repository / "examples" / "one_shot.sh", *places], env=environment(), cwd=tmp_path, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(out / "one_shot.mp4")
    for name in ("one_shot.mp4", "avatar.mp4"):
        pictures = frames_of(out / name)
        assert len(pictures) == 4 and all(picture.std() > 2 for picture in pictures), name
    report = json.loads((out / "mv" / "report.json").read_text())
    assert (report["kept"], report["pseudo_pictures"]) == (3, 6)
    metadata = Avatar.load(out / "avatar.safetensors").metadata
    assert "pseudo" in metadata["tuned"], metadata


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_makefile_makes_everything_once(repository: Path, footage: Path, tmp_path: Path) -> None:
    command = [
        "make", "-f", str(repository / "examples" / "Makefile"), f"PHOTOS={footage / 'photos'}", "OUT=out",
        f"DRIVER={footage / 'short.mp4'}", "PRIOR=out/prior.safetensors", "all", "points",
    ]  # fmt: skip
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_results(tmp_path / "out")
    again = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0 and "avtool" not in again.stdout, again.stdout
    (tmp_path / "out" / "avatar.safetensors").touch()
    changed = subprocess.run([*command, "-n"], env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert "reenact" in changed.stdout and "finetune" not in changed.stdout


def test_usage_is_told(repository: Path) -> None:
    done = subprocess.run(["sh", repository / "examples" / "pipeline.sh"], capture_output=True, text=True)
    assert done.returncode == 2 and "usage: sh examples/pipeline.sh PHOTOS DRIVER" in done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_are_plain_sh(repository: Path, name: str) -> None:
    subprocess.run(["sh", "-n", repository / "examples" / name], check=True)
