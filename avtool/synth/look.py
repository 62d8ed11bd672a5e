"""What a synthetic person looks like, as numbers: skin, eyes, brows, hair, beard, clothes. Sampled wide: diversity before realism."""

from dataclasses import dataclass, replace

import numpy as np

# Display colors of human skin from light to dark, cheeks in even light.
SKIN_TONES = np.array(
    [
        (0.93, 0.74, 0.66), (0.90, 0.67, 0.56), (0.85, 0.59, 0.47), (0.78, 0.51, 0.39),
        (0.69, 0.42, 0.31), (0.56, 0.33, 0.235), (0.43, 0.25, 0.18), (0.31, 0.185, 0.14),
    ]
)
HAIR_COLORS = np.array(
    [
        (0.06, 0.05, 0.045), (0.10, 0.075, 0.06), (0.16, 0.11, 0.08), (0.24, 0.165, 0.11), (0.36, 0.25, 0.155),
        (0.55, 0.42, 0.26), (0.70, 0.58, 0.40), (0.42, 0.20, 0.10), (0.52, 0.50, 0.48), (0.78, 0.77, 0.75),
    ]
)
HAIR_SHARES = np.array([0.2, 0.2, 0.17, 0.12, 0.08, 0.05, 0.04, 0.03, 0.07, 0.04])
IRIS_COLORS = np.array(
    [(0.16, 0.09, 0.05), (0.26, 0.15, 0.07), (0.36, 0.24, 0.12), (0.34, 0.36, 0.2), (0.27, 0.39, 0.36), (0.32, 0.46, 0.6), (0.45, 0.52, 0.56)]
)
CLOTH_COLORS = np.array(
    [
        (0.05, 0.05, 0.06), (0.09, 0.10, 0.14), (0.13, 0.16, 0.27), (0.25, 0.26, 0.28), (0.45, 0.46, 0.48), (0.9, 0.9, 0.9), (0.95, 0.94, 0.9),
        (0.55, 0.12, 0.12), (0.16, 0.35, 0.22), (0.25, 0.42, 0.66), (0.62, 0.74, 0.88), (0.78, 0.6, 0.4), (0.45, 0.3, 0.5), (0.85, 0.6, 0.62),
    ]
)
HAIR_STYLES = ("bald", "buzz", "short", "crop", "bushy", "afro")
# Hair meshes of the MakeHuman assets; "" is hair made of shells. Two of them hang over an eye, so they are rare.
ASSET_HAIRS = ("", "long01", "ponytail01", "bob02", "braid01", "short01", "short02", "short03", "short04")
ASSET_HAIR_SHARES = ((0.21, 0.2, 0.16, 0.05, 0.06, 0.08, 0.1, 0.04, 0.1), (0.5, 0.02, 0, 0, 0, 0.16, 0.16, 0.02, 0.14))
FACE_COVERING_HAIR = ("bob02", "braid01", "short03")
# Who wears what: about what portraits show.
GLASSES_SHARE, SUNGLASSES_SHARE, CAP_SHARE = 0.22, 0.2, 0.08
GLASSES = ("round", "rectangle", "square", "aviator")
CAPS = ("beanie", "cap")
METAL_COLORS = np.array([(0.62, 0.62, 0.64), (0.72, 0.58, 0.36), (0.2, 0.2, 0.21), (0.06, 0.06, 0.07), (0.66, 0.47, 0.4)])
PLASTIC_COLORS = np.array(
    [(0.04, 0.04, 0.045), (0.05, 0.05, 0.06), (0.34, 0.19, 0.09), (0.45, 0.27, 0.14), (0.1, 0.13, 0.25), (0.45, 0.1, 0.12), (0.7, 0.66, 0.6)]
)
GARMENTS = ("crew", "vneck", "suit", "shirt", "scoop")


