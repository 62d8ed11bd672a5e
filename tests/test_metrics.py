"""The metrics against their definitions, and the reasons given where one is absent."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from avtool import losses, metrics


@pytest.fixture
def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.uniform(0.2, 0.8, (48, 40, 3)).astype(np.float32)
    return np.clip(target + rng.normal(0, 0.05, target.shape), 0, 1).astype(np.float32), target


def test_psnr_matches_its_definition_whole_and_masked(images: tuple[np.ndarray, np.ndarray]) -> None:
    image, target = images
    assert metrics.psnr(image, target) == pytest.approx(-10 * np.log10(((image - target) ** 2).mean()), abs=1e-4)
    spoiled = image.copy()
    spoiled[20:] = 0
    mask = metrics.above_row(48, 40, 20.0)
    assert mask.sum() == 20 * 40
    assert metrics.psnr(spoiled, target, mask) == pytest.approx(metrics.psnr(image[:20], target[:20]), abs=1e-6)
    assert metrics.psnr(target, target) == metrics.PSNR_CEILING


def test_an_empty_mask_is_refused(images: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="no pixel"):
        metrics.psnr(*images, mask=np.zeros((48, 40), bool))


def test_ssim_is_one_for_equal_images_and_falls_with_noise(images: tuple[np.ndarray, np.ndarray]) -> None:
    image, target = images
    assert metrics.ssim(target, target) == pytest.approx(1.0)
    noisy = metrics.ssim(image, target)
    assert 0.3 < noisy < 0.999
    spoiled = image.copy()
    spoiled[30:] = 0
    mask = metrics.above_row(48, 40, 20.0)
    assert metrics.ssim(spoiled, target, mask) == pytest.approx(metrics.ssim(image, target, mask), abs=1e-6)


def test_landmark_distance_is_in_percent_of_the_outer_eye_corners() -> None:
    real = np.random.default_rng(1).uniform(0, 200, (478, 2))
    real[33], real[263] = (50, 80), (150, 80)
    assert metrics.interocular(real) == pytest.approx(100)
    assert metrics.landmark_distance(real + [3, 4], real) == pytest.approx(5)
    assert metrics.landmark_distance(real, real, metrics.CONTOUR_IDS) == 0
    real[263] = real[33]
    with pytest.raises(ValueError, match="degenerate"):
        metrics.landmark_distance(real, real)


def test_contour_ids_are_distinct_points_of_the_mesh() -> None:
    assert len(set(metrics.CONTOUR_IDS)) == len(metrics.CONTOUR_IDS)
    assert max(metrics.CONTOUR_IDS) < 468


def test_alignment_puts_the_five_points_on_the_template() -> None:
    landmarks = np.zeros((478, 2))
    angle, scale, shift = 0.2, 1.3, np.array([60.0, 40.0])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks[list(metrics.FIVE_POINT_IDS)] = scale * metrics.ARCFACE_POINTS @ rotation.T + shift
    image = np.zeros((300, 300, 3), np.uint8)
    x, y = np.rint(landmarks[metrics.FIVE_POINT_IDS[2]]).astype(int)
    image[y - 3 : y + 3, x - 3 : x + 3] = 255
    crop = metrics.align_face(image, landmarks)
    assert crop.shape == (112, 112, 3)
    rows, columns = np.nonzero(crop[..., 0] > 128)
    assert np.allclose([columns.mean() + 0.5, rows.mean() + 0.5], metrics.ARCFACE_POINTS[2], atol=1.0)


def test_summary_leaves_out_what_is_missing() -> None:
    assert metrics.summarize([1.0, None, 3.0]) == {"mean": 2.0, "std": 1.0, "n": 2}
    assert metrics.summarize([None]) == {"mean": None, "std": None, "n": 0}


def test_lpips_says_why_it_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(metrics.Unavailable, match="vgg16"):
        metrics.load_lpips()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vgg16-397923af.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(metrics.Unavailable, match="cannot be"):
        metrics.load_lpips()
    with pytest.raises(ValueError, match="backbone"):
        metrics.load_lpips("resnet")


def test_the_loss_and_the_metric_are_one_lpips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: tuple) -> None:
    """With a stand-in for the library: one network, pictures in [-1, 1] either way, frozen; and one reason when it is absent."""

    class Library:
        class LPIPS(torch.nn.Conv2d):
            def __init__(self, net: str, verbose: bool) -> None:
                super().__init__(3, 4, 3)

            def forward(self, a: torch.Tensor, b: torch.Tensor, normalize: bool = False) -> torch.Tensor:
                a, b = (2 * x - 1 if normalize else x for x in (a, b))
                return (super().forward(a).tanh() - super().forward(b).tanh()).square().mean((1, 2, 3), keepdim=True)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(metrics.Unavailable, match="LPIPS loss.*vgg16.*weight lpips: 0"):
        losses.load_lpips("cpu")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vgg16-397923af.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "lpips", Library)
    torch.manual_seed(0)
    metric = metrics.load_lpips()
    torch.manual_seed(0)
    loss = losses.load_lpips("cpu")
    image, target = (torch.from_numpy(x)[None] for x in images)
    image.requires_grad_()
    distance = loss(image, target)
    assert distance.item() == pytest.approx(metric(*images), rel=1e-5) and distance.item() > 0
    distance.backward()
    assert image.grad.abs().max() > 0


def test_a_torchscript_recognizer_embeds_and_a_bad_file_has_a_reason(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten())
    file = tmp_path / "toy.pt"
    torch.jit.trace(network, torch.zeros(1, 3, 112, 112)).save(str(file))
    recognizer = metrics.load_recognizer(file)
    gray = recognizer(np.full((112, 112, 3), 191, np.uint8))
    assert gray.shape == (147,) and np.allclose(gray, (191 - 127.5) / 128)
    assert metrics.cosine(gray, gray) == pytest.approx(1.0)
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"nothing")
    with pytest.raises(metrics.Unavailable, match="TorchScript"):
        metrics.load_recognizer(broken)
    with pytest.raises(metrics.Unavailable, match="not a file"):
        metrics.load_recognizer(tmp_path / "absent.onnx")
    with pytest.raises(ValueError, match="onnx"):
        metrics.load_recognizer(Path(__file__))
