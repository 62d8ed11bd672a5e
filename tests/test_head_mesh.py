"""Triangle frames, normals, edges, Laplacian; and the mouth's geometry on random people."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from avtool.head import HeadParams, load_head_model, triangle_frames
from avtool.head.mesh import face_normals, laplacian, unique_edges, vertex_normals
from avtool.rotations import axis_angle_to_matrix, quat_to_matrix


@pytest.fixture(scope="module")
def head():
    return load_head_model()


def soup(count=50, seed=0, dtype=torch.float64):
    """Separate random triangles."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(3 * count, 3, generator=g, dtype=dtype), torch.arange(3 * count).reshape(-1, 3)


def test_frames_are_orthonormal_and_follow_gaussian_avatars(head):
    frames = triangle_frames(head.template, head.faces)
    identity = torch.eye(3).expand_as(frames.rotations)
    torch.testing.assert_close(frames.rotations @ frames.rotations.mT, identity, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(frames.rotations), torch.ones(head.num_faces), atol=1e-5, rtol=0)
    torch.testing.assert_close(quat_to_matrix(frames.quats), frames.rotations, atol=2e-5, rtol=0)
    a, b, c = (head.template[head.faces[:, k]] for k in range(3))
    length = (b - a).norm(dim=-1)
    height = torch.linalg.cross(b - a, c - a).norm(dim=-1) / length
    torch.testing.assert_close(frames.scales, (length + height) / 2, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(frames.origins, (a + b + c) / 3)
    torch.testing.assert_close(frames.rotations[..., 0], (b - a) / length[:, None], atol=1e-5, rtol=0)


def test_frames_move_with_the_mesh():
    v, faces = soup()
    turn = axis_angle_to_matrix(torch.tensor([0.3, -1.1, 0.5], dtype=torch.float64))
    before, after = triangle_frames(v, faces), triangle_frames(2 * v @ turn.T + 1, faces)
    torch.testing.assert_close(after.rotations, turn @ before.rotations)
    torch.testing.assert_close(after.scales, 2 * before.scales)


def test_frame_gradients_match_finite_differences():
    v, faces = soup(4)
    v.requires_grad_()

    def outputs(x):
        frames = triangle_frames(x, faces)
        return frames.rotations, frames.scales, frames.origins, quat_to_matrix(frames.quats)

    assert torch.autograd.gradcheck(outputs, v)


def test_a_collapsed_triangle_gives_finite_frames_and_gradients():
    v = torch.zeros(3, 3, requires_grad=True)
    frames = triangle_frames(v, torch.tensor([[0, 1, 2]]))
    (frames.rotations.sum() + frames.scales.sum()).backward()
    assert torch.isfinite(frames.rotations).all() and torch.isfinite(v.grad).all()


def test_selected_faces_and_batches():
    v, faces = soup()
    batch = torch.stack((v, 2 * v))
    some = triangle_frames(batch, faces, torch.tensor([4, 1]))
    assert some.rotations.shape == (2, 2, 3, 3) and some.quats.shape == (2, 2, 4)
    torch.testing.assert_close(some.origins[1, 0], triangle_frames(2 * v, faces).origins[4])


def test_normals_edges_and_laplacian_of_a_tetrahedron():
    v = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    faces = torch.tensor([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])
    torch.testing.assert_close(vertex_normals(v, faces), v / 3**0.5)
    assert (face_normals(v, faces) * v[faces].mean(1)).sum(-1).gt(0).all()
    assert unique_edges(faces).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    matrix = laplacian(faces, 5).to_dense()
    torch.testing.assert_close(matrix[:4] @ torch.cat((v, v[:1])), v * 4 / 3)
    assert not matrix[4].any()  # a vertex without edges


def hidden_from_the_front(points, vertices, faces):
    """(P,) bool: some triangle lies before the point on the ray along +z. points (P, 3), vertices (V, 3), faces (F, 3)."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    doubled = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (c[:, 0] - a[:, 0]) * (b[:, 1] - a[:, 1])
    keep = np.abs(doubled) > 1e-12
    a, b, c, doubled = a[keep], b[keep], c[keep], doubled[keep]
    dx, dy = points[:, None, 0] - a[:, 0], points[:, None, 1] - a[:, 1]
    u = (dx * (c - a)[:, 1] - (c - a)[:, 0] * dy) / doubled
    v = ((b - a)[:, 0] * dy - dx * (b - a)[:, 1]) / doubled
    z = a[:, 2] + u * (b - a)[:, 2] + v * (c - a)[:, 2]
    return ((u >= 0) & (v >= 0) & (u + v <= 1) & (z > points[:, None, 2])).any(1)


def test_teeth_and_tongue_stay_behind_the_lips_of_random_people(head):
    """Feasibility found slivers of teeth in 77 % of random heads; here none may show in a neutral mouth."""
    generator = torch.Generator().manual_seed(7)
    corners = head.faces[head.region_mask("teeth_up", "teeth_lo", "tongue")].numpy()
    weights = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1 / 3] * 3, [0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]])
    lips = head.template[head.faces[head.region_mask("lips")].flatten()]
    near = (head.template[head.faces].mean(1) - lips.mean(0)).norm(dim=-1) < 0.05
    skin = head.faces[near & head.region_mask("face", "lips")].numpy()
    visible = []
    for _ in range(8):
        person = replace(HeadParams.zeros(head), identity=torch.randn(head.num_identity, generator=generator))
        vertices = head(person).vertices.double().numpy()
        points = np.einsum("gk,fkd->fgd", weights, vertices[corners]).reshape(-1, 3)
        visible.append((~hidden_from_the_front(points, vertices, skin)).mean())
    assert max(visible) < 2e-3, visible


SMILE = {"jawOpen": 0.4, "mouthSmileLeft": 1.0, "mouthSmileRight": 1.0, "mouthUpperUpLeft": 0.6, "mouthUpperUpRight": 0.6}


@pytest.mark.parametrize(("expression", "least"), [(SMILE, 0.4), ({"jawOpen": 0.3}, 0.08), ({"jawOpen": 0.8}, 0.08)])
def test_parted_lips_show_the_upper_teeth(head, expression, least):
    """A smile shows most of the incisors, an open mouth their edges, as most people's do."""
    weights = torch.zeros(head.num_expression)
    for name, weight in expression.items():
        weights[head.expression_index(name)] = weight
    vertices = head(replace(HeadParams.zeros(head), expression=weights)).vertices.double().numpy()
    teeth = vertices[head.faces[head.region_mask("teeth_up")].numpy()].mean(1)
    front = teeth[teeth[:, 2] > teeth[:, 2].max() - 0.010]
    assert len(front) >= 20
    skin = head.faces[head.region_mask("face", "lips")].numpy()
    assert (~hidden_from_the_front(front, vertices, skin)).mean() > least