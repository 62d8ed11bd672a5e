"""Glasses and caps: rigid things that a person's head wears, fitted to the neutral head and carried by the head joint.

Shapes: V head vertices, N points of a path or outline; millimetres of the person's face frame (see fitting.py).
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from avtool.synth.base import SynthHead, noise, smoothstep
from avtool.synth.caps import cap, cap_rim
from avtool.synth.draw import Material
from avtool.synth.fitting import Accessory, Fitting, attach, fit_head, grid_faces, paint
from avtool.synth.hair import Shells
from avtool.synth.look import Look

METAL = Material(specular=0.5, power=50.0, wrap=0.3, casts_shadow=False)
PLASTIC = Material(specular=0.12, power=40.0, wrap=0.3, casts_shadow=False)
# Highlights count by a fragment's alpha, which is small on clear glass: the strength makes up for it.
CLEAR = Material(specular=7.0, power=500.0, wrap=1.0, casts_shadow=False)
DARK = Material(specular=0.6, power=300.0, wrap=0.6, casts_shadow=False)
GLASSES_STAND = 12.0  # mm from the cornea to the lens, as opticians fit them
MAX_STAND = 19.0  # mm: deep-set noses push a frame forward, but not further than this
CLEARANCE = 1.2  # mm between frame and skin
TILT, WRAP = 0.13, 0.0018  # the front leans in below by 7 degrees and bends back by WRAP x^2 mm
# Half width and half height (mm), exponent of the superellipse and how much the lower nasal corner is cut, of a lens.
LENSES = {"round": (23.0, 21.5, 2.0, 0.1), "rectangle": (26.0, 16.5, 4.0, 0.16), "square": (26.0, 20.0, 3.2, 0.2), "aviator": (28.0, 23.0, 2.5, 0.34)}


@dataclass(frozen=True)
class Worn:
    """All that a person wears on the head. rim: normal (3,) and offset (mm) of the plane of a cap's rim, None without one."""

    items: list[Accessory]
    fitting: Fitting | None = None
    rim: tuple[np.ndarray, float] | None = None

    def tuck(self, hair: Shells | None) -> Shells | None:
        """Hair under a cap: pressed flat at the rim, gone above."""
        if hair is None or self.rim is None:
            return hair
        normal, offset = self.rim
        height = self.fitting.points[hair.used] @ normal - offset
        below = height[hair.faces].min(1) < 5
        if not below.any():
            return None
        return replace(hair, faces=hair.faces[below], uv_faces=hair.uv_faces[below], length=hair.length * smoothstep(0, -16, height))


def wear(head: SynthHead, identity: np.ndarray, look: Look, offsets: np.ndarray | None = None) -> Worn:
    """What the look asks for, fitted to the identity (I,) with offsets (V, 3) metres."""
    if not (look.glasses or look.cap):
        return Worn([])
    fitting = fit_head(head, identity, offsets)
    items = glasses(fitting, look) if look.glasses else []
    if not look.cap:
        return Worn(items, fitting)
    rim = cap_rim(fitting, look.cap)
    return Worn(items + cap(fitting, look, rim), fitting, rim)


def under_cap(look: Look) -> Look:
    """The look with hair that fits under its cap; the same look without one."""
    if not look.cap or look.hair_style in ("bald", "buzz"):
        return look
    return replace(look, hair_style="short", hair_length=min(look.hair_length, 0.9))


def lens_outline(kind: str, scale: float, count: int = 56) -> np.ndarray:
    """(count, 2) mm outline of the left lens around its center, x away from the nose, counterclockwise from the outer side."""
    half_width, half_height, power, cut = LENSES[kind]
    angle = 2 * np.pi * np.arange(count) / count
    cos, sin = np.cos(angle), np.sin(angle)
    radius = (np.abs(cos / half_width) ** power + np.abs(sin / half_height) ** power) ** (-1 / power)
    x, y = radius * cos, radius * sin
    low = np.clip(-y / half_height, 0, 1)
    x = np.where(x < 0, x * (1 - cut * low), x)
    return scale * np.stack([x, y], -1)


def _skin_depth(fitting: Fitting, xy: np.ndarray) -> np.ndarray:
    """(N,) mm: frontmost skin around points xy (N, 2)."""
    skin = fitting.region("face")
    skin = skin[skin[:, 2] > -30]
    return skin[cKDTree(skin[:, :2]).query(xy, k=6)[1], 2].max(1)


