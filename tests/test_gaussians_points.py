"""Seeding, the rig and init-points: every region has points, and they stay on the mesh that moves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avtool.artifacts.points import Points
from avtool.artifacts.track import Frame, Track
from avtool.gaussians import Gaussians
from avtool.gaussians.initial import initial_gaussians
from avtool.gaussians import rig
from avtool.gaussians.rig import carry, carry_means, local_to_global, point_frames
from avtool.gaussians.seeding import MIN_REGION_POINTS, UV_SIZES, PointBinding, seed_points
from avtool.head import PARTS, HeadModel, HeadParams, load_head_model
from avtool.render import render
from avtool.rotations import axis_angle_to_matrix, quat_to_matrix

SIZE = 96


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model()


@pytest.fixture(scope="module")
def binding(head: HeadModel) -> PointBinding:
    return seed_points(head, UV_SIZES["test"])


def test_every_part_and_region_has_points(head: HeadModel, binding: PointBinding) -> None:
    assert (binding.part.diff() >= 0).all() and torch.equal(binding.part, head.face_part[binding.face_idx])
    present = torch.unique(head.face_part)
    sizes = binding.part_sizes(len(PARTS))
    assert sum(sizes) == binding.num_points and all(sizes[part] > 0 for part in present.tolist())
    points = torch.bincount(head.face_region[binding.face_idx], minlength=len(head.region_names))
    triangles = torch.bincount(head.face_region, minlength=len(head.region_names))
    assert (points >= triangles.clamp_max(MIN_REGION_POINTS)).all()


def test_points_lie_in_their_triangles(head: HeadModel, binding: PointBinding) -> None:
    assert (binding.barycentrics >= 0).all()
    assert torch.allclose(binding.barycentrics.sum(-1), torch.ones(binding.num_points), atol=1e-6)
    uv = (binding.barycentrics[..., None] * head.uv[head.uv_faces[binding.face_idx]]).sum(1)
    assert torch.allclose(uv, binding.uv, atol=1e-5)
    assert (binding.spacing > 0).all() and torch.isfinite(binding.spacing).all()


def test_each_covered_texel_gives_one_point(head: HeadModel) -> None:
    """Compared with testing all texel centers against all triangles."""
    size = 24
    binding = seed_points(head, size)
    axis = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    texels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    a, b, c = head.uv[head.uv_faces].double().unbind(1)
    matrix = torch.stack([b - a, c - a], -1)
    regular = torch.linalg.det(matrix).abs() > 1e-14
    inverse = torch.linalg.inv(matrix[regular])
    covered = torch.zeros(len(texels), dtype=torch.bool)
    for chunk in torch.split(torch.arange(len(inverse)), 500):
        weights = (inverse[chunk][:, None] @ (texels[None, :, :, None] - a[regular][chunk][:, None, :, None])).squeeze(-1)
        covered |= ((weights >= 0).all(-1) & (weights.sum(-1) <= 1)).any(0)
    grid = binding.uv.double() * size - 0.5
    on_grid = ((grid - grid.round()).abs() < 1e-3).all(-1)
    cells = (grid[on_grid].round().long() @ torch.tensor([1, size])).tolist()
    assert abs(len(set(cells)) - int(covered.sum())) <= 3  # centers exactly on an edge may go either way
    assert len(cells) - len(set(cells)) <= 3


def test_seeding_is_repeatable_and_grows_with_the_atlas(head: HeadModel, binding: PointBinding) -> None:
    again = seed_points(head, UV_SIZES["test"])
    assert torch.equal(again.face_idx, binding.face_idx) and torch.equal(again.barycentrics, binding.barycentrics)
    larger = seed_points(head, 128)
    assert 3 < larger.num_points / binding.num_points < 5
    with pytest.raises(ValueError, match="uv_size"):
        seed_points(head, 0)


def test_points_ride_on_the_mesh(head: HeadModel, binding: PointBinding) -> None:
    """A rigid motion and a growth of the mesh carry over to means, rotations and scales exactly."""
    generator = torch.Generator().manual_seed(0)
    vertices = head.template.double()
    rotation = axis_angle_to_matrix(torch.tensor([0.3, -0.5, 0.2], dtype=torch.float64))
    shift = torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64)
    moved = 1.7 * vertices @ rotation.T + shift
    count = binding.num_points
    local = [torch.randn(count, k, generator=generator, dtype=torch.float64) for k in (3, 4, 3)]
    local[2] = local[2].exp()
    binding = dataclasses.replace(binding, barycentrics=binding.barycentrics.double())
    before = local_to_global(*local, point_frames(vertices, head.faces, binding))
    after = local_to_global(*local, point_frames(moved, head.faces, binding))
    assert torch.allclose(after[0], 1.7 * before[0] @ rotation.T + shift, atol=1e-6)
    unit = [torch.nn.functional.normalize(quats, dim=-1) for quats in (before[1], after[1])]
    assert torch.allclose(quat_to_matrix(unit[1]), rotation @ quat_to_matrix(unit[0]), atol=1e-5)
    assert torch.allclose(after[2], 1.7 * before[2], rtol=1e-6)


def test_a_point_without_offset_is_its_barycentric_point(head: HeadModel, binding: PointBinding) -> None:
    frames = point_frames(head.template, head.faces, binding)
    expected = (binding.barycentrics[..., None] * head.template[head.faces[binding.face_idx]]).sum(1)
    zero = torch.zeros(binding.num_points, 3)
    means, _, _ = local_to_global(zero, torch.ones(binding.num_points, 4), zero, frames)
    assert torch.allclose(means, expected, atol=1e-6)


def test_the_rig_is_differentiable_in_batches(head: HeadModel, binding: PointBinding) -> None:
    vertices = head.template.repeat(2, 1, 1).requires_grad_()
    frames = point_frames(vertices, head.faces, binding)
    local = torch.full((binding.num_points, 3), 0.1, requires_grad=True)
    quats = torch.nn.functional.normalize(torch.ones(binding.num_points, 4), dim=-1)
    means, quats, scales = local_to_global(local, quats, local.exp(), frames)
    assert means.shape == scales.shape == (2, binding.num_points, 3) and quats.shape == (2, binding.num_points, 4)
    gradients = torch.autograd.grad(means.square().sum() + quats[..., 1].sum() + scales.sum(), [vertices, local])
    assert all(torch.isfinite(gradient).all() and gradient.abs().sum() > 0 for gradient in gradients)


def turned_meshes(head: HeadModel, count: int) -> torch.Tensor:
    """Heads (B, V, 3), each turned about another axis, so that every branch of the quaternion occurs, and dented."""
    generator = torch.Generator().manual_seed(1)
    turns = axis_angle_to_matrix(torch.tensor([[0.1, 0.2, 0.3], [3.1, 0, 0], [0, 3.1, 0], [0, 0, 3.1]])[:count])
    return head.template @ turns.mT + 1e-3 * torch.randn(count, *head.template.shape, generator=generator)


def carried(how: str, tensors: list[torch.Tensor], faces: torch.Tensor, binding: PointBinding) -> tuple[torch.Tensor, ...]:
    """Means, quats, scales, and the means alone; "compiled", or "readable" in the tensors' type."""
    vertices, *local = tensors
    if how == "compiled":
        return *carry(*local, vertices, faces, binding), carry_means(local[0], vertices, faces, binding)
    views = len(vertices) // len(local[0])
    local = [field.repeat_interleave(views, dim=0) for field in local]
    means, quats, scales = local_to_global(*local, point_frames(vertices, faces, binding))
    return means, quats, scales, means


