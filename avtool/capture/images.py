"""Photos in: any common file becomes an upright uint8 RGB array, no larger than is useful.

Shape legend: pixels (H, W, 3); focal lengths in pixels of the array that is returned.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import AvtoolError, FormatError

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .tif .tiff .gif .ppm .pgm .pnm .jp2 .avif .heic .heif".split()
)
# Faces fill a good part of a useful photo; beyond this side nothing is gained and memory is lost.
MAX_SIDE = 2048
# Pillow holds a color image in four bytes a pixel, so this is 0.8 GB while decoding. JPEG is reduced while it is
# decoded and may be larger.
MAX_PIXELS = 200_000_000
MAX_JPEG_PIXELS = 1_000_000_000
# Diagonal of 35 mm film (36 x 24 mm), which CIPA DC-X010 bases equivalent focal lengths on.
FILM_DIAGONAL_MM = math.hypot(36.0, 24.0)
_UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0}
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


@dataclass(frozen=True)
class LoadedImage:
    """A photo.

    Attributes:
        pixels: uint8 (H, W, 3) RGB, upright.
        focal_px: focal length in pixels of ``pixels`` as EXIF tells, or None.
        scale: side of ``pixels`` over the side of the file's image.
    """

    pixels: np.ndarray
    focal_px: float | None
    scale: float


def load_image(path: str | Path, max_side: int = MAX_SIDE) -> LoadedImage:
    """Reads a photo; gray, palette, CMYK, 16-bit and transparent ones (on white) become RGB.

    Args:
        path: the file.
        max_side: longer side above which the image is downscaled.

    Raises:
        AvtoolError: no such file, or it cannot be read.
        FormatError: not an image, damaged, truncated or far too large.
    """
    path = Path(path)
    try:
        with open(path, "rb") as handle:
            _refuse_heif(path, handle.read(12))
            handle.seek(0)
            with _open(path, handle) as image:
                return _convert(path, image, max_side)
    except FileNotFoundError as error:
        raise AvtoolError(f"{path}: no such file", "check the path") from error
    except IsADirectoryError as error:
        raise AvtoolError(f"{path}: expected an image, found a directory", "name an image file") from error
    except PermissionError as error:
        raise AvtoolError(f"{path}: not readable", "check its permissions") from error


def load_gray(path: str | Path) -> np.ndarray:
    """Reads a stored 8-bit gray image, such as a matte.

    Returns:
        float32 (H, W) in [0, 1].
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L"), dtype=np.float32) / 255.0
    except FileNotFoundError as error:
        raise AvtoolError(f"{path}: no such file", "run `avtool track` again") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise FormatError(path, "", "a readable gray image", str(error), "run `avtool track` again") from error


def list_images(directory: str | Path) -> list[Path]:
    """Image files of a directory in natural order (photo2 before photo10); hidden files are left out.

    Raises:
        AvtoolError: not a directory, or no image in it.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise AvtoolError(f"{directory}: no such directory", "check the path")
    files = [path for path in directory.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    files = [path for path in files if not path.name.startswith(".")]
    if not files:
        raise AvtoolError(f"{directory}: expected a directory with images, found none", "put JPEG or PNG photos into it")
    return sorted(files, key=lambda path: natural_key(path.name))


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that compares runs of digits by value."""
    parts = re.split(r"(\d+)", Path(name).stem.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts] + [(-1, 0, name)]


def _refuse_heif(path: Path, head: bytes) -> None:
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        raise FormatError(path, "", "a JPEG or PNG image", "a HEIC image", "export it as JPEG first")


