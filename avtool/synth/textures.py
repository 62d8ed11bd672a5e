"""Painting: skin, brows, stubble, scalp, eyes, teeth, lashes as textures of one person.

Shapes: N texels, points (N, 3) millimetres in the face frame (see base.py). Colors are display RGB in [0, 1] until they are packed as
(H, W, 4) uint8. Rules are placed on the mean face; the mesh carries them to every other face.
"""

import numpy as np

from avtool.synth.base import SynthHead, Texels, noise, smoothstep
from avtool.synth.look import Look

MOUTH_INSIDE = np.array([0.33, 0.12, 0.11])


def pack(rgb: np.ndarray, alpha: np.ndarray | float = 1.0) -> np.ndarray:
    """(H, W, 3) RGB and (H, W) alpha in [0, 1] to (H, W, 4) uint8."""
    out = np.empty((*rgb.shape[:2], 4), np.uint8)
    out[..., :3] = np.round(255 * np.clip(rgb, 0, 1))
    out[..., 3] = np.round(255 * np.clip(alpha, 0, 1))
    return out


def _blend(color: np.ndarray, over: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return color + (over - color) * weight[:, None]


def _blob(points: np.ndarray, x: float, y: float, sx: float, sy: float, front: float = 0.0) -> np.ndarray:
    """Gaussian spot on the front of the face at (+-x, y)."""
    dx = (np.abs(points[:, 0]) - x) / sx
    return np.exp(-(dx**2) - ((points[:, 1] - y) / sy) ** 2) * (points[:, 2] > front)


def hair_mask(points: np.ndarray, look: Look) -> np.ndarray:
    """How much head hair grows at points (N, 3): a ragged hair line over the forehead, in front of the ears and at the nape."""
    seed = look.seed % 997
    x, y, z = points.T
    ragged = (noise(points * 0.5 + seed, 2) - 0.5) * 7
    temple = look.recession * np.exp(-(((np.abs(x) - 38) / 16) ** 2))
    front = y - (58 + look.hairline + temple - 0.006 * x**2) + ragged
    side = -(z + 36 + 0.25 * look.hairline) - 0.4 * np.clip(-y - 8, 0, None) + ragged
    grown = np.maximum(front / 7, np.minimum(side / 6, (y + 58 + ragged) / 14))
    if look.hair_style == "bald":
        crown = smoothstep(22, 45, y + 0.25 * np.abs(x) - 10)
        grown = np.minimum(grown, 1) * (1 - crown)
    return smoothstep(0, 1, grown)


def brow_mask(points: np.ndarray, look: Look) -> np.ndarray:
    """Eyebrow density at points (N, 3)."""
    x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
    arch, height, thick, length = look.brow_shape
    center = 18.9 + 1.0 * height + (3.9 + 1.1 * arch) * np.clip((x - 12) / 24, 0, 1) - 7.5 * np.clip((x - 40) / 15, 0, 1.3) ** 1.5
    width = np.clip(4.1 + 0.9 * thick, 2.2, 6.5) * np.clip((x - 9) / 6, 0, 1) * np.clip((57 + 2 * length - x) / 22, 0, 1)
    strands = noise(np.stack([x * 1.0 + y * 0.8, y * 0.3 - x * 0.15, z * 0.1], -1) + look.seed % 911, 2)
    return np.clip(1.7 * (1 - np.abs(y - center) / np.maximum(width, 0.1)), 0, 1) * (width > 0.4) * (z > 0) * np.clip(0.15 + 1.5 * strands, 0, 1)


def beard_mask(points: np.ndarray, look: Look) -> np.ndarray:
    """Beard density at points (N, 3): jaw, chin, moustache; the style drops parts of it."""
    x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
    ragged = (noise(points * 0.35 + look.seed % 883, 2) - 0.5) * 8
    cheek = -68 + 0.95 * np.clip(x - 26, 0, None) + ragged
    jaw = smoothstep(9, -12, y - cheek) * smoothstep(-142, -124, y + ragged) * smoothstep(-48, -36, z)
    jaw *= 1 - np.exp(-(((x) / 22) ** 2) - ((y + 73) / 9) ** 2)
    moustache = smoothstep(29, 22, x) * smoothstep(-72, -67, y - 0.15 * x) * smoothstep(-50, -56, y + 0.15 * x) * (z > 15)
    sides = 1.0 if look.beard_style[0] > 0.25 else 0.0
    jaw *= np.where(x > 32, sides, 1.0)
    return np.clip(jaw + moustache * (look.beard_style[1] > 0.12), 0, 1)


def paint_skin(texels: Texels, look: Look) -> np.ndarray:
    """(N, 3) procedural skin: tone, blood, pores, freckles, folds, lips, mouth inside."""
    points, offset = texels.points, look.seed % 1009
    low, mid = noise(points * 0.045 + offset), noise(points * 0.33 + offset + 7)
    fine = noise(points * 1.3 + offset + 3, 2)
    color = look.skin * (1 + look.blotch * (0.16 * (low - 0.5) + 0.12 * (mid - 0.5)) + 0.11 * (fine - 0.5))[:, None]
    red = 0.5 * _blob(points, 38, -38, 17, 17) + 0.6 * _blob(points, 0, -42, 13, 11, 15) + 0.45 * texels.masks["ear"]
    red += 0.25 * _blob(points, 0, -105, 18, 12, 0) + 0.5 * (low - 0.45)
    color *= 1 - (look.redness * red)[:, None] * np.array([0.0, 0.16, 0.15])
    color *= 1 - (0.13 * _blob(points, 30, -14, 13, 6))[:, None] * np.array([0.9, 1, 0.85])
    lid = _blob(points, 31, 9, 15, 6)
    color *= 1 - (0.1 * lid)[:, None] * np.array([0.7, 1, 1.0])
    if look.freckles > 0:
        spots = smoothstep(0.66, 0.74, noise(points * 0.7 + offset + 31, 1)) * np.exp(-((points[:, 1] + 25) / 40) ** 2)
        color = _blend(color, color * [0.75, 0.6, 0.5], np.clip(look.freckles * spots, 0, 0.8))
    moles = smoothstep(0.93, 0.95, noise(points * 0.16 + offset + 57, 1))
    color = _blend(color, look.skin * [0.45, 0.33, 0.3], 0.7 * moles * (noise(points * 0.05 + offset, 1) > 0.5))
    return _features(color, texels, look, fine)


def _features(color: np.ndarray, texels: Texels, look: Look, fine: np.ndarray) -> np.ndarray:
    """Folds, lips, sockets and the mouth's inside over a skin color (N, 3)."""
    points = texels.points
    x, y = np.abs(points[:, 0]), points[:, 1]
    fold = np.exp(-(((x - (20 + 0.42 * np.clip(-48 - y, -10, 40))) / 2.5) ** 2)) * smoothstep(-85, -70, y) * smoothstep(-42, -52, y)
    lines = sum(np.exp(-(((y - level - 3 * np.cos(x / 16)) / 1.3) ** 2)) for level in (33, 41, 49)) * smoothstep(48, 30, x)
    crease = (fold + 0.5 * lines * (points[:, 2] > 0)) * look.wrinkles * 0.16
    color = color * (1 - crease[:, None] * np.array([0.8, 1, 1]))
    lips = smoothstep(0.2, 0.75, texels.masks["lips"])
    color = _blend(color, look.lip * (0.88 + 0.24 * fine)[:, None], lips)
    color = _blend(color, look.skin * [0.86, 0.66, 0.62], 0.8 * smoothstep(0.3, 0.9, texels.masks["socket"]))
    return _inside(color, texels, fine)


def _inside(color: np.ndarray, texels: Texels, fine: np.ndarray) -> np.ndarray:
    """The mouth's cavity and the tongue over a skin color (N, 3)."""
    tongue = np.array([0.66, 0.33, 0.33]) * (0.9 + 0.2 * fine)[:, None]
    color = _blend(color, np.broadcast_to(MOUTH_INSIDE, color.shape), smoothstep(0.4, 0.9, texels.masks["mouth"]))
    return _blend(color, tongue, smoothstep(0.4, 0.9, texels.masks["tongue"]))


def tint_photo(photo: np.ndarray, texels: Texels, look: Look) -> np.ndarray:
    """(N, 3) photographic skin (N, 3) moved to the person's tone: detail of the photo, color mostly of the palette."""
    points = texels.points
    cheek = _blob(points, 36, -40, 16, 14) + _blob(points, 0, 42, 28, 10)
    mean = (photo * cheek[:, None]).sum(0) / cheek.sum()
    # Brightness by one exponent for all channels, so that contrast suits the tone; what is left by a gain, so that hue stays even.
    weights = np.array([0.3, 0.59, 0.11])
    exponent = np.clip(np.log(look.skin @ weights) / np.log(np.clip(mean @ weights, 0.05, 0.95)), 0.75, 1.35)
    color = np.clip(photo, 0.004, 1) ** exponent * (0.9 * look.skin + 0.1 * mean**exponent) / mean**exponent
    low = noise(points * 0.045 + look.seed % 1009)
    color *= (1 + 0.10 * look.blotch * (low - 0.5))[:, None]
    lips = smoothstep(0.2, 0.75, texels.masks["lips"])
    lip_mean = (color * lips[:, None]).sum(0) / max(lips.sum(), 1e-6)
    color = _blend(color, color * (look.lip / np.maximum(lip_mean, 0.05)) ** 0.6, lips)
    return _inside(color, texels, noise(points * 1.3 + look.seed % 1009, 2))


def skin_texture(texels: Texels, look: Look, photo: np.ndarray | None = None) -> np.ndarray:
    """(R, R, 4) uint8 skin with brows, stubble and scalp; photo (N, 3) is the blended photographic skin, if any."""
    points = texels.points
    color = paint_skin(texels, look) if photo is None else tint_photo(photo, texels, look)
    streaks = noise(points * [0.9, 0.13, 0.13] + look.seed % 653, 3)[:, None]
    grain = noise(points * 1.9 + look.seed % 787, 2)
    shadow = np.clip(0.55 * look.skin + 0.45 * look.hair, 0, 1) * [0.88, 0.9, 0.95]
    beard = beard_mask(points, look) * (1 - smoothstep(0.15, 0.5, texels.masks["lips"]))
    color = _blend(color, shadow, np.clip(look.stubble * beard * (0.35 + 1.0 * grain), 0, 0.85))
    if look.beard_length > 0:
        color = _blend(color, look.hair * (0.6 + 0.7 * grain[:, None]), np.clip(beard * (0.4 + grain), 0, 0.9))
    covered = hair_mask(points, look) * (1 - texels.masks["ear"])
    density = 0.55 if look.hair_style == "bald" else 0.9
    color = _blend(color, 0.3 * shadow + 0.7 * look.hair * (0.6 + 0.7 * streaks), density * covered)
    brow = np.clip(look.brow * brow_mask(points, look), 0, 1)
    color = _blend(color, 0.85 * look.hair + 0.08 * look.skin, 0.88 * brow)
    fill = tuple(np.asarray(look.skin) * 0.8)
    return pack(texels.image(np.clip(color, 0, 1), fill))


def eye_texture(look: Look, resolution: int = 192, iris_photo: np.ndarray | None = None) -> np.ndarray:
    """(R, R, 4) front view of the eyeball, 13 mm around its axis: veined sclera, fibrous iris with a dark rim, pupil.

    iris_photo: an (S, S, 3) display-RGB disc that replaces the procedural iris.
    """
    step = (np.arange(resolution) + 0.5) / resolution * 2 - 1
    x, y = np.meshgrid(step * 13, -step * 13)
    r, angle = np.hypot(x, y).ravel(), np.arctan2(y, x).ravel()
    radius = look.iris_radius
    away = np.clip((r - radius) / 6, 0, 1)[:, None]
    veins = noise(np.stack([angle * 4, r * 0.5, r * 0 + look.seed % 71], -1), 3)[:, None]
    color = look.sclera * np.array([1.0, 0.965, 0.94]) * (1 - away * (0.06 + 0.16 * veins) * [0.5, 1.1, 1.1])
    fibers = noise(np.stack([np.cos(angle) * 9, np.sin(angle) * 9, r * 0.4 + look.seed % 67], -1), 3)
    iris = look.iris * (0.5 + 1.0 * fibers)[:, None] * (1.3 - 0.5 * r / radius)[:, None]
    if iris_photo is not None:
        side = iris_photo.shape[0]
        px = np.clip(((x / radius * 0.5 + 0.5) * side).astype(int), 0, side - 1).ravel()
        py = np.clip(((-y / radius * 0.5 + 0.5) * side).astype(int), 0, side - 1).ravel()
        iris = iris_photo[py, px]
    iris = iris * (1 - 0.7 * smoothstep(radius - 1.2, radius, r))[:, None]
    color = _blend(color, iris, smoothstep(radius + 0.35, radius - 0.35, r))
    color = _blend(color, np.full(3, 0.012), smoothstep(2.45, 1.95, r))
    return pack(color.reshape(resolution, resolution, 3))


def teeth_texture(look: Look, resolution: tuple[int, int] = (64, 512)) -> np.ndarray:
    """(H, W, 4) strip: u along the arch, v from the gum (0) to the cutting edge (1): fourteen teeth with dark gaps, gum above."""
    height, width = resolution
    v, u = np.meshgrid((np.arange(height)[::-1] + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    edges = np.cumsum([0, 9, 9, 8, 7, 7, 7, 8.5, 8.5, 7, 7, 7, 8, 9, 9]).astype(float)
    edges /= edges[-1]
    gap = np.abs(u[..., None] - edges[1:-1]).min(-1)
    local = np.clip(gap / 0.03, 0, 1)
    enamel = look.teeth * np.array([1.0, 0.955, 0.86]) * (0.72 + 0.28 * smoothstep(0, 0.35, local))[..., None]
    enamel = enamel * (0.84 + 0.16 * smoothstep(0.35, 0.7, v))[..., None]
    gum = np.array([0.66, 0.36, 0.36]) * (0.9 + 0.1 * v[..., None])
    border = 0.36 - 0.10 * local
    return pack(gum + (enamel - gum) * smoothstep(-0.04, 0.04, v - border)[..., None])


def lash_texture(look: Look, resolution: int = 128) -> np.ndarray:
    """(R, R, 4): u along the lid, v from the root (0) to the tip (1); strands thin out towards the tip."""
    v, u = np.meshgrid((np.arange(resolution)[::-1] + 0.5) / resolution, (np.arange(resolution) + 0.5) / resolution, indexing="ij")
    strands = noise(np.stack([u.ravel() * 70, v.ravel() * 1.5, 0 * u.ravel() + look.seed % 59], -1), 1).reshape(v.shape)
    alpha = look.lashes * smoothstep(0.35 + 0.45 * v, 0.5 + 0.5 * v, strands)
    color = np.broadcast_to(np.minimum(look.hair, 0.16) * 0.7, (*v.shape, 3))
    return pack(color, alpha)
