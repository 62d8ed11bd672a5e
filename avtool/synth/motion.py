"""Expressions, head turns and gaze of synthetic people: mixtures that look like talking, smiling, blinking people, and some extremes.

Expression weights follow the head model's ARKit-52 names and lie in [0, 1]. Poses are axis-angles in radians.
"""

from dataclasses import dataclass

import numpy as np

KINDS = ("neutral", "talk", "smile", "laugh", "blink", "surprise", "frown", "pucker", "open", "extreme")
KIND_SHARES = np.array([0.14, 0.30, 0.14, 0.09, 0.07, 0.06, 0.05, 0.05, 0.05, 0.05])


@dataclass(frozen=True)
class Motion:
    """expression (E,), neck (3,), head (3,), jaw (3,), eyes (2, 3)."""

    expression: np.ndarray
    neck: np.ndarray
    head: np.ndarray
    jaw: np.ndarray
    eyes: np.ndarray


def _both(weights: dict[str, float], stem: str, value: float, rng: np.random.Generator, skew: float = 0.12) -> None:
    """Set a left/right pair with a little asymmetry."""
    tilt = rng.normal(0, skew)
    weights[f"{stem}Left"] = value * (1 + tilt)
    weights[f"{stem}Right"] = value * (1 - tilt)


def _talk(weights: dict[str, float], rng: np.random.Generator) -> None:
    """A viseme: how far the jaw is open and how the lips are shaped."""
    weights["jawOpen"] = rng.choice([rng.uniform(0, 0.1), rng.uniform(0.05, 0.3), rng.uniform(0.2, 0.5)])
    shape = rng.integers(6)
    if shape == 0:
        weights["mouthFunnel"] = rng.uniform(0.1, 0.6)
    elif shape == 1:
        weights["mouthPucker"] = rng.uniform(0.1, 0.6)
    elif shape == 2:
        _both(weights, "mouthStretch", rng.uniform(0.1, 0.5), rng)
        _both(weights, "mouthLowerDown", rng.uniform(0.1, 0.6), rng)
    elif shape == 3:
        _both(weights, "mouthPress", rng.uniform(0.1, 0.5), rng)
        weights["mouthClose"] = 0.6 * weights["jawOpen"]
        weights["mouthRollLower"] = rng.uniform(0, 0.4)
    elif shape == 4:
        _both(weights, "mouthUpperUp", rng.uniform(0.1, 0.5), rng)
        _both(weights, "mouthLowerDown", rng.uniform(0.1, 0.5), rng)
    else:
        _both(weights, "mouthSmile", rng.uniform(0.05, 0.4), rng)
        _both(weights, "mouthLowerDown", rng.uniform(0, 0.4), rng)


def _smile(weights: dict[str, float], rng: np.random.Generator, low: float, high: float) -> None:
    value = rng.uniform(low, high)
    _both(weights, "mouthSmile", value, rng)
    _both(weights, "cheekSquint", 0.6 * value * rng.random(), rng)
    _both(weights, "eyeSquint", 0.5 * value * rng.random(), rng)
    if rng.random() < 0.6:
        _both(weights, "mouthUpperUp", rng.uniform(0, 0.5) * value, rng)
        _both(weights, "mouthLowerDown", rng.uniform(0, 0.4) * value, rng)


def _mood(kind: str, rng: np.random.Generator) -> dict[str, float]:
    weights: dict[str, float] = {}
    if kind == "talk":
        _talk(weights, rng)
    elif kind == "smile":
        _smile(weights, rng, 0.3, 1.0)
    elif kind == "laugh":
        _smile(weights, rng, 0.5, 1.0)
        weights["jawOpen"] = rng.uniform(0.1, 0.5)
    elif kind == "surprise":
        weights["browInnerUp"] = rng.uniform(0.4, 1)
        _both(weights, "browOuterUp", rng.uniform(0.3, 1), rng)
        _both(weights, "eyeWide", rng.uniform(0.2, 1), rng)
        weights["jawOpen"] = rng.uniform(0, 0.5)
    elif kind == "frown":
        _both(weights, "browDown", rng.uniform(0.3, 1), rng)
        _both(weights, "mouthFrown", rng.uniform(0, 0.8), rng)
        _both(weights, "noseSneer", rng.uniform(0, 0.6), rng)
        _both(weights, "eyeSquint", rng.uniform(0, 0.6), rng)
    elif kind == "pucker":
        weights["mouthPucker"] = rng.uniform(0.4, 1)
        weights["mouthFunnel"] = rng.uniform(0, 0.5)
        weights["mouthLeft" if rng.random() < 0.5 else "mouthRight"] = rng.uniform(0, 0.4)
    elif kind == "open":
        weights["jawOpen"] = rng.uniform(0.5, 1)
        weights["tongueOut"] = rng.uniform(0.2, 0.8) if rng.random() < 0.15 else 0.0
    return weights


def sample_motion(names: tuple[str, ...], rng: np.random.Generator, kind: str | None = None, turn: float = 1.0) -> Motion:
    """One moment of a person. names: the head model's expressions; kind: one of KINDS, drawn when None; turn scales head turns."""
    kind = str(rng.choice(KINDS, p=KIND_SHARES)) if kind is None else kind
    weights = _mood(kind, rng)
    if kind == "extreme":
        for name in rng.choice(names, 2, replace=False):
            weights[str(name)] = rng.uniform(0.5, 1)
    if kind not in ("neutral", "frown", "surprise") and rng.random() < 0.35:
        weights["browInnerUp"] = rng.uniform(0, 0.5)
        _both(weights, rng.choice(["browOuterUp", "browDown"]), rng.uniform(0, 0.5), rng)
    closed = rng.uniform(0.75, 1.0) if kind == "blink" or (kind != "neutral" and rng.random() < 0.05) else max(0.0, rng.normal(-0.08, 0.13))
    _both(weights, "eyeBlink", closed, rng, 0.04)
    yaw, pitch = (0.0, 0.0) if kind == "neutral" and rng.random() < 0.5 else (rng.normal(0, 0.16), rng.normal(0, 0.07))
    names_idx = {name: i for i, name in enumerate(names)}
    expression = np.zeros(len(names), np.float32)
    for name, value in weights.items():
        if name in names_idx and not name.startswith("eyeLook"):  # eyes turn by their joints
            expression[names_idx[name]] = np.clip(value, 0, 1)
    # A downward gaze (positive about x) takes the lids along.
    lid = np.clip(pitch, 0, 0.3)
    for side in ("Left", "Right"):
        i = names_idx.get(f"eyeBlink{side}")
        if i is not None:
            expression[i] = min(1.0, expression[i] + lid)
    eyes = np.array([[pitch, yaw, 0.0]] * 2) + rng.normal(0, 0.008, (2, 3)) * [1, 1, 0]
    shake = rng.normal(0, [0.07, 0.14, 0.06]) * turn
    neck, head = 0.5 * shake + rng.normal(0, 0.03, 3) * turn, 0.5 * shake + rng.normal(0, 0.03, 3) * turn
    return Motion(expression, neck.astype(np.float32), head.astype(np.float32), np.zeros(3, np.float32), eyes.astype(np.float32))
