"""The landmark fit: its derivatives, its whitening, and whether it finds what made the landmarks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from avtool.artifacts.track import Track
from avtool.cameras import project
from avtool.head import HeadModel, load_head_model
from avtool.tracking import landmark_fit, so3, staged
from avtool.tracking.affine_start import initial_fit
from avtool.tracking.bust import BustSolver, assumed_pose
from avtool.tracking.fit_state import Fit, FitOptions, Observation
from avtool.tracking.landmark_fit import fit_landmarks, landmark_information
from avtool.tracking.noise import JITTER_MM, factorize, independent
from avtool.tracking.observe import Observed
from avtool.tracking.result import make_frame
from avtool.tracking.staged import Camera, LandmarkFitter, group_cameras

FOCAL, SIZE = 900.0, (640, 480)
CENTER = np.array(SIZE) / 2.0


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model()


@pytest.fixture(scope="module")
def fitter(head: HeadModel) -> LandmarkFitter:
    return LandmarkFitter.build(head)


def made_up(fitter: LandmarkFitter, count: int, seed: int = 0) -> tuple[Fit, list[Observation]]:
    """A person in some poses, and exact landmarks of them."""
    rng, model = np.random.default_rng(seed), fitter.model
    num_identity, num_expression = model.identity_basis.shape[-1], model.expression_basis.shape[-1]
    turns = rng.uniform(-0.35, 0.35, (count, 3)) * (1.0, 1.0, 0.4)
    truth = Fit(
        identity=0.7 * rng.standard_normal(num_identity),
        focals=np.array([FOCAL]),
        rotations=so3.FRONTAL @ so3.exp(turns),
        translations=np.stack([rng.uniform(-0.03, 0.03, count), rng.uniform(-0.03, 0.03, count), np.full(count, 0.7)], -1),
        expression=rng.uniform(0, 0.25, (count, num_expression)) * (rng.random((count, num_expression)) < 0.2),
        gaze=np.repeat(rng.uniform(-0.15, 0.15, (count, 1, 2)), 2, 1),
        jaw=np.zeros(count),
    )
    blank = [Observation(np.zeros((478, 2)), CENTER) for _ in range(count)]
    solver = landmark_fit._Solver(model, fitter.independent, blank, truth.focals, FitOptions())
    observations = []
    for k in range(count):
        points = np.tile(CENTER, (478, 1))
        points[model.landmark_ids] = solver.project(truth, k)[0]
        observations.append(Observation(points, CENTER))
    return truth, observations


def angle(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.linalg.norm(so3.log(a @ b.T))))


def test_the_jacobian_agrees_with_finite_differences(fitter: LandmarkFitter, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, observations = made_up(fitter, 1)
    state = replace(truth, expression=truth.expression + 0.1, gaze=np.array([[[0.1, -0.2], [0.05, 0.15]]]))
    noise = independent(len(fitter.model.landmark_ids))
    solver = landmark_fit._Solver(fitter.model, noise, observations, state.focals, FitOptions())

    def in_pixels(state, k, camera, points, pixels):
        # The whitening's own dependence on the state is left out of the Jacobian on purpose.
        return np.tile(np.eye(2), (len(points), 1, 1)), pixels - solver.targets[k]

    monkeypatch.setattr(solver, "whitening", in_pixels)
    _, shared, own = solver.jacobian(state, 0)

    def moved(column: str, index: int, step: float) -> np.ndarray:
        if column == "identity":
            changed = replace(state, identity=state.identity + step * np.eye(len(state.identity))[index])
        elif column == "focal":
            changed = replace(state, focals=state.focals * np.exp(step))
        elif column == "turn":
            changed = replace(state, rotations=so3.exp(step * np.eye(3)[index : index + 1]) @ state.rotations)
        elif column == "shift":
            changed = replace(state, translations=state.translations + step * np.eye(3)[index])
        elif column == "gaze":
            changed = replace(state, gaze=state.gaze + step * np.eye(4)[index].reshape(1, 2, 2))
        else:
            changed = replace(state, expression=state.expression + step * np.eye(state.expression.shape[1])[index])
        return solver.residual(changed, 0)

    places = [(shared, 0, "identity", 0), (shared, 41, "identity", 41), (shared, -1, "focal", 0)]
    places += [(own, i, "turn", i) for i in range(3)] + [(own, 3 + i, "shift", i) for i in range(3)]
    places += [(own, 6 + i, "gaze", i) for i in range(4)] + [(own, solver.POSE + i, "expression", i) for i in (0, 17)]
    for matrix, column, name, index in places:
        numeric = (moved(name, index, 1e-5) - moved(name, index, -1e-5)) / 2e-5
        np.testing.assert_allclose(matrix[:, column], numeric, atol=1e-4 * np.abs(numeric).max(), err_msg=f"{name} {index}")


def test_the_reduced_model_and_the_track_agree_with_the_head_model(head: HeadModel, fitter: LandmarkFitter) -> None:
    """Through make_frame, BustSolver and HeadModel the landmarks fall where the fit has them."""
    truth, observations = made_up(fitter, 2, seed=3)
    full = fitter.model.full_identity(truth.identity)
    solver = BustSolver(head, full)
    seen = Observed(observations[0].landmarks, (0.0, 0.0, 480.0), None, np.zeros((2, 2), np.uint8), (0, 0, 1), SIZE, None)
    truth = replace(truth, errors=np.zeros(2))
    poses = [assumed_pose(rotation) for rotation in truth.rotations]
    frames = [make_frame(fitter.model, seen, truth, k, 0, solver, poses[k], frame_idx=k) for k in range(2)]
    track = Track(head_model=head.model_id, identity=full, frames=frames, video="none.mp4", fps=25.0)
    with torch.no_grad():
        marks, _ = project(head.landmarks(head(track.params()).vertices), track.viewmats(), track.Ks())
    for k in range(2):
        wanted = observations[k].landmarks[fitter.model.landmark_ids]
        # Landmarks at the edge of lids and jaw hang a little on eyes and neck, which the reduced model leaves out.
        assert np.linalg.norm(marks[k].numpy() - wanted, axis=1).mean() < 0.2


@pytest.mark.parametrize("known", [True, False])
def test_the_fit_finds_the_person_that_made_the_landmarks(fitter: LandmarkFitter, known: bool) -> None:
    truth, observations = made_up(fitter, 3, seed=1)
    noise = independent(len(fitter.model.landmark_ids), 0.02)
    prior = np.array([FOCAL if known else 1.15 * FOCAL])
    fit = fit_landmarks(fitter.model, noise, observations, prior, FitOptions(fix_focal=known))
    assert fit.errors.max() < 0.004
    assert max(angle(a, b) for a, b in zip(fit.rotations, truth.rotations)) < 1.5
    assert (fit.expression >= 0).all() and (fit.expression <= 1).all()
    if known:
        assert fit.focals[0] == FOCAL
        # Up to size, which one camera cannot see.
        made = fitter.model.template + fitter.model.identity_basis @ truth.identity
        found = fitter.model.template + fitter.model.identity_basis @ fit.identity
        error = np.linalg.norm((found - found.mean(0)) / found.std() - (made - made.mean(0)) / made.std(), axis=1).mean()
        mean = fitter.model.template
        naive = np.linalg.norm((mean - mean.mean(0)) / mean.std() - (made - made.mean(0)) / made.std(), axis=1).mean()
        assert error < 0.5 * naive


def test_whitening_makes_the_covariance_the_identity() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((8, 8))
    covariance = mixing @ mixing.T
    noise = factorize(np.zeros((4, 2)), covariance, num_modes=7)
    whiten = noise.whiten(np.eye(8))
    np.testing.assert_allclose(whiten @ (covariance + JITTER_MM**2 * np.eye(8)) @ whiten.T, np.eye(8), atol=1e-9)
    alone = factorize(np.zeros((4, 2)), covariance, correlation=0.0, num_modes=7).whiten(np.eye(8))
    np.testing.assert_allclose(alone, np.diag((np.diag(covariance) + JITTER_MM**2) ** -0.5), atol=1e-9)


def test_information_is_what_is_left_when_all_else_is_unknown(fitter: LandmarkFitter) -> None:
    truth, observations = made_up(fitter, 2)
    free = landmark_information(fitter.model, fitter.correlated, observations, truth, FitOptions())
    fixed = landmark_information(fitter.model, fitter.correlated, observations, truth, FitOptions(fix_focal=True))
    assert free.shape == (len(truth.identity) + 12,) * 2
    np.testing.assert_allclose(free, free.T, rtol=1e-6, atol=1e-6 * np.abs(free).max())
    scale = np.sqrt(np.diag(fixed))
    # A known focal can only add information; it says much about the distance.
    gained = np.linalg.eigvalsh((fixed - free) / np.outer(scale, scale))
    assert gained.min() > -1e-6 and gained.max() > 1e-3


def test_photos_of_one_camera_share_focal_and_identity(fitter: LandmarkFitter, monkeypatch: pytest.MonkeyPatch) -> None:
    cameras, index = group_cameras([(640, 480), (480, 640), (800, 600), (640, 480)], [None, None, 700.0, 512.0], [None] * 4)
    assert index == [0, 0, 1, 2]
    assert [camera.known for camera in cameras] == [False, True, True]
    assert cameras[0].focal == pytest.approx(1.2 * 640)
    monkeypatch.setattr(staged, "MAX_JOINT", 3)
    _, observations = made_up(fitter, 5)
    joint = fitter.fit_person(observations, [Camera(FOCAL, False)])
    assert joint.indices == [0, 2, 4] and len(joint.laid.focals) == 1
    fit = fitter.complete(observations, joint)
    assert len(fit.errors) == len(observations)
    np.testing.assert_array_equal(fit.identity, joint.laid.identity)
    np.testing.assert_array_equal(fit.rotations[joint.indices], joint.laid.rotations)


def test_a_known_person_keeps_the_identity(fitter: LandmarkFitter) -> None:
    truth, observations = made_up(fitter, 2)
    joint = fitter.fit_person(observations, [Camera(FOCAL, True)], truth.identity)
    np.testing.assert_array_equal(joint.laid.identity, truth.identity)
    assert joint.laid.focals[0] == FOCAL


def test_the_second_stage_lays_the_mesh_closer_and_hardly_turns_it(fitter: LandmarkFitter) -> None:
    _, observations = made_up(fitter, 1)
    rng = np.random.default_rng(0)
    noisy = [replace(o, landmarks=o.landmarks + rng.normal(0, 1.0, (478, 2))) for o in observations]
    start = initial_fit(fitter.model, noisy, np.array([FOCAL]))
    first = fitter.pose_frame(noisy[0], start.identity, np.array([FOCAL]), start)
    second = fitter.lay_frame(noisy[0], first)
    assert second.errors[0] < first.errors[0]
    assert angle(second.rotations[0], first.rotations[0]) < 1.5