def _open(path: Path, handle: object) -> Image.Image:
    """Pillow's lazy image; its own limits are replaced by ours, which know how an image will be decoded."""
    try:
        with warnings.catch_warnings():
            # Up to twice its limit Pillow only warns.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = _open_unlimited(handle)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        found = "an empty file" if path.stat().st_size == 0 else "something else, or a damaged header"
        raise FormatError(path, "", "an image", found, "use a JPEG or PNG image") from error
    limit = MAX_JPEG_PIXELS if image.format == "JPEG" else MAX_PIXELS
    if image.width * image.height > limit:
        found = f"{image.width} x {image.height}"
        raise FormatError(path, "", f"at most {limit // 1_000_000} megapixels", found, "downscale it first")
    return image


def _open_unlimited(handle: object) -> Image.Image:
    """Image.open without Pillow's global limit, which is put back at once."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        return Image.open(handle)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _convert(path: Path, image: Image.Image, max_side: int) -> LoadedImage:
    full_size = image.size
    try:
        exif = image.getexif()
        focal = _exif_focal(exif, full_size)
    except (OSError, SyntaxError, ValueError, TypeError, ZeroDivisionError):
        # A broken EXIF block says nothing about the picture itself.
        exif, focal = None, None
    try:
        image.draft(None, (max_side, max_side))
        image.load()
        reduced = _reduce(image, max_side)
        upright = ImageOps.exif_transpose(reduced) if exif is not None else reduced
        pixels = np.asarray(_to_rgb(upright))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise FormatError(path, "", "a complete image", f"damaged data: {error}", "copy or export it again") from error
    if min(pixels.shape[:2]) < 1:
        raise FormatError(path, "", "an image", "no pixels", "use another image")
    scale = max(pixels.shape[:2]) / max(full_size)
    return LoadedImage(np.ascontiguousarray(pixels), focal * scale if focal else None, scale)


def _reduce(image: Image.Image, max_side: int) -> Image.Image:
    """Downscales before any conversion, so that large photos are held once only."""
    if max(image.size) <= max_side:
        return image
    if image.mode in ("P", "1"):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _to_8_bit(image)
    elif image.mode in ("RGBA", "LA"):
        # Averaging needs colors weighted by alpha, or hidden colors bleed into the edges.
        image = image.convert({"RGBA": "RGBa", "LA": "La"}[image.mode])
    factor = max(image.size) // max_side
    if factor > 1:
        image = image.reduce(factor)
    scale = max_side / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    exif = image.getexif()
    image = image.resize(size, Image.Resampling.LANCZOS) if scale < 1 else image
    if image.mode in ("RGBa", "La"):
        image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
    image.getexif().update(exif)
    return image


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Gray of more than 8 bits; integers are taken as 16 bits, floats as [0, 1]."""
    values = np.asarray(image)
    if image.mode == "F":
        return Image.fromarray((np.clip(values, 0.0, 1.0) * 255 + 0.5).astype(np.uint8))
    return Image.fromarray((np.clip(values, 0, 65535) // 257).astype(np.uint8))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _to_8_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _exif_focal(exif: Image.Exif, size: tuple[int, int]) -> float | None:
    """Focal length in pixels of the file's image, or None when EXIF does not settle it."""
    fields = exif.get_ifd(ExifTags.IFD.Exif)
    taken = fields.get(ExifTags.Base.ExifImageWidth), fields.get(ExifTags.Base.ExifImageHeight)
    taken = tuple(int(side) for side in taken) if all(taken) else size
    scale = max(size) / max(taken)
    if abs(min(taken) * scale - min(size)) > 0.02 * max(size):
        # The photo was cropped after it was taken, and nothing says from what.
        return None
    film = float(fields.get(ExifTags.Base.FocalLengthIn35mmFilm) or 0)
    if film > 0:
        return film / FILM_DIAGONAL_MM * math.hypot(*size)
    focal = float(fields.get(ExifTags.Base.FocalLength) or 0)
    density = float(fields.get(ExifTags.Base.FocalPlaneXResolution) or 0)
    unit = _UNIT_MM.get(int(fields.get(ExifTags.Base.FocalPlaneResolutionUnit) or 2))
    if focal > 0 and density > 0 and unit:
        return focal * density / unit * scale
    return None
