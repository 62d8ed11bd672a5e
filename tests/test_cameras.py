"""Cameras: directions that are easily mixed up, and projection against the definition."""

from __future__ import annotations

import math

import pytest
import torch

from avtool.cameras import crop_intrinsics, intrinsics, look_at, orbit_viewmats, project


def test_a_frontal_camera_has_the_rotation_of_the_convention() -> None:
    viewmat = orbit_viewmats([0.0], [0.0], 0.7)[0]
    torch.testing.assert_close(viewmat[:3, :3], torch.diag(torch.tensor([1.0, -1.0, -1.0])))
    torch.testing.assert_close(viewmat[:3, 3], torch.tensor([0.0, 0.0, 0.7]))


def test_yaw_and_pitch_move_the_camera_to_the_persons_left_and_up() -> None:
    viewmats = orbit_viewmats([math.pi / 2, 0.0], [0.0, 0.3], 2.0, center=(0.0, 0.1, 0.0))
    positions = -(viewmats[:, :3, :3].mT @ viewmats[:, :3, 3:])[..., 0]
    torch.testing.assert_close(positions[0], torch.tensor([2.0, 0.1, 0.0]), atol=1e-5, rtol=0)
    assert positions[1, 1] > 0.1 and positions[1, 2] > 0


def test_the_center_of_an_orbit_projects_to_the_middle() -> None:
    generator = torch.Generator().manual_seed(0)
    viewmats = orbit_viewmats(torch.rand(7, generator=generator) - 0.5, torch.rand(7, generator=generator) - 0.5, 1.0, (0.1, 0.2, 0.3))
    uv, depth = project(torch.tensor([[[0.1, 0.2, 0.3]]]).expand(7, 1, 3), viewmats, intrinsics(500.0, 640, 480).expand(7, 3, 3))
    torch.testing.assert_close(uv[:, 0], torch.tensor([[320.0, 240.0]]).expand(7, 2), atol=1e-3, rtol=0)
    torch.testing.assert_close(depth[:, 0], torch.ones(7))


def test_the_persons_left_is_on_the_right_of_a_frontal_picture_and_up_is_up() -> None:
    viewmat = orbit_viewmats([0.0], [0.0], 1.0)
    uv, _ = project(torch.tensor([[[0.1, 0.0, 0.0], [0.0, 0.1, 0.0]]]), viewmat, intrinsics(100.0, 100, 100)[None])
    assert uv[0, 0, 0] > 50 and abs(uv[0, 0, 1] - 50) < 1e-4
    assert uv[0, 1, 1] < 50


def test_a_crop_moves_pixels_as_it_moves_the_picture() -> None:
    generator = torch.Generator().manual_seed(2)
    points, viewmat, K = torch.rand(20, 3, generator=generator) - 0.5, orbit_viewmats([0.2], [0.1], 3.0)[0], intrinsics(800.0, 640, 480)
    full, _ = project(points, viewmat, K)
    square, _ = project(points, viewmat, crop_intrinsics(K, (100.0, 50.0, 200.0), 64))
    torch.testing.assert_close(square, (full - torch.tensor([100.0, 50.0])) * 64 / 200, atol=1e-3, rtol=1e-4)
    box, _ = project(points, viewmat, crop_intrinsics(K, (10.0, 20.0, 210.0, 120.0), (50, 40)))
    torch.testing.assert_close(box, (full - torch.tensor([10.0, 20.0])) * torch.tensor([0.25, 0.4]), atol=1e-3, rtol=1e-4)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="up vector"):
        look_at((0.0, 1.0, 0.0), (0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="3 or 4 numbers"):
        crop_intrinsics(torch.eye(3), (1.0, 2.0), 4)