@dataclass(frozen=True)
class Look:
    """All appearance of one person; colors are display RGB in [0, 1], lengths millimetres."""

    seed: int
    skin: np.ndarray
    melanin: float
    redness: float
    blotch: float
    freckles: float
    wrinkles: float
    shine: float
    lip: np.ndarray
    iris: np.ndarray
    iris_radius: float
    sclera: float
    hair: np.ndarray
    hair_style: str
    hair_length: float
    side_length: float
    hairline: float
    recession: float
    part: float
    brow: float
    brow_shape: np.ndarray
    stubble: float
    beard_length: float
    beard_style: np.ndarray
    lashes: float
    teeth: float
    garment: str
    cloth: np.ndarray
    inner: np.ndarray
    tie: np.ndarray
    skin_photos: np.ndarray
    asset_hair: str
    masculine: float
    glasses: str = ""
    glasses_color: tuple[float, ...] = (0.05, 0.05, 0.06)
    glasses_mottle: float = 0.0
    glasses_thickness: float = 1.4
    glasses_size: float = 1.0
    lens_color: tuple[float, ...] = (0.3, 0.3, 0.3)
    lens_alpha: float = 0.05
    lens_glare: float = 0.0
    cap: str = ""
    cap_color: tuple[float, ...] = (0.1, 0.1, 0.12)
    cap_accent: tuple[float, ...] = (0.5, 0.1, 0.1)


def _mix(palette: np.ndarray, position: float) -> np.ndarray:
    """Color at a fractional index of a palette."""
    i = int(np.clip(np.floor(position), 0, len(palette) - 2))
    return palette[i] + (palette[i + 1] - palette[i]) * np.clip(position - i, 0, 1)


def sample_worn(seed: int) -> dict[str, object]:
    """Glasses and cap of the person with a look's seed, as fields of Look; a generator of its own keeps the rest of the person as it is."""
    rng = np.random.default_rng([seed, 1])
    has_glasses, dark, has_cap = rng.random(3) < [GLASSES_SHARE, SUNGLASSES_SHARE, CAP_SHARE]
    metal = rng.random() < 0.45
    color = METAL_COLORS[rng.integers(len(METAL_COLORS))] if metal else PLASTIC_COLORS[rng.integers(len(PLASTIC_COLORS))]
    mottle = rng.uniform(0.5, 0.85) if not metal and rng.random() < 0.3 else 0.0
    shape = str(rng.choice(GLASSES, p=[0.25, 0.35, 0.28, 0.12]))
    thickness, size = rng.uniform(1.0, 1.7) if metal else rng.uniform(2.4, 4.5), rng.uniform(0.92, 1.1)
    lens = rng.uniform(0.02, 0.12, 3) if dark else rng.uniform(0.15, 0.45) * rng.uniform(0.9, 1.1, 3)
    alpha = rng.uniform(0.75, 0.96) if dark else rng.uniform(0.035, 0.07)
    glare = max(0.0, rng.normal(0.0, 0.035))
    cap_colors = np.clip(CLOTH_COLORS[rng.integers(len(CLOTH_COLORS), size=2)] * rng.uniform(0.75, 1.1, (2, 1)), 0.03, 0.95)
    cap = str(rng.choice(CAPS))
    worn: dict[str, object] = {}
    if has_glasses:
        worn.update(glasses=shape, glasses_color=tuple(color.tolist()), glasses_mottle=float(mottle), glasses_thickness=float(thickness))
        worn.update(glasses_size=float(size), lens_color=tuple(lens.tolist()), lens_alpha=float(alpha), lens_glare=float(glare))
    if has_cap:
        worn.update(cap=cap, cap_color=tuple(cap_colors[0].tolist()), cap_accent=tuple(cap_colors[1].tolist()))
    return worn


