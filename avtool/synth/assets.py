"""MakeHuman's CC0 assets that a user may pass with --assets: photographic skins, iris photographs, hair meshes.

Expected folders: skins/*.jpg (MakeHuman's UV), eyes/*_eye.png, hair/NAME/{NAME.obj, NAME.mhclo, diffuse.png}. Whatever is missing falls back
to procedural paint. Nothing of them is shipped.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from avtool.errors import AvtoolError
from avtool.synth.base import SynthHead, Texels
from avtool.synth.base_mesh import load_base_mesh
from avtool.synth.look import Look
from avtool.synth.strands import HairAsset, HairCards, dye, load_hair

IRIS_CENTER, IRIS_RADIUS = (0.7065, 0.297), 0.115  # of the right eye in the eye textures, share of their side


class Assets:
    """A folder of MakeHuman assets. Files are read when first needed and kept."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.skins = sorted((folder / "skins").glob("*.jpg"))
        self.irises = sorted((folder / "eyes").glob("*_eye.png"))
        self.hairs = {path.parent.name: path for path in sorted((folder / "hair").glob("*/diffuse.png"))}
        if not (self.skins or self.irises or self.hairs):
            raise AvtoolError(f"{folder}: no skins/*.jpg, eyes/*_eye.png or hair/*/diffuse.png found", "pass the folder of the MakeHuman assets")
        self._skin_cache: dict[Path, np.ndarray] = {}
        self._hair_cache: dict[str, HairAsset] = {}

    def _skin(self, path: Path, texels: Texels) -> np.ndarray:
        """(N, 3) display RGB of a skin at the texels, as float16."""
        if path not in self._skin_cache:
            image = Image.open(path).convert("RGB").resize((texels.resolution,) * 2, Image.Resampling.BOX)
            self._skin_cache[path] = (np.asarray(image).reshape(-1, 3)[texels.index] / 255).astype(np.float16)
        return self._skin_cache[path]

    def skin(self, texels: Texels, look: Look) -> np.ndarray | None:
        """(N, 3) blend of two photographs that suit the look; None without skins."""
        dark = look.melanin > 0.62
        suited = [p for p in self.skins if ("dark" in p.name) == dark and ("_male" in p.name) == (look.masculine > 0.5)]
        suited = suited or self.skins
        if not suited:
            return None
        first = suited[int(look.skin_photos[0] * len(suited))]
        second = suited[int(look.skin_photos[1] * len(suited))]
        share = 0.5 * look.skin_photos[2]
        return (1 - share) * self._skin(first, texels).astype(np.float32) + share * self._skin(second, texels).astype(np.float32)

    def hair(self, head: SynthHead, look: Look) -> HairCards | None:
        """The look's hair mesh in its color; None when the look asks for none or the folder lacks it."""
        if look.asset_hair not in self.hairs:
            return None
        if look.asset_hair not in self._hair_cache:
            self._hair_cache[look.asset_hair] = load_hair(self.hairs[look.asset_hair].parent, load_base_mesh(head))
        return dye(self._hair_cache[look.asset_hair], look)

    def iris(self, look: Look) -> np.ndarray | None:
        """(S, S, 3) iris photograph in the look's color; None without eye textures."""
        if not self.irises:
            return None
        disc = _iris_disc(self.irises[int(look.skin_photos[3] * len(self.irises))])
        gray = disc.mean(-1, keepdims=True)
        size = disc.shape[0]
        step = (np.arange(size) + 0.5) / size * 2 - 1
        ring = np.hypot(*np.meshgrid(step, step))
        level = gray[(ring > 0.45) & (ring < 0.9)].mean()
        return np.clip(look.iris * np.clip(gray / level, 0.2, 2.2), 0, 1)


@lru_cache(maxsize=None)
def _iris_disc(path: Path) -> np.ndarray:
    image = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
    side = image.shape[0]
    x, y, r = (round(share * side) for share in (*IRIS_CENTER, IRIS_RADIUS))
    return image[y - r : y + r, x - r : x + r]


@lru_cache(maxsize=4)
def open_assets(folder: str | Path | None) -> Assets | None:
    """The assets in a folder, None when none is given."""
    if folder is None:
        return None
    if not Path(folder).is_dir():
        raise AvtoolError(f"{folder}: no such folder", "pass the folder of the MakeHuman assets, or leave --assets out")
    return Assets(Path(folder))
