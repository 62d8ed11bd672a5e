"""Smoothing of a tracked clip, and the smoothed bust: less jitter, no lag, nothing across gaps."""

from __future__ import annotations

import numpy as np
import pytest

from avtool.head import load_head_model
from avtool.tracking import photos, so3
from avtool.tracking.bust import BustPose, BustSolver, BustView, align, assumed_pose, make_reference, with_shared_neck
from avtool.tracking.fit_state import Fit
from avtool.tracking.landmark_model import build_landmark_model
from avtool.tracking.observe import Observed
from avtool.tracking.smoothing import polynomial, smooth_pose, smooth_rest

FPS = 25.0


def jitter(rotations: np.ndarray) -> float:
    steps = so3.log(rotations[1:] @ np.swapaxes(rotations[:-1], -1, -2))
    return float(np.linalg.norm(np.diff(steps, axis=0), axis=1).mean())


def test_smoothed_poses_jitter_less_and_do_not_lag() -> None:
    time = np.arange(60) / FPS
    true = so3.FRONTAL @ so3.exp(np.stack([0 * time, 0.4 * np.sin(2 * np.pi * 0.7 * time), 0 * time], -1))
    noise = np.random.default_rng(0).normal(0, np.radians(0.5), (60, 3))
    noisy = so3.exp(noise) @ true
    smooth = smooth_pose(noisy, [slice(0, 60)], FPS)
    assert jitter(smooth) < 0.6 * jitter(noisy)

    def error(shift: int) -> float:
        a, b = smooth[5 + shift : 55 + shift], true[5:55]
        return float(np.linalg.norm(so3.log(a @ np.swapaxes(b, -1, -2)), axis=1).mean())

    assert error(0) < np.linalg.norm(noise, axis=1).mean()
    assert error(0) < min(error(-1), error(1))


def test_a_gap_is_not_smoothed_over() -> None:
    rotations = np.stack([so3.FRONTAL] * 20)
    rotations[10:] = so3.FRONTAL @ so3.exp(np.array([0, 0.8, 0]))
    kept = smooth_pose(rotations, [slice(0, 10), slice(10, 20)], FPS)
    np.testing.assert_allclose(kept, rotations, atol=1e-9)
    assert np.abs(smooth_pose(rotations, [slice(0, 20)], FPS) - rotations).max() > 0.01


def test_polynomials_and_short_runs_pass_unchanged() -> None:
    parabola = (np.arange(30.0)[:, None] / 10) ** 2
    np.testing.assert_allclose(polynomial(parabola, 0.3, FPS), parabola, atol=1e-9)
    np.testing.assert_array_equal(polynomial(parabola[:3], 0.3, FPS), parabola[:3])


def test_blinks_and_the_place_in_the_image_survive() -> None:
    head = load_head_model()
    model = build_landmark_model(head)
    names = [head.expression_names[i] for i in model.expression_idx]
    count = 20
    expression = np.zeros((count, len(names)))
    expression[10] = 1.0
    translations = np.tile([0.05, -0.02, 0.8], (count, 1)) * np.random.default_rng(0).normal(1, 0.02, (count, 1))
    fit = Fit(np.zeros(3), np.ones(1), np.stack([so3.FRONTAL] * count), translations, expression, np.zeros((count, 2, 2)), np.zeros(count))
    smooth = smooth_rest(fit, model, list(head.expression_names), [slice(0, count)], FPS)
    np.testing.assert_array_equal(smooth.expression[:, names.index("eyeBlinkLeft")], expression[:, names.index("eyeBlinkLeft")])
    assert smooth.expression[10, names.index("browInnerUp")] < 0.9
    np.testing.assert_allclose(smooth.translations[:, :2] / smooth.translations[:, 2:], fit.translations[:, :2] / fit.translations[:, 2:])
    assert np.diff(smooth.translations[:, 2]).std() < 0.8 * np.diff(translations[:, 2]).std()


@pytest.fixture(scope="module")
def solver() -> BustSolver:
    return BustSolver(load_head_model(), np.zeros(100))


