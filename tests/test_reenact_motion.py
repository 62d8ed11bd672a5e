"""Driver motion: filters keep blinks and remove jitter, transfer keeps closures, held busts turn by their joints."""

from __future__ import annotations

import math

import pytest
import torch

from avtool.prior import motion as m
from avtool.rotations import axis_angle_to_matrix, matrix_to_axis_angle

NAMES = ("jawOpen", "eyeBlinkLeft", "eyeLookInLeft", "mouthSmileLeft")


def make_motion(frames: int = 75, fps: float | None = 25.0) -> m.Motion:
    """A turn of 1 Hz, a resting smile of 0.2, and one blink of four frames."""
    time = torch.arange(frames) / 25
    turn = torch.zeros(frames, 3)
    turn[:, 1] = 0.2 * torch.sin(2 * math.pi * time)
    viewmats = torch.eye(4).repeat(frames, 1, 1)
    viewmats[:, :3, :3] = torch.diag(torch.tensor([1.0, -1.0, -1.0])) @ axis_angle_to_matrix(turn)
    viewmats[:, 2, 3] = 0.8
    expression = torch.zeros(frames, 4)
    expression[:, 3] = 0.2
    expression[:, 2] = 0.4
    expression[30:34, 1] = torch.tensor([0.6, 1.0, 0.9, 0.5])[: max(frames - 30, 0)]
    Ks = torch.tensor([[300.0, 0, 128], [0, 300, 128], [0, 0, 1]]).repeat(frames, 1, 1)
    zero = torch.zeros(frames, 3)
    return m.Motion(expression, zero.clone(), zero.clone(), zero.clone(), torch.zeros(frames, 2, 3), viewmats, Ks, fps)


def test_smoothing_removes_jitter_and_keeps_the_turn_and_the_blink() -> None:
    clean = make_motion()
    noise = torch.Generator().manual_seed(0)
    jitter = 0.02 * torch.randn(75, 3, generator=noise)
    viewmats = clean.viewmats.clone()
    viewmats[:, :3, :3] = viewmats[:, :3, :3] @ axis_angle_to_matrix(jitter)
    expression = clean.expression + 0.02 * torch.randn(75, 4, generator=noise)
    result = m.smooth(m.replace(clean, viewmats=viewmats, expression=expression))

    def error(motion: m.Motion) -> float:
        difference = clean.viewmats[:, :3, :3].mT @ motion.viewmats[:, :3, :3]
        return float(matrix_to_axis_angle(difference).norm(dim=-1).mean())

    assert error(result) < 0.65 * error(m.replace(clean, viewmats=viewmats))
    assert error(m.smooth(clean)) < 0.004
    assert result.expression[31, 1] > 0.9
    assert result.expression[:, 3].std() < 0.8 * expression[:, 3].std()
    rotation = result.viewmats[:, :3, :3]
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-5)


def test_photos_and_short_clips_are_not_filtered() -> None:
    photos = make_motion(fps=None)
    assert m.smooth(photos) is photos
    short = make_motion(4)
    assert m.smooth(short) is short


def test_relative_transfer_drops_the_resting_smile_and_keeps_the_blink_closed_and_the_gaze() -> None:
    result = m.relative_expression(make_motion(), NAMES)
    assert result.expression[:, 3].abs().max() < 1e-6
    assert result.expression[31, 1] == pytest.approx(1.0)
    assert torch.allclose(result.expression[:, 2], torch.full((75,), 0.4))
    half_shut = make_motion()
    half_shut.expression[:, 1] = half_shut.expression[:, 1].clamp(min=0.25)
    result = m.relative_expression(half_shut, NAMES)
    assert result.expression[0, 1] == pytest.approx(0.0) and result.expression[31, 1] == pytest.approx(1.0)
    few = make_motion(3)
    assert m.relative_expression(few, NAMES) is few


def test_relative_transfer_of_signed_components_rests_at_the_calm_frames() -> None:
    motion = make_motion()
    motion.expression[:, 0] = -0.7
    motion.expression[10:15] = 3.0
    result = m.relative_expression(motion, tuple("abcd"))
    assert result.expression[0, 0].abs() < 1e-6 and result.expression[12, 0] == pytest.approx(3.7)


@pytest.mark.parametrize(("fps", "count"), [(50.0, 150), (12.5, 38), (25.0, 75)])
def test_resampling_keeps_duration_and_course(fps: float, count: int) -> None:
    clean = make_motion()
    result = m.resample(clean, fps)
    assert len(result) == count and result.fps == fps
    at = min(int(20 * fps / 25), count - 1)
    assert torch.allclose(result.viewmats[at], clean.viewmats[20], atol=1e-3)
    rotation = result.viewmats[:, :3, :3]
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(count), atol=1e-5)


def test_a_held_bust_turns_by_its_joints_as_the_driver_does() -> None:
    driver = make_motion()
    camera, K = torch.eye(4), torch.eye(3)
    held = m.hold_bust(driver, camera, K)
    assert (held.viewmats == camera).all() and (held.Ks == K).all()
    joints = axis_angle_to_matrix(held.neck) @ axis_angle_to_matrix(held.head)
    turn = matrix_to_axis_angle(joints)
    assert turn[6, 1] == pytest.approx(0.2 * math.sin(2 * math.pi * 6 / 25), abs=0.01)
    assert turn[:, [0, 2]].abs().max() < 1e-4
    far = m.replace(driver, viewmats=driver.viewmats.clone())
    far.viewmats[5, :3, :3] = far.viewmats[0, :3, :3] @ axis_angle_to_matrix(torch.tensor([0.0, 2.5, 0.0]))
    limited = m.hold_bust(far, camera, K)
    assert (limited.neck[5] + limited.head[5]).norm() == pytest.approx(m.MAX_TURN, abs=1e-3)


def test_orbit_looks_at_the_center_from_a_circle() -> None:
    center = torch.tensor([0.0, 0.1, 0.05])
    result = m.orbit(make_motion(), center, 0.9)
    inside = result.viewmats[:, :3, :3] @ center + result.viewmats[:, :3, 3]
    assert torch.allclose(inside, torch.tensor([0.0, 0.0, 0.9]).expand(75, 3), atol=1e-5)
    assert (result.viewmats[0] - result.viewmats[30]).abs().max() > 0.2
