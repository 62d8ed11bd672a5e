"""Beanies and baseball caps: shells over the convex hull of a person's skull, cut off at the plane of their rim.

Shapes: R rows from the rim to the top, C columns around the head; millimetres of the person's face frame.
"""

import numpy as np
from scipy.spatial import ConvexHull

from avtool.synth.base import noise, smoothstep
from avtool.synth.draw import Material
from avtool.synth.fitting import Accessory, Fitting, attach, grid_faces, paint
from avtool.synth.look import Look

CLOTH = Material(specular=0.01, power=8.0, wrap=0.3)



def cap_rim(fitting: Fitting, kind: str) -> tuple[np.ndarray, float]:
    """Normal (3,) and offset (mm) of the rim's plane: level from side to side, above the brows in front, above the ears at the sides."""
    over_brow, over_ear = (15.0, 5.0) if kind == "beanie" else (22.0, 9.0)
    ear = fitting.region("ear")
    crown = ear[ear[:, 1].argmax()]
    forehead = fitting.region("face", "scalp")
    front_y = fitting.brow + over_brow
    front_z = forehead[np.abs(forehead[:, 1] - front_y) < 6][:, 2].max()
    slope = (front_y - crown[1] - over_ear) / (front_z - crown[2])
    normal = np.array([0.0, 1.0, -slope]) / np.hypot(1.0, slope)
    return normal, float(normal @ [0.0, front_y, front_z])


def cap(fitting: Fitting, look: Look, rim: tuple[np.ndarray, float]) -> list[Accessory]:
    """The look's cap over the convex hull of the skull above the rim."""
    normal, offset = rim
    skin = fitting.region("face", "scalp")
    hull = ConvexHull(skin[skin @ normal - offset > -8])
    middle = np.array([0.0, 0.0, (skin[:, 2].min() + skin[:, 2].max()) / 2])
    center = middle + normal * (offset - middle @ normal)
    across = np.array([1.0, 0.0, 0.0])
    ahead = np.cross(across, normal)
    columns, steps = 96, np.linspace(0, 1, 26)
    azimuth = 2 * np.pi * (np.arange(columns) + 0.5) / columns - np.pi  # 0 is ahead, the texture's seam lies behind
    # Two rows turn the cloth in at the rim, so that no gap shows from below.
    rise = np.concatenate([[0.0, 0.0], 0.5 * np.pi * steps])[:, None]
    ring = np.sin(azimuth)[:, None] * across + np.cos(azimuth)[:, None] * ahead
    direction = np.cos(rise)[..., None] * ring + np.sin(rise)[..., None] * normal
    lift = _beanie_lift(rise, look) if look.cap == "beanie" else _cap_lift(rise, azimuth)
    lift = np.broadcast_to(lift, direction.shape[:2]).copy()
    lift[0], lift[1] = -6.0, lift[2] - 1.0
    points = center + direction * (_hull_radius(hull, center, direction) + lift)[..., None]
    points[1] -= 1.5 * normal
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.concatenate([[0.0, 0.0], steps]))
    count = len(rise)
    uv_faces = grid_faces(count, columns + 1, False, False, columns + 1)
    dome = attach(
        fitting, points.reshape(-1, 3), grid_faces(count, columns, False, True, columns)[:, ::-1], _cap_texture(look), CLOTH,
        uv=np.stack([u, v], -1).reshape(-1, 2), uv_faces=uv_faces[:, ::-1],
    )
    return [dome] if look.cap == "beanie" else [dome, _visor(fitting, look, points[2] - 3.0 * ring, azimuth, normal)]


