"""Expressions, head turns and gaze of synthetic people: moments learned from tracked clips of real people, composed moods that such clips
show rarely, and the extremes of single shapes and joints.

Expression weights follow the head model's ARKit-52 names and lie in [0, 1]. Poses are axis-angles in radians.
"""

import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from avtool.synth.learn_motion import MOMENTS_FILE, POSE_SCALE

KINDS = ("neutral", "learned", "talk", "smile", "laugh", "blink", "surprise", "frown", "pucker", "open", "extreme")
KIND_SHARES = np.array([0.10, 0.36, 0.10, 0.08, 0.06, 0.07, 0.04, 0.04, 0.03, 0.04, 0.08])
NEIGHBORS = 8  # a learned moment is mixed with one of so many similar ones
JAW_SHARE = 0.1
MAX_JAW = np.array([0.12, 0.05, 0.03])  # radians about x (open), y, z, of the jaw joint beside the expressions


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


@lru_cache(maxsize=1)
def _moments() -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names (E,), expressions (M, E) and poses (M, 4, 3) of neck, head and eyes, as learn_motion.py kept them."""
    rows = json.loads(MOMENTS_FILE.read_text(encoding="utf-8"))
    return tuple(rows["names"]), np.array(rows["expression"]) / 255, np.array(rows["pose"]) / 127 * POSE_SCALE


def _learned(names: tuple[str, ...], rng: np.random.Generator) -> Motion:
    """Between two similar moments of real people, a little stronger or weaker."""
    known, expressions, poses = _moments()
    first = rng.integers(len(expressions))
    distance = np.linalg.norm(expressions - expressions[first], axis=1)
    second = np.argsort(distance)[rng.integers(1, NEIGHBORS + 1)]
    share, gain = rng.uniform(0, 0.5), rng.uniform(0.8, 1.25)
    weights = gain * ((1 - share) * expressions[first] + share * expressions[second])
    pose = (1 - share) * poses[first] + share * poses[second] + rng.normal(0, 0.02, (4, 3))
    place = {name: k for k, name in enumerate(known)}
    expression = np.array([0.0 if name.startswith("eyeLook") else weights[place[name]] if name in place else 0.0 for name in names])
    neck, head, *eyes = pose.astype(np.float32)
    return Motion(np.clip(expression, 0, 1).astype(np.float32), neck, head, np.zeros(3, np.float32), np.stack(eyes))


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
    if kind == "learned":
        return _learned(names, rng)
    weights = _mood(kind, rng)
    extreme = kind == "extreme"
    if extreme:
        for name in rng.choice(names, rng.integers(1, 3), replace=False):
            weights[str(name)] = rng.uniform(0.5, 1)
    if kind not in ("neutral", "frown", "surprise") and rng.random() < 0.35:
        weights["browInnerUp"] = rng.uniform(0, 0.5)
        _both(weights, rng.choice(["browOuterUp", "browDown"]), rng.uniform(0, 0.5), rng)
    closed = rng.uniform(0.75, 1.0) if kind == "blink" or (kind != "neutral" and rng.random() < 0.05) else max(0.0, rng.normal(-0.08, 0.13))
    _both(weights, "eyeBlink", closed, rng, 0.04)
    yaw, pitch = (0.0, 0.0) if kind == "neutral" and rng.random() < 0.5 else rng.normal(0, [0.16, 0.07]) * (1.8 if extreme else 1.0)
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
    shake = rng.normal(0, [0.07, 0.14, 0.06]) * turn * (2.0 if extreme else 1.0)
    neck, head = 0.5 * shake + rng.normal(0, 0.03, 3) * turn, 0.5 * shake + rng.normal(0, 0.03, 3) * turn
    jaw = rng.uniform([0, -1, -1], 1) * MAX_JAW if extreme or rng.random() < JAW_SHARE else np.zeros(3)
    return Motion(*(value.astype(np.float32) for value in (expression, neck, head, jaw, eyes)))