@pytest.mark.parametrize("people", [1, 2, 4])
def test_the_compiled_rig_agrees_with_its_twin(head: HeadModel, binding: PointBinding, people: int) -> None:
    """Forward, and every gradient, against float64; a triangle lies collapsed in one mesh."""
    generator = torch.Generator().manual_seed(0)
    vertices = turned_meshes(head, 4)
    local = [torch.randn(people, binding.num_points, k, generator=generator) for k in (3, 4, 3)]
    local[2] = local[2].exp()
    single = [tensor.requires_grad_() for tensor in (vertices, *local)]
    double = [tensor.detach().double().requires_grad_() for tensor in single]
    exact = dataclasses.replace(binding, barycentrics=binding.barycentrics.double())
    found, expected = carried("compiled", single, head.faces, binding), carried("readable", double, head.faces, exact)
    weights = [torch.randn(value.shape, generator=generator) for value in found]
    for one, other in zip(found, expected):
        assert one.shape == other.shape and torch.allclose(one.double(), other, atol=2e-5 * float(other.detach().abs().max()))
    totals = [sum((w.to(v) * v).sum() for w, v in zip(weights, values)) for values in (found, expected)]
    for one, other in zip(torch.autograd.grad(totals[0], single), torch.autograd.grad(totals[1], double)):
        # Slivers amplify rounding: their gradients go with the inverse of their height.
        error = (one.double() - other).abs() / (1e-2 * other.abs().max() + other.abs())
        assert error.max() < 2e-2 and error.mean() < 1e-5


def test_a_collapsed_triangle_has_finite_gradients(head: HeadModel, binding: PointBinding) -> None:
    vertices = head.template[None].clone()
    vertices[0, head.faces[binding.face_idx[0]]] = vertices[0, head.faces[binding.face_idx[0], 0]].clone()
    tensors = [vertices, torch.ones(1, binding.num_points, 3), torch.ones(1, binding.num_points, 4), torch.ones(1, binding.num_points, 3)]
    tensors = [tensor.requires_grad_() for tensor in tensors]
    values = carried("compiled", tensors, head.faces, binding)
    assert all(value.isfinite().all() for value in values)
    assert all(g.isfinite().all() for g in torch.autograd.grad(sum(v.sum() for v in values), tensors))


