"""ST-LPIPS: weight files as its package ships them, where they are looked for, and what the distance is like."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from avtool import metrics
from avtool.errors import Unavailable
from avtool.stlpips import Blur, ShiftTolerantLpips, find_weights, load_st_lpips, min_side, st_lpips_network


def write_weights(file: Path, backbone: str) -> Path:
    """Random weights under the names that the package's files use."""
    torch.manual_seed(3)
    state = {}
    for key, value in ShiftTolerantLpips(backbone).state_dict().items():
        name = f"lin{key[-1]}.model.1.weight" if key.startswith("heads") else key
        state[name if key not in ("shift", "scale") else f"scaling_layer.{key}"] = value
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file)
    return file


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "alex_shift_tolerant.pth", "alex")


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AVTOOL_STLPIPS", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def pictures(side: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(1, 3, side, side, generator=generator)
    return (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


def test_the_layout_is_that_of_the_weight_files() -> None:
    """Names and shapes of a few tensors of the published files: the index of a layer counts all layers before it."""
    alex, vgg = (ShiftTolerantLpips(name).state_dict() for name in ("alex", "vgg"))
    assert alex["net.slice1.0.weight"].shape == (64, 3, 11, 11) and alex["net.slice1.1.filt"].shape == (64, 1, 3, 3)
    assert alex["net.slice3.9.weight"].shape == (384, 192, 3, 3) and alex["net.slice5.13.bias"].shape == (256,)
    assert vgg["net.slice2.5.filt"].shape == (64, 1, 3, 3) and vgg["net.slice5.32.weight"].shape == (512, 512, 3, 3)
    assert [vgg[f"heads.{k}"].shape[1] for k in range(5)] == [64, 128, 256, 512, 512]


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_it_is_a_distance_with_a_gradient_down_to_its_smallest_picture(backbone: str) -> None:
    torch.manual_seed(0)
    network, side = ShiftTolerantLpips(backbone), min_side(backbone)
    a, b = pictures(side)
    a[..., : side // 2] = 0  # a masked picture
    a.requires_grad_()
    distance = network(a, b, normalize=True)
    assert distance.shape == (1, 1, 1, 1) and distance.item() > 0
    assert torch.allclose(distance, network(2 * b - 1, 2 * a - 1)) and network(b, b).item() == 0
    distance.sum().backward()
    assert a.grad.isfinite().all() and a.grad.abs().max() > 0
    with pytest.raises(ValueError, match=f"at least {side} pixels"):
        network(*pictures(side - 1))


def test_the_blur_keeps_flat_pictures_and_levels_stripes() -> None:
    flat, stripes = torch.full((1, 2, 8, 8), 0.3), torch.arange(8).remainder(2).float().expand(1, 2, 8, 8)
    blur = Blur(2)
    assert blur(flat).shape == (1, 2, 5, 5) and torch.allclose(blur(flat), torch.tensor(0.3))
    assert torch.allclose(blur(stripes), torch.tensor(0.5)), "dropping pixels alone would show all or none of them"


def test_weights_are_found_by_name_environment_and_package(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_weights("alex", weights) == weights == find_weights("alex", weights.parent)
    with pytest.raises(Unavailable, match="vgg_shift_tolerant.pth.*pip install"):
        find_weights("vgg", weights.parent)
    with pytest.raises(Unavailable, match="not here.*AVTOOL_STLPIPS"):
        find_weights("alex")
    inside = write_weights(tmp_path / "stlpips_pytorch" / "weights" / "vST0.0" / "vgg_shift_tolerant.pth", "vgg")

    class Spec:
        submodule_search_locations = (str(tmp_path / "stlpips_pytorch"),)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Spec if name == "stlpips_pytorch" else None)
    assert find_weights("vgg") == inside
    monkeypatch.setenv("AVTOOL_STLPIPS", str(weights))
    assert find_weights("vgg") == weights and st_lpips_network("vgg", "cpu").backbone == "alex", "the file decides"
    with pytest.raises(Unavailable, match="squeeze"):
        find_weights("squeeze")


def test_a_damaged_file_has_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "some weights.pth"
    file.write_bytes(b"not weights")
    with pytest.raises(Unavailable, match="some weights.pth") as error:
        load_st_lpips("cpu", file)
    assert "\n" not in str(error.value) and "ST-LPIPS loss" in str(error.value)
    torch.save({"net.slice1.0.weight": torch.zeros(64, 3, 11, 11)}, file)
    with pytest.raises(Unavailable, match="some weights.pth"):
        st_lpips_network("vgg", "cpu", file)


def test_loss_and_metric_are_one_network(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVTOOL_STLPIPS", str(weights))
    metric, backbone = metrics.load_st_lpips("vgg")
    a, b = pictures()
    found = metric(*(x[0].permute(1, 2, 0).numpy().astype(np.float32) for x in (a, b)))
    loss = load_st_lpips("cpu")(a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1))
    assert backbone == "alex" and found == pytest.approx(loss.item(), rel=1e-4) and found > 0


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.undo()
    if importlib.util.find_spec("stlpips_pytorch") is None:
        pytest.skip("stlpips-pytorch is not installed")
    yield


@pytest.mark.parametrize(("backbone", "expected"), [("alex", 0.04707230), ("vgg", 0.1064492)])
def test_the_published_weights_give_what_the_published_code_gives(installed: None, backbone: str, expected: float) -> None:
    """Expected values: version 0.0.2's own LPIPS(net=..., variant="shift_tolerant") on the same pictures."""
    grid = torch.linspace(0, 6.28, 48)
    waves = torch.cos(torch.stack((grid, 2 * grid, 3 * grid)))[:, None, :]
    picture = (0.5 + 0.5 * torch.sin(3 * grid)[:, None] * waves)[None]
    other = picture.roll(2, -1).square()
    assert st_lpips_network(backbone, "cpu")(picture, other, normalize=True).item() == pytest.approx(expected, rel=1e-4)
