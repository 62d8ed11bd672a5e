"""Glasses and caps: where they sit on a head, what they follow, what they hide."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from avtool.head import load_head_model
from avtool.synth.accessories import CLEARANCE, GLASSES_STAND, LENSES, fit_head, glasses, under_cap, wear
from avtool.synth.base import SynthHead
from avtool.synth.cameras import aim, pose_vertices
from avtool.synth.draw import Scene, draw_mesh, vertex_normals
from avtool.synth.fitting import Fitting
from avtool.synth.hair import head_hair, rigid_rotation
from avtool.synth.identity import sample_identity
from avtool.synth.lighting import sample_lighting
from avtool.synth.look import CAP_SHARE, GLASSES_SHARE, SUNGLASSES_SHARE, Look, sample_look, sample_worn
from avtool.synth.motion import Motion

SIZE = 96


@pytest.fixture(scope="module")
def head() -> SynthHead:
    return SynthHead(load_head_model())


@pytest.fixture(scope="module")
def plain() -> Look:
    return replace(sample_look(np.random.default_rng(0)), glasses="", cap="")


def _motion(head: SynthHead, **weights: float) -> Motion:
    expression = np.array([weights.get(name, 0.0) for name in head.model.expression_names], np.float32)
    return Motion(expression, *np.zeros((3, 3), np.float32), np.zeros((2, 3), np.float32))


def _identity(head: SynthHead, seed: int) -> np.ndarray:
    return sample_identity(head.model, np.random.default_rng(seed))


def _in_millimetres(fitting: Fitting, points: np.ndarray) -> np.ndarray:
    return 1000 * (points - fitting.origin)


def _camera(target: np.ndarray, pitch: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    return aim(0, pitch, 0, 1.0, target), np.array([[4.0 * SIZE, 0, SIZE / 2], [0, 4.0 * SIZE, SIZE / 2], [0, 0, 1]])


def _alpha(fitting: Fitting, meshes: list, pitch: float = 0.0, target: np.ndarray | None = None) -> np.ndarray:
    lighting = sample_lighting(np.random.default_rng(0), 0.0)
    viewmat, K = _camera(fitting.origin if target is None else target, pitch)
    return draw_mesh(meshes, lighting, viewmat, K, (SIZE, SIZE), 1).alpha


def test_shares_and_the_rest_stays() -> None:
    """About as many people wear something as the shares say; drawing it takes nothing from the person's own generator."""
    worn = [sample_worn(seed) for seed in range(3000)]
    wearing = [w for w in worn if "glasses" in w]
    assert abs(len(wearing) / len(worn) - GLASSES_SHARE) < 0.03
    assert abs(np.mean([w["lens_alpha"] > 0.5 for w in wearing]) - SUNGLASSES_SHARE) < 0.06
    assert abs(np.mean(["cap" in w for w in worn]) - CAP_SHARE) < 0.02
    rng, again = np.random.default_rng(4), np.random.default_rng(4)
    look = sample_look(rng)
    assert sample_worn(look.seed) == sample_worn(sample_look(again).seed)
    assert rng.random() == again.random()


@pytest.mark.parametrize("shape", sorted(LENSES))
def test_glasses_cover_the_eyes_and_show_them(head: SynthHead, plain: Look, shape: str) -> None:
    """From the front, glass lies over both eyes, almost clear, inside an opaque rim."""
    fitting = fit_head(head, _identity(head, 1))
    frame, *lenses = glasses(fitting, replace(plain, glasses=shape, glasses_thickness=4.0, lens_alpha=0.06))
    vertices = fitting.points / 1000 + fitting.origin
    glass = _alpha(fitting, [lens.mesh(vertices) for lens in lenses])
    rim = _alpha(fitting, [frame.mesh(vertices)])
    viewmat, K = _camera(fitting.origin)
    camera = (fitting.eyes / 1000 + fitting.origin) @ viewmat[:3, :3].T + viewmat[:3, 3]
    pixels = (camera @ K.T)[:, :2] / camera[:, 2:]
    for x, y in pixels.astype(int):
        assert np.allclose(glass[y - 1 : y + 2, x - 2 : x + 3], 0.06, atol=0.01)
        assert rim[y - 1 : y + 2, x - 2 : x + 3].max() == 0
        assert rim[y, x:].max() == 1 and rim[y:, x].max() == 1 and rim[:y, x].max() == 1