def sample_look(rng: np.random.Generator) -> Look:
    """One person's appearance."""
    melanin = float(rng.beta(1.0, 1.5))
    skin = _mix(SKIN_TONES, melanin * (len(SKIN_TONES) - 1)) * (1 + rng.normal(0, 0.022, 3) * [1, 0.6, 1]) * rng.normal(1, 0.04)
    masculine = float(rng.beta(0.5, 0.4))
    shares = HAIR_SHARES.copy()
    if melanin > 0.55:
        shares[4:8] *= 0.08
    hair = HAIR_COLORS[rng.choice(len(shares), p=shares / shares.sum())]
    hair = np.clip(hair * rng.uniform(0.8, 1.25) * (1 + rng.uniform(-0.03, 0.1) * np.array([1, 0.1, -1])), 0.02, 0.95)
    light_eyes = rng.random() < (0.6 if melanin < 0.35 else 0.07)
    iris = IRIS_COLORS[rng.integers(3, 7) if light_eyes else rng.integers(0, 3)] * rng.uniform(0.8, 1.2)
    style = rng.choice(HAIR_STYLES, p=[0.08, 0.14, 0.26, 0.27, 0.17, 0.08])
    lip_red = rng.uniform(0.66, 0.82)
    lip = skin * np.array([rng.uniform(0.86, 0.97), lip_red, lip_red * rng.uniform(1.0, 1.1)])
    if masculine < 0.4 and rng.random() < 0.35:
        lip = 0.5 * lip + 0.5 * np.array([rng.uniform(0.5, 0.8), rng.uniform(0.12, 0.3), rng.uniform(0.18, 0.35)])
    bearded = masculine > 0.5
    cloth = np.clip(CLOTH_COLORS[rng.integers(len(CLOTH_COLORS))] * rng.uniform(0.75, 1.15) + rng.normal(0, 0.03, 3), 0.03, 0.96)
    suit = CLOTH_COLORS[rng.integers(0, 5)] * rng.uniform(0.8, 1.3)
    garment = str(rng.choice(GARMENTS, p=[0.36, 0.16, 0.22, 0.16, 0.10]))
    look = Look(
        seed=int(rng.integers(1 << 30)), skin=np.clip(skin, 0.08, 0.97), melanin=melanin, redness=float(rng.uniform(0.2, 1.2)),
        blotch=float(rng.uniform(0.3, 1.3)), freckles=float(max(0, rng.normal(-0.6, 0.7))) * (melanin < 0.5),
        wrinkles=float(rng.uniform(0, 1)), shine=float(rng.uniform(0.02, 0.09)), lip=np.clip(lip, 0.05, 0.95),
        iris=np.clip(iris * (1 + rng.normal(0, 0.06, 3)), 0.03, 0.8), iris_radius=float(rng.normal(5.9, 0.15)),
        sclera=float(rng.uniform(0.78, 0.94)), hair=hair, hair_style=str(style), hair_length=float(rng.uniform(0.7, 1.35)),
        side_length=float(rng.uniform(0.25, 1.0)), hairline=float(rng.normal(8, 5)), recession=float(max(0, rng.normal(-2, 9)) * (masculine > 0.4)),
        part=float(rng.uniform(-45, 45)), brow=float(rng.uniform(0.75, 1.35)), brow_shape=rng.normal(0, 1, 4),
        stubble=float(rng.uniform(0, 1.1) if bearded else 0), beard_length=float(rng.uniform(2, 12) if bearded and rng.random() < 0.35 else 0),
        beard_style=rng.random(3), lashes=float(rng.uniform(0.35, 1.0) if masculine < 0.5 else rng.uniform(0.15, 0.5)),
        teeth=float(rng.uniform(0.72, 0.93)), garment=garment, cloth=suit if garment == "suit" else cloth,
        inner=np.clip(CLOTH_COLORS[rng.choice([5, 6, 10, 0, 13])] + rng.normal(0, 0.02, 3), 0.03, 0.96),
        tie=CLOTH_COLORS[rng.integers(len(CLOTH_COLORS))] * rng.uniform(0.6, 1.0), skin_photos=rng.random(4),
        asset_hair=str(rng.choice(ASSET_HAIRS, p=ASSET_HAIR_SHARES[int(masculine > 0.5)])),
        masculine=masculine,
    )
    return replace(look, **sample_worn(look.seed))
