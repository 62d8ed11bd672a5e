"""A known person: shape, camera and shoulders of an earlier track hold for new pictures."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avtool.artifacts.track import Frame, Track
from avtool.capture.images import load_image
from avtool.head import HeadModel, HeadParams, load_head_model
from avtool.tracking import save_track, track_photos
from avtool.tracking.bust import POINT_STRIDE, BustSolver
from avtool.tracking.person import KnownPerson, known_person


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model()


def posed_frame(head: HeadModel, rng: np.random.Generator) -> Frame:
    viewmat = np.eye(4)
    viewmat[:3, :3] = np.diag((1.0, -1.0, -1.0))
    viewmat[:3, 3] = (0.02, -0.03, 0.8)
    return Frame(
        image=None, frame_idx=None, width=320, height=240, K=np.array([[400.0, 0, 160], [0, 400.0, 120], [0, 0, 1]]), viewmat=viewmat,
        expression=np.zeros(head.num_expression), neck=rng.normal(0, 0.2, 3), head=rng.normal(0, 0.2, 3), jaw=np.zeros(3),
        eyes=np.zeros((2, 3)), landmarks=rng.uniform(80, 200, (478, 2)), matte=None, crop=(0.0, 0.0, 240.0), residual=0.01,
    )  # fmt: skip


def test_the_reference_is_the_pose_of_the_track(head: HeadModel) -> None:
    """The torso as the bust solver carries it lies where the head model puts it under the track's joints and camera."""
    rng = np.random.default_rng(3)
    identity = rng.normal(0, 1, head.num_identity) * 0.5
    frame = posed_frame(head, rng)
    solver = BustSolver(head, identity)
    view, pose = KnownPerson(identity, frame=frame, gray=np.zeros((128, 128), np.float32)).reference(solver)
    points = solver.camera_points(pose, view.rotation, view.translation)

    still = HeadParams.zeros(head)
    params = replace(
        still, identity=torch.tensor(identity, dtype=torch.float32), neck=torch.tensor(frame.neck, dtype=torch.float32),
        head=torch.tensor(frame.head, dtype=torch.float32),
    )  # fmt: skip
    mask = head.region_mask("torso", "neck")
    centers = head(params).vertices[head.faces[mask][::POINT_STRIDE]].mean(1).double().numpy()
    expected = centers @ frame.viewmat[:3, :3].T + frame.viewmat[:3, 3]
    # Skinning by the mean weight of a triangle against the mean of skinned corners: a fraction of a millimetre.
    assert np.abs(points - expected).max() < 1.5e-3 and np.median(np.abs(points - expected)) < 1e-4


def test_a_picture_that_is_gone_is_a_warning(head: HeadModel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frame = replace(posed_frame(head, np.random.default_rng(0)), image="gone.png")
    track = Track(head_model=head.model_id, identity=np.zeros(head.num_identity), frames=[frame], base=tmp_path)
    with caplog.at_level(logging.WARNING, logger="avtool"):
        person = known_person(track)
    assert "gone.png" in caplog.text and person.focals == {(320, 240): 400.0}
    assert person.reference(BustSolver(head, person.identity)) is None


def test_the_same_photo_again_is_the_same_person(head: HeadModel, astronaut: Path, tmp_path: Path) -> None:
    """Tracked with --person, a photo gets back shape, camera and shoulders, whatever would be assumed of it alone."""
    save_track(track_photos([astronaut], head, photometric=False), tmp_path / "person.json")
    person = Track.load(tmp_path / "person.json")
    # Shoulders that nothing would assume: only the picture can tell.
    turned = replace(person.frames[0], neck=np.asarray(person.frames[0].neck) + (0.0, 0.06, 0.0))
    person = replace(person, frames=[turned])
    again = track_photos([astronaut], head, photometric=False, identity=person)
    assert np.array_equal(np.asarray(again.identity), np.asarray(person.identity))
    frame = again.frames[0]
    assert np.allclose(frame.K, turned.K)
    assert load_image(astronaut).pixels.shape[:2] == (frame.height, frame.width)
    alone = track_photos([astronaut], head, photometric=False).frames[0]
    distance = [np.abs(np.asarray(f.neck) - np.asarray(turned.neck)).max() for f in (frame, alone)]
    assert distance[0] < 0.03 < 0.05 < distance[1]
