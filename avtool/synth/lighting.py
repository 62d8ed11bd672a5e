"""Light of the synthetic studio: a soft environment and area lights, gathered at the vertices with shadows.

Shapes: V vertices, D directions, L key lights. Directions point from the head to the light, in world axes (y up, z out of the face).
Light is gathered per vertex (occlusion of nose, chin, hair and of the mouth cavity included) and interpolated: heads have thousands of
vertices, and irradiance is smooth. Red light is spread further than blue over the skin, a cheap stand-in for subsurface scattering.
"""

from dataclasses import dataclass

import numpy as np

from avtool.synth.kernels import accumulate_light

NUM_ENVIRONMENT = 40  # directions over the whole sphere
NUM_PER_KEY = 5  # directions over one area light
SHADOW_RESOLUTION = 160
SHADOW_BIAS = 0.004  # metres; hair cards are thin, lids nearly touch the eyes


@dataclass(frozen=True)
class Lighting:
    """Distant lights. directions (D, 3), radiance (D, 3) linear RGB, key_of (D,) key index or -1; key_dirs, key_colors (L, 3).

    even: whether it was drawn from the even lights; the others come from one side.
    """

    directions: np.ndarray
    radiance: np.ndarray
    key_of: np.ndarray
    key_dirs: np.ndarray
    key_colors: np.ndarray
    even: bool = True


def sphere_directions(count: int) -> np.ndarray:
    """(count, 3) nearly even unit directions (Fibonacci lattice)."""
    k = np.arange(count) + 0.5
    y = 1 - 2 * k / count
    angle = np.pi * (1 + 5**0.5) * k
    ring = np.sqrt(1 - y * y)
    return np.stack([ring * np.cos(angle), y, ring * np.sin(angle)], -1).astype(np.float32)


def direction(yaw: float, pitch: float) -> np.ndarray:
    """Unit direction; yaw turns from the face's front to the person's left, pitch upwards, radians."""
    return np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)], np.float32)


def _warmth(rng: np.random.Generator, spread: float) -> np.ndarray:
    """RGB gain of a light between cool and warm, mean one."""
    t = rng.normal(0, spread)
    color = np.array([1 + t, 1 + 0.15 * t, 1 - t])
    return color / color.mean()


def sample_lighting(rng: np.random.Generator, variety: float = 1.0) -> Lighting:
    """One person's light. Mostly even; `variety` 0 gives the plain frontal studio that calibration uses."""
    even = variety == 0 or rng.random() < 0.65
    environment = sphere_directions(NUM_ENVIRONMENT)
    up, front, side = environment[:, 1:2], environment[:, 2:3], environment[:, :1]
    tint = _warmth(rng, 0.05 * variety)
    slope = rng.normal(0, 0.25, 3) * variety
    level = np.clip(1 + (0.6 + slope[0]) * up + (0.3 + slope[1]) * front + slope[2] * side, 0.1, None)
    ambient = (rng.uniform(0.7, 0.92) if even else rng.uniform(0.4, 0.7)) if variety else 0.8
    directions = [environment]
    radiance = [ambient * level * tint * 2.3 / NUM_ENVIRONMENT]
    key_of = [np.full(NUM_ENVIRONMENT, -1)]
    num_keys = 2 if even else int(rng.integers(1, 3))
    key_dirs, key_colors = [], []
    budget = max(1.32 - ambient, 0.3)
    for k in range(num_keys):
        yaw = rng.uniform(-0.9, 0.9) if even else rng.choice([-1, 1]) * rng.uniform(0.4, 1.35)
        axis = direction(yaw, rng.uniform(0.15, 0.95))
        color = budget * rng.uniform(0.6, 1.3) / num_keys * (1.0 if even else 1.35) * _warmth(rng, 0.09 * variety)
        spread = rng.uniform(0.08, 0.3)
        cone = axis + spread * rng.normal(0, 1, (NUM_PER_KEY, 3))
        directions.append(cone / np.linalg.norm(cone, axis=1, keepdims=True))
        radiance.append(np.repeat(color[None] / NUM_PER_KEY, NUM_PER_KEY, 0))
        key_of.append(np.full(NUM_PER_KEY, k))
        key_dirs.append(axis)
        key_colors.append(color)
    return Lighting(
        np.concatenate(directions).astype(np.float32), np.concatenate(radiance).astype(np.float32), np.concatenate(key_of).astype(np.int64),
        np.array(key_dirs, np.float32), np.array(key_colors, np.float32), bool(even),
    )


def gather_light(
    points: np.ndarray, normals: np.ndarray, wrap: np.ndarray, occluders: np.ndarray, faces: np.ndarray, lighting: Lighting
) -> tuple[np.ndarray, np.ndarray]:
    """Light at points (V, 3) with normals (V, 3) and terminator softness wrap (V,), shadowed by the occluder mesh.

    Returns irradiance (V, 3), one for an evenly lit white surface or so, and the share of every key light (V, L).
    """
    num_keys = len(lighting.key_dirs)
    light = np.zeros((len(points), 3), np.float32)
    key_light = np.zeros((len(points), max(num_keys, 1)), np.float32)
    accumulate_light(
        points.astype(np.float32), normals.astype(np.float32), wrap.astype(np.float32), occluders.astype(np.float32),
        faces.astype(np.int32), lighting.directions, lighting.radiance, lighting.key_of, SHADOW_RESOLUTION, SHADOW_BIAS, light, key_light,
    )
    return light, key_light / NUM_PER_KEY


class MeshSmoother:
    """Averages a per-vertex field over mesh neighbors."""

    def __init__(self, faces: np.ndarray, num_vertices: int):
        from scipy.sparse import coo_matrix, diags

        i = np.concatenate([faces[:, [0, 1, 2]].ravel(), faces[:, [1, 2, 0]].ravel(), np.arange(num_vertices)])
        j = np.concatenate([faces[:, [1, 2, 0]].ravel(), faces[:, [0, 1, 2]].ravel(), np.arange(num_vertices)])
        adjacency = coo_matrix((np.ones(len(i), np.float32), (i, j)), shape=(num_vertices, num_vertices)).tocsr()
        adjacency.data[:] = 1
        self.matrix = (diags(1 / np.asarray(adjacency.sum(1)).ravel()) @ adjacency).astype(np.float32)

    def __call__(self, field: np.ndarray, rounds: int) -> np.ndarray:
        """field (V, C), averaged `rounds` times."""
        for _ in range(rounds):
            field = self.matrix @ field
        return field

    def subsurface(self, light: np.ndarray) -> np.ndarray:
        """Irradiance (V, 3) with red spread furthest, as in skin."""
        base = self(light, 1)
        out = base.copy()
        out[:, 1] = self(base[:, 1:2], 1)[:, 0]
        out[:, 0] = self(base[:, :1], 4)[:, 0]
        return out
