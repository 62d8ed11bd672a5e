"""Skin that changes with the expression, on textures and in pictures."""

from dataclasses import replace

import numpy as np
import pytest

from avtool.head import load_head_model
from avtool.synth.base import SynthHead, Texels
from avtool.synth.folds import PLACES, MovingSkin
from avtool.synth.look import Look, sample_look

NAMES = load_head_model().expression_names
RESOLUTION = 256


@pytest.fixture(scope="module")
def texels() -> Texels:
    return SynthHead(load_head_model()).texels(RESOLUTION)


@pytest.fixture(scope="module")
def look() -> Look:
    return replace(sample_look(np.random.default_rng(3)), wrinkles=1.0)


def weights(**values: float) -> np.ndarray:
    out = np.zeros(len(NAMES), np.float32)
    for name, value in values.items():
        out[NAMES.index(name)] = value
    return out


def change(texels: Texels, look: Look, **values: float) -> np.ndarray:
    """How much darker (N,) each texel of gray skin becomes, in steps of 8 bits."""
    gray = np.full((RESOLUTION, RESOLUTION, 4), 160, np.uint8)
    moved = MovingSkin(texels, look, NAMES)(gray, weights(**values))
    assert (moved[..., 3] == 160).all()
    return 160.0 - moved.reshape(-1, 4)[texels.index, 1]


def test_every_driver_is_a_shape_of_the_head_model() -> None:
    for place in PLACES:
        for name in place.drivers:
            assert name in NAMES or {f"{name}Left", f"{name}Right"} <= set(NAMES), name


def test_a_face_at_rest_keeps_its_texture(texels: Texels, look: Look) -> None:
    texture = np.random.default_rng(0).integers(0, 255, (RESOLUTION, RESOLUTION, 4), np.uint8)
    skin = MovingSkin(texels, look, NAMES)
    assert np.array_equal(skin(texture, weights()), texture)
    before = texture.copy()
    assert not np.array_equal(skin(texture, weights(browInnerUp=1.0)), before)
    assert np.array_equal(texture, before)  # it is shared by all moments


def test_folds_are_where_skin_is_pushed_together(texels: Texels, look: Look) -> None:
    raised = change(texels, look, browInnerUp=1.0)
    height = texels.points[:, 1]
    assert raised.max() > 25 and np.abs(raised[height < 15]).max() <= 1
    squint = change(texels, look, eyeSquintLeft=1.0)
    left, right = texels.points[:, 0] > 5, texels.points[:, 0] < -5
    assert squint[left].max() > 20 and np.abs(squint[right]).max() <= 1
    mirrored = change(texels, look, eyeSquintRight=1.0)
    assert mirrored[right].max() > 20 and np.abs(mirrored[left]).max() <= 1


def test_folds_deepen_with_weight_and_age(texels: Texels, look: Look) -> None:
    darkest = [change(texels, look, noseSneerLeft=w, noseSneerRight=w).max() for w in (0.25, 0.5, 1.0)]
    assert darkest[0] < darkest[1] < darkest[2]
    young = replace(look, wrinkles=0.0)
    assert change(texels, young, browDownLeft=1.0).max() < 0.6 * change(texels, look, browDownLeft=1.0).max()


def test_pressed_lips_are_paler_and_smiling_cheeks_redder(texels: Texels, look: Look) -> None:
    gray = np.full((RESOLUTION, RESOLUTION, 4), 160, np.uint8)
    skin = MovingSkin(texels, look, NAMES)
    lips = texels.masks["lips"] > 0.9
    pressed = skin(gray, weights(mouthPressLeft=1.0, mouthPressRight=1.0)).reshape(-1, 4)[texels.index][lips].astype(int)
    assert pressed[:, 1].mean() > 165 and pressed[:, 1].mean() > pressed[:, 0].mean()
    cheek = np.linalg.norm(texels.points[:, :2] - [35, -32], axis=1) < 4
    flushed = skin(gray, weights(mouthSmileLeft=1.0)).reshape(-1, 4)[texels.index][cheek & (texels.points[:, 2] > 0)].astype(int)
    assert flushed[:, 0].mean() > flushed[:, 1].mean() + 5