def test_the_torch_means_are_the_compiled_ones(head: HeadModel, binding: PointBinding, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU runs, on the CPU."""
    vertices = turned_meshes(head, 4).requires_grad_()
    local = torch.randn(2, binding.num_points, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    results = []
    for compiled in (True, False):
        monkeypatch.setattr(rig, "_is_compiled", lambda *tensors, answer=compiled: answer)
        means = carry_means(local, vertices, head.faces, binding)
        results.append([means, *torch.autograd.grad(means.square().sum(), [vertices, local])])
    for one, other in zip(*results):
        assert torch.allclose(one, other, atol=1e-3 * float(other.detach().abs().max()))


def frontal_camera() -> tuple[torch.Tensor, torch.Tensor]:
    viewmat = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    viewmat[:3, 3] = torch.tensor([0.0, 0.05, 0.9])
    K = torch.tensor([[250.0, 0, SIZE / 2], [0, 250.0, SIZE / 2], [0, 0, 1]])
    return viewmat, K


def test_initial_points_cover_the_head(head: HeadModel) -> None:
    binding = seed_points(head, 128)
    gaussians = initial_gaussians(head, HeadParams.zeros(head), binding)
    viewmat, K = frontal_camera()
    alphas = render(gaussians, viewmat, K, SIZE, SIZE).alphas[..., 0]
    center = alphas[SIZE // 2 - 12 : SIZE // 2 + 12, SIZE // 2 - 8 : SIZE // 2 + 8]
    assert center.min() > 0.9 and alphas[0, 0] < 0.01


@pytest.fixture
def painted_track(head: HeadModel, tmp_path: Path) -> Path:
    """A track of one picture: red on the left half of the image, blue on the right."""
    viewmat, K = frontal_camera()
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[:, : SIZE // 2, 0], image[:, SIZE // 2 :, 2] = 255, 255
    Image.fromarray(image).save(tmp_path / "photo one.png")
    zero = np.zeros(3)
    frame = Frame(
        image="photo one.png", frame_idx=None, width=SIZE, height=SIZE, K=K.numpy(), viewmat=viewmat.numpy(),
        expression=np.zeros(head.num_expression), neck=zero, head=zero, jaw=zero, eyes=np.zeros((2, 3)),
        crop=(0.0, 0.0, float(SIZE)),
    )  # fmt: skip
    path = tmp_path / "track.json"
    Track(head_model=head.model_id, identity=np.zeros(head.num_identity), frames=[frame], base=tmp_path).save(path)
    return path


def test_init_points_writes_colored_bound_points(avtool: Callable, painted_track: Path, head: HeadModel) -> None:
    done = avtool("init-points", painted_track, "-o", "points.ply", "--preset", "test", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    points = Points.load(painted_track.parent / "points.ply")
    assert report["points"] == points.num_points and points.uv_size == 64 and points.head_model == head.model_id
    nose = points.part == PARTS.index("nose")
    # The person's right is on the left of the image.
    right, left = nose & (points.means[:, 0] < -0.006), nose & (points.means[:, 0] > 0.006)
    assert points.colors[right].mean(0)[0] > 0.9 and points.colors[left].mean(0)[2] > 0.9
    header = (painted_track.parent / "points.ply").read_bytes().split(b"end_header")[0].decode()
    names = [line.split()[-1] for line in header.splitlines() if line.startswith("property")]
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert {"face_idx", "part"} <= set(names[names.index("rot_3") + 1 :])


def test_init_points_refuses_before_it_works(avtool: Callable, painted_track: Path, tmp_path: Path) -> None:
    (tmp_path / "points.ply").write_text("precious")
    done = avtool("init-points", painted_track)
    assert done.returncode == 1 and "--force" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "points.ply").read_text() == "precious"
    assert avtool("init-points", painted_track, "--preset", "vast").returncode == 2
    track = json.loads(painted_track.read_text())
    track["head_model"] = "another-head"
    painted_track.write_text(json.dumps(track))
    done = avtool("init-points", painted_track, "-o", "other.ply")
    assert done.returncode == 1 and "another-head" in done.stderr and not (tmp_path / "other.ply").exists()


def test_init_points_goes_on_without_the_picture(avtool: Callable, painted_track: Path) -> None:
    (painted_track.parent / "photo one.png").unlink()
    done = avtool("init-points", painted_track, "--uv-size", "32")
    assert done.returncode == 0 and "gray" in done.stderr
    points = Points.load(painted_track.parent / "points.ply")
    assert torch.allclose(points.colors, torch.full_like(points.colors, 0.5), atol=1e-6) and points.uv_size == 32


def test_the_container_broadcasts_and_indexes() -> None:
    gaussians = Gaussians(
        torch.zeros(2, 5, 3), torch.ones(5, 4), torch.ones(5, 3), torch.ones(1, 5), torch.rand(2, 5, 7)
    )
    assert gaussians.batch_shape == (2,) and gaussians.num_points == 5 and gaussians.num_channels == 7
    assert gaussians[1].batch_shape == () and torch.equal(gaussians[1].colors, gaussians.colors[1])
    assert gaussians.with_colors(torch.zeros(5, 3)).num_channels == 3
    assert gaussians.detach().to(torch.float64).means.dtype == torch.float64