def _hull_radius(hull: ConvexHull, center: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """(...) mm from center (3,), inside the hull, along unit directions (..., 3) to its surface."""
    normal, offset = hull.equations[:, :3], hull.equations[:, 3]
    slant = direction @ normal.T
    return (-(normal @ center + offset) / np.where(slant > 1e-6, slant, 1e-9)).min(-1)


def _beanie_lift(rise: np.ndarray, look: Look) -> np.ndarray:
    """(R, 1) mm off the skull: a folded brim, above it a loose top."""
    loose = (4 + look.seed % 14) * np.sin(rise) ** 3
    return 4.0 + 2.5 * smoothstep(0.5, 0.42, rise) + loose


def _cap_lift(rise: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    """(R, C) mm off the skull: stiff front panels stand up."""
    front = smoothstep(1.5, 0.3, np.abs(azimuth))
    return 5.0 + 9.0 * front * smoothstep(0.0, 0.7, rise) * smoothstep(1.7, 0.9, rise)


def _cap_texture(look: Look) -> np.ndarray:
    """(192, 768, 4): knit ribs and a folded brim, or six panels with seams and a button; u around the head from behind, v upwards."""
    v, u = np.meshgrid(1 - (np.arange(192) + 0.5) / 192, (np.arange(768) + 0.5) / 768, indexing="ij")
    color, accent = np.asarray(look.cap_color), np.asarray(look.cap_accent)
    weave = noise(np.stack([u.ravel() * 160, v.ravel() * 70, 0 * u.ravel() + look.seed % 89], -1), 2).reshape(u.shape)[..., None]
    if look.cap == "beanie":
        ribs = 0.5 + 0.5 * np.cos(2 * np.pi * 64 * u)
        stitch = 0.5 + 0.5 * np.cos(2 * np.pi * 44 * v + np.pi * (ribs > 0.5))
        fold = np.exp(-(((v - 0.29) / 0.012) ** 2))
        tone = (0.72 + 0.22 * ribs + 0.1 * stitch) * (1 - 0.45 * fold)
        banded = (look.seed % 3 == 0) * smoothstep(0.40, 0.41, v) * smoothstep(0.56, 0.55, v)
        base = color + (accent - color) * banded[..., None]
        return paint(base * tone[..., None] * (0.75 + 0.5 * weave))
    seam = np.abs((u * 6) % 1 - 0.5)  # seams ahead, behind and between
    tone = 1 - 0.35 * np.exp(-(((0.5 - seam) / 0.02) ** 2)) * (v < 0.97)
    front = smoothstep(0.17, 0.164, np.abs(u - 0.5)) * (look.seed % 2)
    base = color + (accent - color) * front[..., None]
    base = np.where((v > 0.955)[..., None], 0.8 * color, base)
    return paint(base * tone[..., None] * (0.88 + 0.24 * weave))


def _visor(fitting: Fitting, look: Look, rim: np.ndarray, azimuth: np.ndarray, normal: np.ndarray) -> Accessory:
    """The curved peak in front of rim points (C, 3) mm: two sheets, one bar's thickness apart, closed at the edge."""
    chosen = np.abs(azimuth) < 1.12
    base = rim[chosen]
    x = base[:, 0] / np.abs(base[:, 0]).max()
    reach = 68.0 * np.sqrt(np.clip(1 - 0.9 * x**2, 0, 1)) * smoothstep(1.0, 0.86, np.abs(x))
    steps = np.linspace(0, 1, 10)[:, None]
    top = base + (steps * reach)[..., None] * np.array([0.0, -0.1, 1.0])
    top = top - (0.45 * steps * reach * x**2)[..., None] * normal
    sheet = np.concatenate([top - 2.5 * normal, top[::-1]])
    rows, columns = sheet.shape[:2]
    u, v = np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows))
    weave = noise(np.stack([np.arange(64 * 64) % 64, np.arange(64 * 64) // 64, np.full(64 * 64, look.seed % 83)], -1) * 0.9, 2).reshape(64, 64, 1)
    color = paint(np.asarray(look.cap_accent if look.seed % 3 else look.cap_color) * (0.88 + 0.24 * weave))
    faces = grid_faces(rows, columns, False, False, columns)[:, ::-1]
    return attach(fitting, sheet.reshape(-1, 3), faces, color, CLOTH, uv=np.stack([u, v], -1).reshape(-1, 2))
