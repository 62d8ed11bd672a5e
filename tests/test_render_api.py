"""render() as callers see it: batches, backgrounds, what is refused, and the kernels' surroundings."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import numba
import pytest
import torch
from render_scenes import FIELDS, make_scene

from avtool.errors import AvtoolError
from avtool.gaussians import Gaussians
from avtool import jit
from avtool.render import cuda, dispatch, render

SIZE = (40, 28)


def scene_of(num_points: int = 200, channels: int = 4, seed: int = 0) -> tuple[Gaussians, torch.Tensor, torch.Tensor]:
    scene = make_scene(num_points, channels, SIZE, seed)
    gaussians = Gaussians(*(scene[name].float() for name in FIELDS))
    return gaussians, scene["viewmats"].float(), scene["Ks"].float()


def stacked(gaussians: list[Gaussians]) -> Gaussians:
    return Gaussians(*(torch.stack([getattr(g, name) for g in gaussians]) for name in FIELDS))


@pytest.mark.parametrize("backend", ("numba", "torch"))
def test_a_batch_is_its_images(backend: str) -> None:
    scenes = [scene_of(seed=seed) for seed in range(3)]
    batch = stacked([scene[0] for scene in scenes])
    viewmats = torch.stack([scene[1] for scene in scenes])
    viewmats[1, 0, 3] += 0.02
    Ks = scenes[0][2]
    background = torch.tensor([0.1, 0.9, 0.4, -1.0])
    together = render(batch, viewmats, Ks, *SIZE, background=background, backend=backend)
    assert together.colors.shape == (3, SIZE[1], SIZE[0], 4) and together.alphas.shape == (3, SIZE[1], SIZE[0], 1)
    for b in range(3):
        alone = render(batch[b], viewmats[b], Ks, *SIZE, background=background, backend=backend)
        assert torch.equal(together.colors[b], alone.colors) and torch.equal(together.alphas[b], alone.alphas)


@pytest.mark.parametrize("backend", ("numba", "torch"))
def test_depth_is_the_distance_of_what_is_seen(backend: str) -> None:
    """An opaque sheet three metres away; behind the camera and beside it there is nothing."""
    x, y = torch.meshgrid(torch.linspace(-0.2, 0.2, 24), torch.linspace(-0.5, 0.5, 48), indexing="xy")
    count = x.numel()
    means = torch.stack((x.flatten(), y.flatten(), torch.full((count,), 3.0)), -1).requires_grad_()
    quats = torch.tensor([1.0, 0, 0, 0]).expand(count, 4)
    gaussians = Gaussians(means, quats, torch.full((count, 3), 0.02), torch.full((count,), 0.99), torch.rand(count, 2))
    K = torch.tensor([[60.0, 0, SIZE[0] / 2], [0, 60.0, SIZE[1] / 2], [0, 0, 1]])
    background = torch.tensor([0.3, 0.7])
    viewmats = torch.eye(4).repeat(2, 1, 1)
    viewmats[1, 2, 3] = 0.5
    output = render(gaussians, viewmats, K, *SIZE, background=background, backend=backend, depth=True)
    plain = render(gaussians, viewmats, K, *SIZE, background=background, backend=backend)
    assert plain.depths is None and torch.allclose(output.colors, plain.colors, atol=1e-6)
    middle = output.depths[:, SIZE[1] // 2, SIZE[0] // 2, 0]
    assert torch.allclose(middle, torch.tensor([3.0, 3.5]), atol=1e-3)
    assert (output.depths[output.alphas == 0] == 0).all() and (output.alphas == 0).any()
    gradient = torch.autograd.grad(output.depths.sum(), means)[0]
    assert gradient[:, 2].sum() > 0 and gradient.isfinite().all()


def test_shared_fields_sum_their_gradients_over_the_batch() -> None:
    gaussians, viewmat, Ks = scene_of()
    viewmats = viewmat.repeat(2, 1, 1)
    viewmats[1, 0, 3] += 0.02
    colors = gaussians.colors.clone().requires_grad_()
    means = gaussians.means.repeat(2, 1, 1).requires_grad_()
    mixed = Gaussians(means, gaussians.quats, gaussians.scales, gaussians.opacities, colors)
    assert mixed.batch_shape == (2,) and mixed[1].means.shape == (200, 3)
    output = render(mixed, viewmats, Ks, *SIZE)
    v_means, v_colors = torch.autograd.grad(output.colors.square().sum(), [means, colors])
    expected = torch.zeros_like(colors)
    for b in range(2):
        output = render(mixed[b], viewmats[b], Ks, *SIZE)
        one_means, one_colors = torch.autograd.grad(output.colors.square().sum(), [means, colors])
        assert torch.allclose(v_means[b], one_means[b], rtol=1e-4, atol=1e-6)
        expected += one_colors
    assert torch.allclose(v_colors, expected, rtol=1e-4, atol=1e-6)


def test_several_batch_dimensions_broadcast() -> None:
    gaussians, viewmat, Ks = scene_of()
    output = render(gaussians, viewmat.expand(2, 3, 4, 4), Ks.expand(3, 3, 3), *SIZE)
    assert output.colors.shape == (2, 3, SIZE[1], SIZE[0], 4)
    assert torch.equal(output.colors[1, 2], render(gaussians, viewmat, Ks, *SIZE).colors)


def test_images_in_flight_do_not_disturb_each_other() -> None:
    """Two forwards before their backwards, one graph used twice, and threads at the same time."""
    scenes = [scene_of(seed=seed) for seed in range(2)]

    def run(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        gaussians, viewmat, Ks = scenes[index]
        means = gaussians.means.clone().requires_grad_()
        fields = Gaussians(means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.colors)
        return means, render(fields, viewmat, Ks, *SIZE).colors.square().sum()

    expected = [torch.autograd.grad(loss, means)[0] for means, loss in (run(0), run(1))]
    pending = [run(0), run(1), run(0)]
    for (means, loss), index in zip(pending, (0, 1, 0), strict=True):
        assert torch.equal(torch.autograd.grad(loss, means, retain_graph=True)[0], expected[index])
        assert torch.equal(torch.autograd.grad(loss, means)[0], expected[index])
    results: list[bool] = []

    def worker(index: int) -> None:
        for _ in range(5):
            means, loss = run(index)
            results.append(torch.equal(torch.autograd.grad(loss, means)[0], expected[index]))

    threads = [threading.Thread(target=worker, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 10


def test_a_changed_input_is_noticed_before_backward() -> None:
    gaussians, viewmat, Ks = scene_of()
    means = gaussians.means.clone().requires_grad_()
    shifted = means * 1.0
    output = render(
        Gaussians(shifted, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.colors), viewmat, Ks, *SIZE
    )
    with torch.no_grad():
        shifted.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.colors.sum().backward()


@pytest.mark.parametrize("threads", (1, 3))
def test_other_thread_counts_give_the_same_image(threads: int) -> None:
    gaussians, viewmat, Ks = scene_of(1000, 12)
    expected = render(gaussians, viewmat, Ks, *SIZE).colors
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(render(gaussians, viewmat, Ks, *SIZE).colors, expected)
    finally:
        torch.set_num_threads(before)


def test_double_precision_inputs_come_back_as_such() -> None:
    gaussians, viewmat, Ks = scene_of()
    output = render(gaussians.to(torch.float64), viewmat.double(), Ks.double(), *SIZE)
    assert output.colors.dtype == torch.float64
    assert torch.equal(output.colors.float(), render(gaussians, viewmat, Ks, *SIZE).colors)


@pytest.mark.parametrize("name", FIELDS)
def test_numbers_that_are_not_finite_are_refused(name: str) -> None:
    gaussians, viewmat, Ks = scene_of()
    values = {field: getattr(gaussians, field).clone() for field in FIELDS}
    values[name][5] = float("nan")
    values[name][9] = float("inf")
    row = values[name][5].numel()
    with pytest.raises(ValueError, match=rf"^{name} has {2 * row} non-finite .* first at index \(5,"):
        render(Gaussians(**values), viewmat, Ks, *SIZE)


def test_a_camera_that_is_not_finite_is_refused() -> None:
    gaussians, viewmat, Ks = scene_of()
    viewmat[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"viewmats has 1 non-finite of 16 values, first at index \(1, 2\)"):
        render(gaussians, viewmat, Ks, *SIZE)


def test_shapes_that_do_not_fit_are_refused() -> None:
    gaussians, viewmat, Ks = scene_of()
    with pytest.raises(ValueError, match="same number of Gaussians"):
        Gaussians(gaussians.means[:3], gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.colors)
    with pytest.raises(ValueError, match=r"quats must have shape \(\.\.\., N, 4\)"):
        Gaussians(gaussians.means, gaussians.means, gaussians.scales, gaussians.opacities, gaussians.colors)
    with pytest.raises(ValueError, match="background must have shape"):
        render(gaussians, viewmat, Ks, *SIZE, background=torch.zeros(3))
    with pytest.raises(ValueError, match="do not broadcast"):
        render(gaussians, viewmat.expand(2, 4, 4), Ks.expand(3, 3, 3), *SIZE)
    with pytest.raises(ValueError, match="at least one pixel"):
        render(gaussians, viewmat, Ks, 0, 4)
    with pytest.raises(ValueError, match="unknown render backend"):
        render(gaussians, viewmat, Ks, *SIZE, backend="opengl")


def test_intrinsics_cannot_be_optimized_silently() -> None:
    gaussians, viewmat, Ks = scene_of()
    with pytest.raises(ValueError, match="Ks cannot be optimized"):
        render(gaussians, viewmat, Ks.requires_grad_(), *SIZE)


def test_gsplat_off_cuda_is_one_clear_line() -> None:
    gaussians, viewmat, Ks = scene_of()
    with pytest.raises(AvtoolError, match="--device cpu") as caught:
        render(gaussians, viewmat, Ks, *SIZE, backend="gsplat")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", (ModuleNotFoundError("No module named 'gsplat'"), RuntimeError("ninja\nfailed")))
def test_gsplat_that_does_not_load_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(cuda.importlib, "import_module", fail)
    cuda.load_rasterization.cache_clear()
    with pytest.raises(AvtoolError) as caught:
        cuda.load_rasterization()
    assert "\n" not in str(caught.value) and "--device cpu" in caught.value.hint


def test_the_backend_follows_the_device(caplog: pytest.LogCaptureFixture) -> None:
    assert dispatch._choose("auto", torch.device("cuda")) == "gsplat"
    assert dispatch._choose("auto", torch.device("cpu")) == "numba" and not caplog.records
    # By name: the program sets the level of its own logger, and any test may have run it in this process.
    dispatch._note_no_rasterizer.cache_clear()
    with caplog.at_level(logging.WARNING, logger="avtool"):
        assert [dispatch._choose("auto", torch.device("mps")) for _ in range(2)] == ["numba", "numba"]
    assert caplog.text.count("rendering on the CPU") == 1


def test_the_cache_survives_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(blocked))
    monkeypatch.setattr(jit.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    fallback = jit.cache_folder()
    assert fallback is not None and fallback.is_relative_to(tmp_path / "temporary")
    monkeypatch.setattr(jit, "_is_writable", lambda folder: False)
    assert jit.cache_folder() is None


def test_a_threading_layer_chosen_before_is_kept(tmp_path: Path, repository: Path) -> None:
    """numba may be running already, with another layer; nothing is printed either way."""
    program = (
        "import numba, torch\n"
        "@numba.njit(parallel=True)\n"
        "def double(x):\n"
        "    for i in numba.prange(len(x)):\n"
        "        x[i] *= 2\n"
        "double(torch.ones(4).numpy())\n"
        "from test_render_api import SIZE, render, scene_of\n"
        "assert render(*scene_of(50), *SIZE).alphas.sum() > 0\n"
        "assert numba.threading_layer() == 'workqueue'\n"
    )
    environment = {**os.environ, "NUMBA_THREADING_LAYER": "workqueue", "PYTHONPATH": f"{repository}{os.pathsep}{repository / 'tests'}"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""


def test_the_thread_count_is_shared_with_torch() -> None:
    assert jit.num_threads() == min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS, jit.MAX_THREADS)
    assert numba.get_num_threads() == jit.num_threads()
