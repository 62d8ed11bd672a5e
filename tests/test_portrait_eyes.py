"""The eyes of a source lookup: lids that shut, and everything that stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_portrait_mouth import Looked, face
from torch import Tensor

from avtool.head import HeadModel, load_head_model
from avtool.portrait.eyes import CURVES, Lids
from avtool.portrait.lookup import SourceLookup

BLINK = {"eyeBlinkLeft": 0.95, "eyeBlinkRight": 0.95}


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model("anny")


@pytest.fixture(scope="module")
def lids(head: HeadModel) -> Lids:
    found = Lids.of(head)
    assert found is not None
    return found


def curve(head: HeadModel, params, eye: int, which: int) -> Tensor:
    """Landmarks (C, 3) of a curve at rest."""
    rows = {int(k): row for row, k in enumerate(head.landmark_ids)}
    return head.landmarks(head.rest_shape(params)[0])[0, [rows[k] for k in CURVES[eye][which]]]


def column(head: HeadModel, params, eye: int, count: int = 200) -> Tensor:
    """Points (1, count, 3) down the middle of an eye, from above the fold to below the furrow."""
    top, bottom = (curve(head, params, eye, which) for which in (0, 3))
    middle = curve(head, params, eye, 1)[4]
    y = torch.linspace(float(top[:, 1].max()) + 0.01, float(bottom[:, 1].min()) - 0.01, count)
    return torch.stack((middle[0].expand(count), y, middle[2].expand(count)), dim=-1)[None]


@pytest.mark.parametrize("eye", [0, 1])
def test_the_same_face_is_found_where_it_is(head: HeadModel, lids: Lids, eye: int) -> None:
    for shapes in ({}, BLINK):
        params = face(head, 0.6, **shapes)
        points = column(head, params, eye)
        torch.testing.assert_close(lids.places(params, params, points, points), points, atol=1e-5, rtol=0)


@pytest.mark.parametrize("eye", [0, 1])
def test_a_shut_lid_is_skin_of_the_open_one(head: HeadModel, lids: Lids, eye: int) -> None:
    source, shut = face(head, 0.6), face(head, 0.6, **BLINK)
    points = column(head, shut, eye)
    found = lids.places(source, shut, points, SourceLookup(head).in_expression_of(source, points, shut))[0, :, 1]
    upper, lower = (float(curve(head, source, eye, which)[4, 1]) for which in (1, 2))
    assert upper - lower > 0.005, "the source's eye is open"
    assert not bool(((found < upper - 1e-3) & (found > lower + 1e-3)).any()), "no iris on a lid"
    top, bottom = (float(curve(head, shut, eye, which)[3, 1]) for which in (0, 3))
    about = found[(points[0, :, 1] < top - 2e-3) & (points[0, :, 1] > bottom + 2e-3)]
    assert bool((about[1:] <= about[:-1] + 1e-4).all()), "in order, from the fold to the furrow: no speckles"
    lid = (points[0, :, 1] > float(curve(head, shut, eye, 1)[4, 1])) & (points[0, :, 1] < float(curve(head, shut, eye, 0)[3, 1]))
    assert float((found[lid] > upper + 1e-3).float().mean()) > 0.6, "most of it is skin, not lashes"


def test_an_open_eye_stays_where_the_skull_has_it(head: HeadModel, lids: Lids) -> None:
    source, wide = face(head), face(head, browInnerUp=1.0, eyeWideLeft=0.5, eyeWideRight=0.5)
    points = column(head, wide, 0)
    found = lids.places(source, wide, points, points - 0.004)[0, :, 1]
    upper, lower = (float(curve(head, source, 0, which)[4, 1]) for which in (1, 2))
    inside = (points[0, :, 1] < upper - 1e-3) & (points[0, :, 1] > lower + 1e-3)
    assert int(inside.sum()) > 5
    torch.testing.assert_close(found[inside], points[0, inside, 1])


def test_what_is_not_about_the_eyes_is_left_alone(head: HeadModel, lids: Lids) -> None:
    generator = torch.Generator().manual_seed(3)
    points = torch.rand(1, 500, 3, generator=generator) * torch.tensor([0.1, 0.05, 0.1]) + torch.tensor([-0.05, -0.1, 0.05])
    there = points + 0.001
    assert torch.equal(lids.places(face(head), face(head, **BLINK), points, there), there), "mouth and chin"
    eyes = column(head, face(head), 0) - torch.tensor([0.0, 0.0, 0.1])
    assert torch.equal(lids.places(face(head), face(head, **BLINK), eyes, eyes), eyes), "and the back of the head"
    assert not list(lids.parameters()) and not lids.state_dict()


def test_a_head_without_the_curves_is_searched_as_before(head: HeadModel) -> None:
    bare = replace(head, landmark_ids=torch.where(head.landmark_ids == 247, 9999, head.landmark_ids))
    assert Lids.of(bare) is None
    plain, known = Looked(bare, face(head), face(head, **BLINK)), Looked(head, face(head), face(head, **BLINK))
    changed = (plain.found - known.found).abs().amax(0) > 1e-4
    assert 0.0 < float(changed.float().mean()) < 0.2, "only the eyes differ"
