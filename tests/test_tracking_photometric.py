"""The photometric and silhouette stage on pictures rendered from a known head: it finds what landmarks cannot see, and a
result that is no better is not taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from test_tracking_fit import made_up

from avtool.errors import AvtoolError
from avtool.head import HeadModel, load_head_model
from avtool.tracking import refinement, so3
from avtool.tracking.bust import BustPose, assumed_pose
from avtool.tracking.fit_state import Fit, FitOptions, Observation
from avtool.tracking.observe import Observed, encode_matte
from avtool.tracking.photometric import Evidence, PhotometricOptions, Pictures, Refined, Start, _Problem, refine
from avtool.tracking.staged import JointFit, LandmarkFitter
from avtool.tracking.surface import Surface, harmonics, skin_likelihood

CROP = (200.0, 110.0, 300.0)
QUICK = PhotometricOptions(size=64, uv_size=48, steps=25)


@dataclass(frozen=True)
class Case:
    """Two pictures of a head whose bust leans otherwise than `start` has it."""

    head: HeadModel
    fitter: LandmarkFitter
    truth: list[BustPose]
    start: Start
    pictures: Pictures
    evidence: Evidence
    observations: list[Observation]


def render_case(head: HeadModel, fitter: LandmarkFitter) -> Case:
    made, observations = made_up(fitter, 2, seed=5)
    made = replace(made, errors=np.zeros(2))
    identity = fitter.model.full_identity(made.identity)
    assumed = [assumed_pose(rotation) for rotation in made.rotations]
    lean = so3.exp(np.array([0.0, 0.0, np.radians(8.0)]))
    truth = [BustPose(lean @ pose.bust, pose.neck) for pose in assumed]
    blank = Pictures.build(
        np.full((2, 64, 64, 3), 128, np.uint8), np.full((2, 64, 64), 255, np.uint8), np.array([CROP, CROP]), np.full((2, 2), 640.0),
        np.stack([o.landmarks for o in observations]), np.tile([[900.0, 0, 320], [0, 900.0, 240], [0, 0, 1]], (2, 1, 1)),
    )  # fmt: skip
    evidence = Evidence(made.identity, made.rotations, made.translations, 1e3 * np.eye(len(made.identity) + 12))
    painter = _Problem(head, Start(fitter.model, made, truth, identity), blank, evidence, QUICK)
    painter.unknowns["kinds"][:] = torch.tensor([0.75, 0.55, 0.45])
    painter.unknowns["kinds"][-3:] = torch.tensor([0.2, 0.3, 0.6])
    with torch.no_grad():
        colors, alphas, _ = painter.draw(True)
    pictures = replace(blank, images=colors + (1 - alphas) * torch.tensor([0.1, 0.7, 0.2]), mattes=alphas)
    return Case(head, fitter, truth, Start(fitter.model, made, assumed, identity), pictures, evidence, observations)


@pytest.fixture(scope="module")
def case() -> Case:
    head = load_head_model()
    return render_case(head, LandmarkFitter.build(head))


def lean_error(poses: list[BustPose], truth: list[BustPose]) -> float:
    return float(np.degrees(np.mean([np.linalg.norm(so3.log(a.bust @ b.bust.T)) for a, b in zip(poses, truth)])))


def test_the_bust_turns_to_the_picture_and_the_head_stays(case: Case) -> None:
    refined = refine(case.head, case.start, case.pictures, case.evidence, QUICK)
    assert refined.after < 0.7 * refined.before
    assert lean_error(refined.poses, case.truth) < 0.6 * lean_error(case.start.poses, case.truth)
    turns = so3.log(refined.rotations @ np.swapaxes(case.start.fit.rotations, -1, -2))
    assert np.degrees(np.linalg.norm(turns, axis=1)).max() < 2.0
    assert refined.spill[1] < refined.spill[0]


def test_a_perfect_start_is_left_about_where_it_is(case: Case) -> None:
    start = replace(case.start, poses=case.truth)
    refined = refine(case.head, start, case.pictures, case.evidence, QUICK)
    assert lean_error(refined.poses, case.truth) < 1.5
    assert np.abs(refined.identity - start.fit.identity).mean() < 0.1


def test_gradients_reach_every_unknown(case: Case) -> None:
    problem = _Problem(case.head, case.start, case.pictures, case.evidence, QUICK)
    for tensor in problem.unknowns.values():
        tensor.requires_grad_(True)
    problem.loss(0)[0].backward()
    for name, tensor in problem.unknowns.items():
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all(), name
        assert tensor.grad.abs().sum() > 0, name


def test_points_restricted_from_the_head_lie_on_its_surface(case: Case) -> None:
    surface = Surface.build(case.head, 48)
    params = case.start.model and _Problem(case.head, case.start, case.pictures, case.evidence, QUICK).posed()[0]
    corners = case.head(params).vertices[:, surface.faces]
    on_mesh = (corners * surface.binding.barycentrics[..., None]).sum(-2)
    assert (surface.place(params) - on_mesh).norm(dim=-1).max() < 1e-3
    assert surface.of_parts(("teeth",)).sum() == 0


def test_light_is_constant_plus_what_depends_on_the_normal() -> None:
    normals = torch.nn.functional.normalize(torch.randn(1, 4000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    basis = harmonics(normals)[0]
    assert (basis[:, 0] == 1).all()
    gram = basis.T @ basis / len(basis)
    assert (gram - torch.diag(gram.diag())).abs().max() < 0.05


def test_skin_is_where_it_looks_like_the_face(case: Case) -> None:
    image = torch.zeros(1, 8, 8, 3)
    image[:, :4], image[:, 4:] = torch.tensor([0.8, 0.6, 0.5]), torch.tensor([0.1, 0.3, 0.9])
    image[:, 2] *= 0.7  # in shadow
    samples = torch.tensor([0.8, 0.6, 0.5]).expand(1, 30, 3)
    likelihood = skin_likelihood(image, samples, torch.ones(1, 30, dtype=torch.bool))[0, ..., 0]
    assert likelihood[:4].min() > 0.7 and likelihood[4:].max() < 0.1
    assert skin_likelihood(image, samples, torch.zeros(1, 30, dtype=torch.bool)).sum() == 0


def joint_of(case: Case, error: float) -> tuple[JointFit, list[Observed]]:
    fit = replace(case.start.fit, errors=np.array([error, error]))
    seen = [
        Observed(o.landmarks, CROP, encode_matte(np.full((64, 64), 255, np.uint8)), np.zeros((2, 2), np.uint8), (0, 0, 1),
                 (640, 480), None, np.full((128, 128, 3), 128, np.uint8))
        for o in case.observations
    ]  # fmt: skip
    return JointFit([0, 1], FitOptions(fix_focal=True), fit, fit), seen


def result_of(fit: Fit, poses: list[BustPose], identity: np.ndarray, after: float) -> Refined:
    return Refined(identity, fit.rotations, fit.translations, poses, 0.1, after, (0.5, 0.6), (0.1, 0.1))


@pytest.mark.parametrize("what", ["worse landmarks", "worse pictures", "nan", "error"])
def test_a_result_that_is_no_better_is_not_taken(case: Case, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    joint, seen = joint_of(case, 0.001 if what == "worse landmarks" else 0.01)
    identity = case.start.fit.identity

    def stage(*args: object) -> Refined:
        if what == "error":
            raise AvtoolError("the loss became nan")
        bent = identity + (30.0 if what == "worse landmarks" else 0.0)
        return result_of(joint.laid, case.truth, bent, {"worse pictures": 0.2, "nan": float("nan")}.get(what, 0.05))

    monkeypatch.setattr(refinement, "refine", stage)
    result = refinement.refine_person(case.head, case.fitter, seen, case.observations, joint, case.start.poses)
    assert result.joint is joint and result.poses is case.start.poses
    assert not result.summary["taken"] and (result.bust_shift == 0).all()


def test_a_better_result_is_taken_with_its_identity_and_its_bust(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    joint, seen = joint_of(case, 0.01)
    joint = replace(joint, laid=replace(joint.laid, identity=np.zeros_like(joint.laid.identity)))
    better = result_of(joint.laid, case.truth, case.start.fit.identity, 0.05)
    monkeypatch.setattr(refinement, "refine", lambda *args: better)
    result = refinement.refine_person(case.head, case.fitter, seen, case.observations, joint, case.start.poses)
    assert result.summary["taken"] and result.summary["landmark_error"][1] <= 1.15 * 0.01
    # Laying the landmarks may bend the shape a little.
    assert np.abs(result.joint.laid.identity - better.identity).mean() < 0.3 * np.abs(better.identity).mean()
    assert lean_error(result.poses, case.truth) == pytest.approx(0.0, abs=1e-6)
    assert np.degrees(np.linalg.norm(result.bust_shift)) == pytest.approx(8.0, abs=0.1)


def test_without_mattes_the_stage_is_left_out(case: Case) -> None:
    joint, seen = joint_of(case, 0.01)
    bare = [replace(one, matte=None, picture=None) for one in seen]
    result = refinement.refine_person(case.head, case.fitter, bare, case.observations, joint, case.start.poses)
    assert result.summary == {"taken": False, "reason": "no mattes"}