def test_the_viewmat_leaves_the_head_where_it_is(solver: BustSolver) -> None:
    rotation, translation = so3.FRONTAL @ so3.exp(np.array([0.1, 0.4, 0.0])), np.array([0.01, 0.02, 0.9])
    for bust in (so3.FRONTAL, so3.FRONTAL @ so3.exp(np.array([0.1, -0.2, 0.1]))):
        pose = with_shared_neck(bust, rotation)
        viewmat = solver.viewmat(pose, rotation, translation)
        joint = pose.neck @ (solver.head_joint - solver.neck_joint) + solver.neck_joint
        np.testing.assert_allclose(viewmat[:3, :3] @ joint + viewmat[:3, 3], rotation @ solver.head_joint + translation, atol=1e-9)


def test_alignment_finds_how_the_bust_has_turned(solver: BustSolver) -> None:
    """A shirt painted onto the torso, in two poses of the bust under one head."""
    rotation, translation = so3.FRONTAL.copy(), np.array([0.0, 0.05, 0.9])
    shirt = np.sin(55 * solver.points[:, 0]) + np.cos(45 * solver.points[:, 1] + 8 * solver.points[:, 0])

    def view(pose: BustPose) -> BustView:
        points = solver.camera_points(pose, rotation, translation)
        image, weight = np.zeros((128, 128)), np.zeros((128, 128))
        blank = BustView(image, (150.0, 230.0, 330.0), 700.0, np.array([320.0, 240.0]), rotation, translation)
        shown = solver.facing(pose, points)
        pixels, values = blank.pixels(points)[shown], shirt[shown]
        grid = np.stack(np.meshgrid(np.arange(128), np.arange(128)), -1).reshape(-1, 2)
        for start in range(0, len(grid), 2048):
            rows = slice(start, start + 2048)
            near = np.exp(-0.5 * ((grid[rows, None] - pixels[None]) ** 2).sum(-1) / 3.0**2)
            image.reshape(-1)[rows], weight.reshape(-1)[rows] = near @ values, near.sum(1)
        return BustView(0.5 + 0.2 * image / (weight + 1e-2), blank.square, blank.focal, blank.center, rotation, translation)

    still = with_shared_neck(so3.FRONTAL, rotation)
    turned = with_shared_neck(so3.FRONTAL @ so3.exp(np.array([0.0, np.radians(6.0), 0.0])), rotation)
    reference = make_reference(solver, view(still), still)
    found, correlation = align(solver, reference, view(turned), [still])
    off = np.degrees(np.linalg.norm(so3.log(found.bust @ turned.bust.T)))
    assert correlation > 0.8
    assert off < 3.0


@pytest.mark.parametrize(("degrees", "correlation", "taken"), [(5.0, 1.0, True), (25.0, 1.0, False), (5.0, 0.2, False)])
def test_a_bust_that_slid_along_plain_clothes_is_not_believed(
    solver: BustSolver, monkeypatch: pytest.MonkeyPatch, degrees: float, correlation: float, taken: bool
) -> None:
    rotations = so3.FRONTAL @ so3.exp(np.array([[0.0, 0.0, 0.0], [0.0, 0.3, 0.0]]))
    fit = Fit(np.zeros(3), np.array([700.0]), rotations, np.tile([0.0, 0.0, 0.9], (2, 1)), np.zeros((2, 1)), np.zeros((2, 2, 2)), np.zeros(2))
    seen = Observed(np.zeros((478, 2)), (0, 0, 1), None, np.zeros((128, 128), np.uint8), (150.0, 230.0, 330.0), (640, 480), None)

    def slide(solver: BustSolver, reference: object, view: BustView, starts: list[BustPose]) -> tuple[BustPose, float]:
        return BustPose(so3.exp(np.array([np.radians(degrees), 0, 0])) @ starts[0].bust, starts[0].neck), correlation

    monkeypatch.setattr(photos, "align", slide)
    poses = photos.pose_busts(solver, [seen, seen], fit, [0, 0])
    turn = np.degrees(np.linalg.norm(so3.log(poses[1].bust @ poses[0].bust.T)))
    expected = degrees if taken else np.degrees(np.linalg.norm(so3.log(assumed_pose(rotations[1]).bust @ poses[0].bust.T)))
    assert turn == pytest.approx(expected, abs=1e-6)
