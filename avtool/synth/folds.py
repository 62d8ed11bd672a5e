"""What skin does when a face moves: folds deepen where it is pushed together, blood leaves where it is pressed.

A moment's expression weights say how far each place moves (as the tension maps of facial rigs do), a person's age how deep its folds
are. It is this that HeadGAP's dynamic appearance has to learn; light and shadow move with the mesh anyway.

Shapes: N texels, C texels that change, G places, E expressions. Points are (N, 3) millimetres in the face frame (see base.py), whose x
points to the person's left.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from avtool.synth.base import Texels, noise, smoothstep
from avtool.synth.look import Look

DEPTH = 0.25  # of the light that a fold at its deepest takes away
YOUTH = 0.45  # depth of a young person's folds, as a share of an old one's
SHADE = np.array([0.85, 1.0, 1.0])  # light in folds is redder, for what scatters below the skin
PALE = np.array([-0.05, -0.16, -0.14])  # pressed skin: less blood, so more green and blue
FLUSH = np.array([0.02, 0.10, 0.09])

Mask = Callable[[np.ndarray, np.ndarray], np.ndarray]  # points of the person's left side (N, 3) with x >= 0, noise (N,) to a strength (N,)


@dataclass(frozen=True)
class Place:
    """Skin that changes: where, how its color does (multiplied by 1 - strength * tint), and by which expressions, summed up to 1."""

    mask: Mask
    tint: np.ndarray
    drivers: dict[str, float]
    sided: bool = True  # by the Left and the Right shape apiece
    lips: bool = False  # on the lips, not around them


def _line(distance: np.ndarray, width: float) -> np.ndarray:
    """A dark line in a shallow valley, with light on the bank of positive distance (N,) mm."""
    t = distance / width
    return np.exp(-(t**2)) - 0.22 * np.exp(-(((t - 2.2) / 1.2) ** 2)) + 0.25 * np.exp(-((t / 3) ** 2))


def _forehead(points: np.ndarray, ragged: np.ndarray, center: bool) -> np.ndarray:
    x, y = points[:, 0], points[:, 1]
    lines = sum(_line(y - level - 2.5 * np.cos(x / 14) - 3.0 * ragged, 1.2) for level in (30.0, 37.5, 45.0, 52.0))
    inner = smoothstep(26, 10, x)
    return lines * (inner if center else (1 - inner) * smoothstep(56, 40, x)) * (points[:, 2] > 0)


def _glabella(points: np.ndarray, ragged: np.ndarray) -> np.ndarray:
    x, y = points[:, 0], points[:, 1]
    return _line(x - 5.5 - 0.08 * (y - 15) - 2.0 * ragged, 1.2) * smoothstep(4, 11, y) * smoothstep(34, 24, y) * smoothstep(16, 10, x)


def _bridge(points: np.ndarray, ragged: np.ndarray) -> np.ndarray:
    x, y = points[:, 0], points[:, 1]
    lines = sum(_line(y - level - 0.7 * x - 2.0 * ragged, 0.9) for level in (-22.0, -17.0, -12.0))
    return lines * smoothstep(17, 11, x) * (points[:, 2] > 12)


def _crow(points: np.ndarray, ragged: np.ndarray) -> np.ndarray:
    across, up = points[:, 0] - 41, points[:, 1] + 0.5
    radius = np.hypot(across, up)
    angle = np.arctan2(up, np.maximum(across, 1e-3)) + 0.25 * ragged
    rays = sum(_line(radius * (angle - at), 0.9) for at in (-0.75, -0.35, 0.05, 0.45))
    return rays * smoothstep(7, 10, radius) * smoothstep(24, 15, radius) * (across > 3)


def _under_eye(points: np.ndarray, ragged: np.ndarray) -> np.ndarray:
    x, y = points[:, 0], points[:, 1]
    bend = -9.5 + 0.011 * (x - 30) ** 2 + 1.5 * ragged
    return (_line(y - bend, 0.9) + 0.7 * _line(y - bend + 4.5, 1.0)) * smoothstep(13, 19, x) * smoothstep(48, 40, x) * (points[:, 2] > 0)


def _nasolabial(points: np.ndarray, ragged: np.ndarray) -> np.ndarray:
    x, y = points[:, 0], points[:, 1]
    wing = 21.5 + 0.40 * np.clip(-41 - y, 0, None) + 1.5 * ragged
    return 1.1 * _line(x - wing, 2.6) * smoothstep(-78, -60, y) * smoothstep(-36, -43, y) * (points[:, 2] > 0)


def _mouth_corner(points: np.ndarray, ragged: np.ndarray) -> np.ndarray:
    x, y = points[:, 0], points[:, 1]
    return 0.6 * _line(x - 30 - 0.02 * (y + 72) ** 2 - 1.5 * ragged, 1.6) * smoothstep(-82, -76, y) * smoothstep(-62, -68, y) * (points[:, 2] > 0)


def _marionette(points: np.ndarray, ragged: np.ndarray) -> np.ndarray:
    x, y = points[:, 0], points[:, 1]
    return 0.8 * _line(x - 27 + 0.15 * (y + 80) - 1.5 * ragged, 1.9) * smoothstep(-100, -86, y) * smoothstep(-72, -78, y) * (points[:, 2] > 0)


def _pursed(points: np.ndarray, ragged: np.ndarray) -> np.ndarray:
    x, y = points[:, 0], points[:, 1] + 72
    radius, angle = np.hypot(x, 1.35 * y), np.arctan2(x, y)
    rays = np.clip(np.cos(15 * angle + 3 * ragged), -0.3, 1)
    return 0.6 * rays * smoothstep(12, 16, radius) * smoothstep(30, 22, radius) * (points[:, 2] > 5)


def _chin(points: np.ndarray, ragged: np.ndarray) -> np.ndarray:
    x, y = points[:, 0], points[:, 1]
    pebbles = smoothstep(0.02, 0.16, ragged) - 0.3
    ball = pebbles * np.exp(-((x / 15) ** 2) - ((y + 101) / 9) ** 2)
    return 0.8 * ball + 0.7 * _line(y + 91 + 0.012 * x**2 - 2 * ragged, 2.0) * smoothstep(18, 6, x)


def _blob(x: float, y: float, width: float, height: float) -> Mask:
    return lambda points, _: np.exp(-(((points[:, 0] - x) / width) ** 2) - ((points[:, 1] - y) / height) ** 2) * (points[:, 2] > 0)


FOLD = DEPTH * SHADE
PLACES = (
    Place(lambda p, n: _forehead(p, n, True), FOLD, {"browInnerUp": 1.0, "browOuterUpLeft": 0.25, "browOuterUpRight": 0.25}, sided=False),
    Place(lambda p, n: _forehead(p, n, False), FOLD, {"browOuterUp": 1.0, "browInnerUp": 0.35}),
    Place(_glabella, FOLD, {"browDown": 1.0, "noseSneer": 0.3}),
    Place(_bridge, FOLD, {"noseSneer": 1.0, "browDown": 0.2}),
    Place(_crow, FOLD, {"eyeSquint": 0.9, "cheekSquint": 0.6, "mouthSmile": 0.35, "eyeBlink": 0.15}),
    Place(_under_eye, FOLD, {"cheekSquint": 0.7, "eyeSquint": 0.7, "mouthSmile": 0.3}),
    Place(_nasolabial, FOLD, {"mouthSmile": 0.9, "noseSneer": 0.8, "mouthUpperUp": 0.5, "cheekSquint": 0.3, "mouthStretch": 0.3}),
    Place(_mouth_corner, FOLD, {"mouthDimple": 1.0, "mouthSmile": 0.6, "mouthStretch": 0.5}),
    Place(_marionette, FOLD, {"mouthFrown": 1.0, "mouthPress": 0.4}),
    Place(_pursed, FOLD, {"mouthPucker": 1.0, "mouthFunnel": 0.3, "mouthPress": 0.2}, sided=False),
    Place(_chin, FOLD, {"mouthShrugLower": 1.0, "mouthFrown": 0.25}, sided=False),
    Place(_blob(0, 40, 45, 16), 0.5 * PALE, {"browInnerUp": 0.6, "browOuterUp": 0.4}),
    Place(_blob(35, -32, 15, 12), FLUSH, {"mouthSmile": 0.8, "cheekSquint": 0.5}),
    Place(_blob(0, -72, 40, 30), PALE, {"mouthPress": 0.8, "mouthRollLower": 0.4, "mouthRollUpper": 0.4}, lips=True),
    Place(_blob(0, -72, 40, 30), 0.6 * PALE, {"mouthStretch": 0.6, "mouthSmile": 0.5}, lips=True),
)


class MovingSkin:
    """A person's skin texture at any moment.

    Attributes:
        index: (C,) texels of the flat texture that change.
        change: (C, G) strength of every place's sides. tints: (G, 3). drivers: (G, E), by which expressions become strengths.
    """

    def __init__(self, texels: Texels, look: Look, names: tuple[str, ...]):
        columns, tints, drivers = [], [], []
        ragged = noise(texels.points * 0.16 + look.seed % 743, 2) - 0.5
        lips = smoothstep(0.2, 0.75, texels.masks["lips"])
        covered = 1 - sum(texels.masks[name] for name in ("mouth", "socket", "tongue", "ear"))
        mirrored = np.stack([np.abs(texels.points[:, 0]), texels.points[:, 1], texels.points[:, 2]], -1)
        age = YOUTH + (1 - YOUTH) * look.wrinkles
        left = smoothstep(-4, 4, texels.points[:, 0])
        for place in PLACES:
            strength = place.mask(mirrored, ragged) * (lips if place.lips else 1 - lips) * np.clip(covered, 0, 1)
            strength *= age if place.tint is FOLD else 1.0
            for side, share in (("Left", left), ("Right", 1 - left)) if place.sided else (("", 1.0),):
                columns.append((strength * share).astype(np.float32))
                tints.append(place.tint)
                drivers.append(_row(place.drivers, side, names))
        change = np.stack(columns, -1)
        used = np.flatnonzero(np.abs(change).max(-1) > 0.01)
        self.index, self.change = texels.index[used], change[used]
        self.tints, self.drivers = np.array(tints, np.float32), np.array(drivers, np.float32)

    def __call__(self, texture: np.ndarray, expression: np.ndarray) -> np.ndarray:
        """The texture (R, R, 4) uint8 of a face at rest, as it is at a moment with weights (E,)."""
        amount = np.clip(self.drivers @ np.clip(expression, 0, 1), 0, 1).astype(np.float32)
        active = amount > 0.01
        if not active.any():
            return texture
        out = texture.reshape(-1, 4).copy()
        factor = 1 - self.change[:, active] @ (amount[active, None] * self.tints[active])
        out[self.index, :3] = np.clip(np.rint(out[self.index, :3] * factor), 0, 255).astype(np.uint8)
        return out.reshape(texture.shape)


def _row(drivers: dict[str, float], side: str, names: tuple[str, ...]) -> np.ndarray:
    """(E,) weights of a side's own shapes, and of those that have no side."""
    row = np.zeros(len(names), np.float32)
    for name, weight in drivers.items():
        for known in (name, name + side):
            if known in names:
                row[names.index(known)] = weight
    return row