def test_dark_lenses_hide_the_eyes(head: SynthHead, plain: Look) -> None:
    fitting = fit_head(head, _identity(head, 1))
    _, *lenses = glasses(fitting, replace(plain, glasses="square", lens_alpha=0.95, lens_glare=0.0, seed=2))
    glass = _alpha(fitting, [lens.mesh(fitting.points / 1000 + fitting.origin) for lens in lenses])
    assert glass.max() > 0.9


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", sorted(LENSES))
def test_glasses_fit_every_head(head: SynthHead, plain: Look, shape: str, seed: int) -> None:
    """The front stands off the eyes and touches no skin, its rims mirror each other, the arms reach the ears beside the head."""
    fitting = fit_head(head, _identity(head, seed))
    frame, left, right = glasses(fitting, replace(plain, glasses=shape, glasses_thickness=3.0))
    points = _in_millimetres(fitting, frame.points)
    lens = _in_millimetres(fitting, left.points)
    rims = points[: 2 * 8 * 56]
    assert cKDTree(rims * [-1, 1, 1]).query(rims)[0].max() < 1e-6
    mirrored = _in_millimetres(fitting, right.points) * [-1, 1, 1]
    assert cKDTree(mirrored).query(lens)[0].max() < 1e-6
    cornea = fitting.region("eye_l", "eye_r")[:, 2].max()
    over_eye = lens[np.linalg.norm(lens[:, :2] - fitting.eyes[0, :2], axis=1).argmin(), 2]
    assert GLASSES_STAND - 2 < over_eye - cornea < GLASSES_STAND + 10
    skin_idx = np.unique(head.faces[head.region_faces("face", "scalp")])
    skin = fitting.points[skin_idx]
    normals = vertex_normals(fitting.points, head.faces)[skin_idx]
    ear = fitting.region("ear")
    before_ears = points[points[:, 2] > ear[:, 2].max()]
    nearest = cKDTree(skin).query(before_ears)[1]
    outside = ((before_ears - skin[nearest]) * normals[nearest]).sum(1)
    assert outside.min() > -0.6 * CLEARANCE
    assert points[:, 2].min() < ear[ear[:, 1].argmax(), 2]
    assert np.abs(points[points[:, 2] < ear[:, 2].max()][:, 0]).min() > 0.75 * np.abs(ear[:, 0]).min()


def test_glasses_follow_the_skull_and_nothing_else(head: SynthHead, plain: Look) -> None:
    """A turn of the head moves them rigidly by that turn; blinks, brows and the jaw do not move them."""
    identity = _identity(head, 2)
    items = wear(head, identity, replace(plain, glasses="round")).items
    rest = pose_vertices(head.model, identity, _motion(head))
    moved = pose_vertices(head.model, identity, _motion(head, eyeBlinkLeft=1.0, browInnerUp=1.0, browDownLeft=1.0, jawOpen=1.0))
    turned = pose_vertices(head.model, identity, replace(_motion(head), head=np.array([0.1, 0.4, 0.0], np.float32)))
    from avtool.rotations import axis_angle_to_matrix

    wanted = axis_angle_to_matrix(torch.tensor([0.1, 0.4, 0.0])).numpy()
    for item in items:
        still = item.mesh(rest).vertices
        assert np.abs(still - item.points).max() < 1e-5
        assert np.abs(item.mesh(moved).vertices - still).max() < 5e-5
        after = item.mesh(turned).vertices
        assert np.abs(rigid_rotation(still, after) - wanted).max() < 1e-3
        assert np.abs(np.linalg.norm(after - after.mean(0), axis=1) - np.linalg.norm(still - still.mean(0), axis=1)).max() < 1e-6