def _tube(path: np.ndarray, broad: np.ndarray, half: tuple[float, float], closed: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (8 N, 3), triangles and uv of a rounded bar along path (N, 3): half[0] thick across and half[1] along the direction broad (3,)."""
    tangent = np.roll(path, -1, 0) - np.roll(path, 1, 0) if closed else np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    up = broad - tangent * (tangent @ broad)[:, None]
    up /= np.linalg.norm(up, axis=1, keepdims=True)
    side = np.cross(tangent, up)
    angle = 2 * np.pi * (np.arange(8) + 0.5) / 8
    across, along = (np.sign(wave) * np.abs(wave) ** 0.6 for wave in (np.cos(angle), np.sin(angle)))
    points = path[:, None] + half[0] * across[:, None] * side[:, None] + half[1] * along[:, None] * up[:, None]
    faces = grid_faces(len(path), 8, closed, True, 8)[:, ::-1]
    if not closed:
        lid = np.array([[0, k, k + 1] for k in range(1, 7)])
        faces = np.concatenate([faces, lid[:, ::-1], lid + 8 * (len(path) - 1)])
    length = np.arange(len(path)) / (len(path) - 1)
    uv = np.stack(np.broadcast_arrays(length[:, None], (np.arange(8) / 8)[None]), -1)
    return points.reshape(-1, 3), faces, uv.reshape(-1, 2)


@dataclass(frozen=True)
class _Front:
    """The plane-like surface that rims, bridge and lenses lie in: outline (N, 2) mm of the left lens in place, stand mm."""

    outline: np.ndarray
    stand: float

    def place(self, xy: np.ndarray) -> np.ndarray:
        """(N, 3) mm of points xy (N, 2) on the front."""
        return np.concatenate([xy, (self.stand + TILT * xy[:, 1] - WRAP * xy[:, 0] ** 2)[:, None]], -1)


def _front(fitting: Fitting, look: Look, half: float) -> _Front:
    """Where the front sits: lenses before the eyes, `GLASSES_STAND` off the cornea or as much more as nose and brow ask for."""
    span = np.ptp(fitting.eyes[:, 0])
    scale = look.glasses_size * span / 61.0
    half_width = LENSES[look.glasses][0] * scale
    center = np.array([max(span / 2 + 1, half_width + 8.5 * span / 61.0), -2.5 * scale])
    outline = center + lens_outline(look.glasses, scale)
    cornea = fitting.region("eye_l", "eye_r")[:, 2].max()
    stand = cornea + GLASSES_STAND + WRAP * (span / 2) ** 2
    rims = np.concatenate([outline, outline * [-1, 1]])
    flat = _Front(outline, 0.0).place(rims)[:, 2]
    needed = (_skin_depth(fitting, rims) + CLEARANCE + half - flat).max()
    return _Front(outline, float(np.clip(needed, stand, stand + MAX_STAND - GLASSES_STAND)))


def glasses(fitting: Fitting, look: Look) -> list[Accessory]:
    """Frame and lenses of the look's glasses."""
    thick = look.glasses_thickness / 2
    metal = look.glasses_thickness < 2
    depth = thick if metal else 1.7
    front = _front(fitting, look, depth)
    ahead = np.array([0.0, 0.0, 1.0])
    bars = [_tube(front.place(front.outline * [side, 1])[::side], ahead, (thick, depth), closed=True) for side in (1, -1)]
    bars += [_tube(path, ahead, (0.9 * thick, depth)) for path in _bridges(fitting, front, look, depth)]
    tall = max(thick, 0.8) if metal else 2.0
    bars += [_tube(_temple(fitting, front, side), np.array([0.0, 1.0, 0.0]), (min(thick, 1.3), tall)) for side in (1, -1)]
    starts = np.cumsum([0] + [len(points) for points, _, _ in bars])
    points, uv = np.concatenate([bar[0] for bar in bars]), np.concatenate([bar[2] for bar in bars])
    faces = np.concatenate([bar[1] + start for bar, start in zip(bars, starts)])
    frame = attach(fitting, points, faces, _frame_texture(look), METAL if metal else PLASTIC, uv=uv)
    return [frame, *(_lens(fitting, front, look, side) for side in (1, -1))]


def _frame_texture(look: Look) -> np.ndarray:
    """(32, 128, 4) color of the frame, mottled where the look says so."""
    v, u = np.meshgrid(np.arange(32) / 32, np.arange(128) / 128, indexing="ij")
    spots = noise(np.stack([u.ravel() * 26, v.ravel() * 5, 0 * u.ravel() + look.seed % 97], -1), 2).reshape(v.shape)
    tone = 1 - look.glasses_mottle * (1 - smoothstep(0.42, 0.62, spots))
    return paint(np.asarray(look.glasses_color) * tone[..., None])


def _bridges(fitting: Fitting, front: _Front, look: Look, depth: float) -> list[np.ndarray]:
    """Paths (N, 3) mm from rim to rim over the nose; an aviator has a second bar."""
    outline = front.outline
    top, low = outline[:, 1].max(), outline[:, 1].min()
    paths = []
    for share in (0.62, 0.86) if look.glasses == "aviator" else (0.7,):
        level = low + share * (top - low)
        nasal = outline[outline[:, 0] < outline[:, 0].mean()]
        inner = nasal[np.abs(nasal[:, 1] - level).argmin()]
        x = np.linspace(inner[0], -inner[0], 13)
        arch = 1 - (x / inner[0]) ** 2
        points = front.place(np.stack([x, inner[1] + 2.2 * arch], -1))
        free = _skin_depth(fitting, points[:, :2]) + CLEARANCE + depth - points[:, 2]
        # The bar arches forward just as far as the nose's root asks for.
        points[:, 2] += arch * max(1.0, (free / np.maximum(arch, 0.3)).max())
        paths.append(points)
    return paths


def _temple(fitting: Fitting, front: _Front, side: int) -> np.ndarray:
    """(N, 3) mm: the arm from the hinge back along the head to the ear and a little down behind it; side 1 is the person's left."""
    outline = front.outline
    top, low = outline[:, 1].max(), outline[:, 1].min()
    level = low + 0.7 * (top - low)
    outer = outline[outline[:, 0] > outline[:, 0].mean()]
    start = outer[np.abs(outer[:, 1] - level).argmin()]
    hinge = front.place(start[None])[0]
    ear = fitting.region("ear") * [side, 1, 1]
    ear = ear[ear[:, 0] > 0]
    crown = ear[ear[:, 1].argmax()]
    skin = fitting.region("face", "scalp", "neck") * [side, 1, 1]
    z = np.concatenate([hinge[2] - np.array([0.0, 1.5, 5.0]), np.linspace(hinge[2] - 12, crown[2], 14), crown[2] - np.array([7.0, 15.0])])
    y = np.interp(z, [crown[2] - 15, crown[2] - 5, crown[2], hinge[2] - 8], [crown[1] - 13, crown[1] - 5, crown[1] - 2.5, hinge[1]])
    near = skin[cKDTree(skin[:, 1:]).query(np.stack([y, z], -1), k=5)[1], 0].max(1)
    x = np.interp(z, [crown[2], hinge[2]], [near[-3] + CLEARANCE + 1.3, hinge[0] + 4])
    x[:2] = hinge[0], hinge[0] + 2.6
    touching = z < hinge[2] - 10
    x[touching] = np.maximum(x, near + CLEARANCE + 1.3)[touching]
    x[3:-3] = np.convolve(np.pad(x[3:-3], 1, "edge"), [0.25, 0.5, 0.25], "valid").clip((near + CLEARANCE + 1.0)[3:-3], None)
    return np.stack([side * x, y, z], -1)


def _lens(fitting: Fitting, front: _Front, look: Look, side: int) -> Accessory:
    """One lens: a slightly domed sheet in its rim, clear with a soft reflection of the sky, or dark."""
    rings = np.linspace(0, 1, 6)[1:]
    center = (front.outline.max(0) + front.outline.min(0)) / 2
    flat = center + rings[:, None, None] * (front.outline - center)
    flat = np.concatenate([center[None], flat.reshape(-1, 2)])
    bulge = 2.2 * (1 - np.concatenate([[0.0], np.repeat(rings, len(front.outline))]) ** 2)
    points = front.place(flat)
    points[:, 2] += bulge
    count = len(front.outline)
    k = np.arange(count)
    fan = np.stack([0 * k, 1 + k, 1 + (k + 1) % count], -1)
    faces = np.concatenate([fan, 1 + grid_faces(len(rings), count, False, True, count)])
    if side < 0:
        points, faces = points * [-1, 1, 1], faces[:, ::-1]
    uv = (points[:, :2] - points[:, :2].min(0)) / np.ptp(points[:, :2], axis=0)
    dark = look.lens_alpha > 0.5
    return attach(fitting, points, faces, _lens_texture(look), DARK if dark else CLEAR, uv=uv, transparent=True)


def _lens_texture(look: Look) -> np.ndarray:
    """(64, 64, 4): the lens's tint and alpha; a slanted band and the upper rim reflect a bright room."""
    v, u = np.meshgrid(1 - (np.arange(64) + 0.5) / 64, (np.arange(64) + 0.5) / 64, indexing="ij")
    slant = u + 0.6 * v
    band = smoothstep(0.62, 0.74, slant) * smoothstep(1.02, 0.88, slant) + 0.6 * smoothstep(1.1, 1.13, slant) * smoothstep(1.22, 1.18, slant)
    alpha = look.lens_alpha + (look.lens_glare if look.lens_alpha < 0.5 else 0.0) * band
    tint = np.broadcast_to(np.asarray(look.lens_color), (*u.shape, 3))
    if look.lens_alpha < 0.5:
        share = (band * look.lens_glare / np.maximum(alpha, 1e-6))[..., None]
        tint = tint + (0.97 - tint) * share
    else:
        tint = tint + look.lens_glare * 0.6 * band[..., None]
        alpha = alpha - 0.25 * smoothstep(0.6, 0.0, v) * (look.seed % 2)
    return paint(np.concatenate([tint, alpha[..., None]], -1))
