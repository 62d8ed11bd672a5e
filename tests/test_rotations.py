"""Rotations against scipy, and their gradients where the formulas degenerate."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from avtool import rotations as R

WXYZ = [3, 0, 1, 2]  # scipy's xyzw to wxyz


def vectors(count=200, seed=0):
    """Axis-angle vectors of all sizes from 0 to nearly pi."""
    generator = np.random.default_rng(seed)
    axis = generator.normal(size=(count, 3))
    angle = np.concatenate([[0, 1e-8, 1e-5, 9e-4, 1.1e-3, 0.01, 3.1415], generator.uniform(0, np.pi - 1e-3, count - 7)])
    return axis / np.linalg.norm(axis, axis=1, keepdims=True) * angle[:, None]


def test_conversions_agree_with_scipy():
    w = vectors()
    reference = Rotation.from_rotvec(w)
    t = torch.from_numpy(w)
    q = torch.from_numpy(reference.as_quat()[:, WXYZ])
    m = torch.from_numpy(reference.as_matrix())
    positive = torch.where(q[:, :1] < 0, -q, q)
    torch.testing.assert_close(R.axis_angle_to_matrix(t), m, atol=1e-9, rtol=0)
    torch.testing.assert_close(R.axis_angle_to_quat(t), positive, atol=1e-9, rtol=0)
    torch.testing.assert_close(R.quat_to_matrix(3 * q), m, atol=1e-9, rtol=0)
    torch.testing.assert_close(R.matrix_to_quat(m), positive, atol=1e-7, rtol=0)
    torch.testing.assert_close(R.matrix_to_axis_angle(m), t, atol=1e-6, rtol=0)


def test_quaternion_product_is_composition():
    a, b = (Rotation.from_rotvec(vectors(seed=s)) for s in (1, 2))
    qa, qb = (torch.from_numpy(r.as_quat()[:, WXYZ]) for r in (a, b))
    torch.testing.assert_close(R.quat_to_matrix(R.quat_multiply(qa, qb)), torch.from_numpy((a * b).as_matrix()), atol=1e-9, rtol=0)


@pytest.mark.parametrize("turn", [(np.pi, 0, 0), (0, np.pi, 0), (0, 0, np.pi), (2.2, 2.2, 0.1)])
def test_half_turns_survive_the_matrix(turn):
    m = torch.from_numpy(Rotation.from_rotvec(turn).as_matrix())
    torch.testing.assert_close(R.axis_angle_to_matrix(R.matrix_to_axis_angle(m)), m, atol=1e-6, rtol=0)


def test_gradients_match_finite_differences():
    w = torch.from_numpy(vectors(12)[[1, 2, 3, 4, 5, 7, 8, 9]]).requires_grad_()
    assert torch.autograd.gradcheck(R.axis_angle_to_matrix, w)
    assert torch.autograd.gradcheck(R.axis_angle_to_quat, w)
    assert torch.autograd.gradcheck(lambda x: R.matrix_to_axis_angle(R.axis_angle_to_matrix(x)), w[3:].detach().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_at_zero_are_finite_and_right(dtype):
    w = torch.zeros(3, dtype=dtype, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(R.axis_angle_to_matrix, w)
    expected = torch.zeros(3, 3, 3, dtype=dtype)
    for i, (a, b) in enumerate(((2, 1), (0, 2), (1, 0))):
        expected[a, b, i], expected[b, a, i] = 1, -1
    torch.testing.assert_close(jacobian, expected)
    through = torch.autograd.functional.jacobian(lambda x: R.matrix_to_axis_angle(R.axis_angle_to_matrix(x)), w)
    torch.testing.assert_close(through, torch.eye(3, dtype=dtype))
    half = torch.autograd.functional.jacobian(R.axis_angle_to_quat, w)
    torch.testing.assert_close(half[1:], torch.eye(3, dtype=dtype) / 2)