@pytest.mark.parametrize("kind", ("beanie", "cap"))
def test_caps_cover_the_scalp(head: SynthHead, plain: Look, kind: str) -> None:
    """All skin above the rim lies below the cloth; the rim stays above brows and ears; the matte holds it."""
    identity = _identity(head, 3)
    worn = wear(head, identity, replace(plain, cap=kind))
    fitting, (normal, offset) = worn.fitting, worn.rim
    dome = worn.items[0]
    cloth = _in_millimetres(fitting, dome.points)
    center = np.array([0, 0, fitting.points[fitting.skull, 2].mean()])
    center = center + normal * (offset - center @ normal)
    skin = fitting.region("face", "scalp")
    above = skin[skin @ normal - offset > 4]

    def unit(x: np.ndarray) -> np.ndarray:
        return (x - center) / np.linalg.norm(x - center, axis=1, keepdims=True)

    outer = cloth[2 * 96 :]  # the first two rows turn in under the rim
    nearest = cKDTree(unit(outer)).query(unit(above))[1]
    assert (np.linalg.norm(outer[nearest] - center, axis=1) - np.linalg.norm(above - center, axis=1)).min() > 1.0
    assert (fitting.region("ear") @ normal).max() < offset
    assert cloth[np.abs(cloth[:, 0]) < 20][:, 1][cloth[np.abs(cloth[:, 0]) < 20][:, 2] > 0].min() > fitting.brow + 5
    vertices = fitting.points / 1000 + fitting.origin
    top = _alpha(fitting, [item.mesh(vertices) for item in worn.items], np.radians(80), center / 1000 + fitting.origin)
    assert top[SIZE // 2 - 10 : SIZE // 2 + 10, SIZE // 2 - 10 : SIZE // 2 + 10].min() == 1


def test_no_hair_above_the_rim(head: SynthHead, plain: Look) -> None:
    look = replace(plain, cap="cap", hair_style="afro", hair_length=1.3)
    identity = _identity(head, 3)
    worn = wear(head, identity, look)
    normal, offset = worn.rim
    hair = worn.tuck(head_hair(head, head.texels(128), under_cap(look)))
    assert hair is not None and len(hair.faces) == len(hair.uv_faces) > 0
    vertices = worn.fitting.points / 1000 + worn.fitting.origin
    mesh = hair.mesh(vertices, vertex_normals(vertices, head.faces))
    height = _in_millimetres(worn.fitting, mesh.vertices) @ normal - offset
    root = np.tile(worn.fitting.points[hair.used], (hair.num_shells, 1))
    lifted = np.linalg.norm(_in_millimetres(worn.fitting, mesh.vertices) - root, axis=1)
    shown = np.unique(mesh.faces)
    assert lifted[shown][height[shown] > 0].max() < 3.0  # under the cloth, which lies 4 mm off
    assert lifted[shown].max() > 3.0
    assert worn.tuck(None) is None


def test_nothing_worn_changes_nothing(head: SynthHead, plain: Look) -> None:
    worn = wear(head, _identity(head, 1), plain)
    hair = head_hair(head, head.texels(128), plain)
    assert worn.items == [] and worn.tuck(hair) is hair and under_cap(plain) is plain


def test_glasses_are_drawn_over_the_face(head: SynthHead, plain: Look) -> None:
    """A black frame darkens the picture where its rims are; the matte of a profile reaches as far as the glasses."""
    from avtool.synth.identity import HeadParts, build_person

    parts = HeadParts(head, 256)
    identity, lighting = _identity(head, 1), sample_lighting(np.random.default_rng(0), 0.0)
    look = replace(plain, glasses="square", glasses_thickness=4.0, glasses_color=(0.02, 0.02, 0.02))
    motion = _motion(head)
    vertices = pose_vertices(head.model, identity, motion)
    fitting = fit_head(head, identity)
    shots = []
    for shown in (look, plain):
        person = build_person(parts, identity, shown, lighting)
        scene = Scene(person.meshes(vertices, motion), lighting)
        viewmat, K = _camera(fitting.origin)
        front = scene.draw(viewmat, K, (SIZE, SIZE), 1)
        profile = scene.draw(aim(np.radians(89), 0, 0, 1.0, fitting.origin + [0, 0, 0.03]), K, (SIZE, SIZE), 1)
        shots.append((front.rgb.mean(-1), profile.alpha))
    darker = shots[1][0] - shots[0][0] > 0.15
    assert 150 < darker.sum() < 1500
    assert ((shots[0][1] > 0.9) & (shots[1][1] < 0.1)).sum() > 10
