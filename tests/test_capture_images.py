"""Photos of every kind, and what bad ones get."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avtool.capture.images import list_images, load_image, natural_key
from avtool.errors import AvtoolError, FormatError

ORIENTATION, FILM_FOCAL, FOCAL, DENSITY, DENSITY_UNIT, WIDTH, HEIGHT = 0x112, 0xA405, 0x920A, 0xA20E, 0xA210, 0xA002, 0xA003


def exif(orientation: int = 1, **tags: float) -> Image.Exif:
    block = Image.Exif()
    block[ORIENTATION] = orientation
    block.get_ifd(0x8769).update({globals()[name]: value for name, value in tags.items()})
    return block


@pytest.fixture(scope="module")
def photo(astronaut: Path) -> Image.Image:
    return Image.open(astronaut).convert("RGB")


def test_modes_become_rgb(photo: Image.Image, tmp_path: Path) -> None:
    gray = np.asarray(photo.convert("L"))
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "gray16.png")
    for name in ("gray.png", "gray16.png"):
        np.testing.assert_array_equal(load_image(tmp_path / name).pixels, gray[..., None].repeat(3, 2))
    photo.quantize(128).save(tmp_path / "palette.png")
    photo.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    for name in ("palette.png", "cmyk.jpg"):
        pixels = load_image(tmp_path / name).pixels
        assert pixels.dtype == np.uint8 and np.abs(pixels.astype(int) - np.asarray(photo)).mean() < 8
    clear = photo.convert("RGBA")
    clear.putalpha(Image.fromarray(np.full((512, 512), 64, np.uint8)))
    clear.save(tmp_path / "clear.png")
    expected = 255 + (np.asarray(photo).astype(float) - 255) * 64 / 255
    assert np.abs(load_image(tmp_path / "clear.png").pixels - expected).max() <= 1


def test_transparent_colors_do_not_bleed_when_reduced(tmp_path: Path) -> None:
    pixels = np.zeros((512, 512, 4), np.uint8)
    pixels[::2] = (200, 100, 50, 255)  # every other row is invisible black
    Image.fromarray(pixels).save(tmp_path / "rows.png")
    found = load_image(tmp_path / "rows.png", max_side=256).pixels
    np.testing.assert_allclose(found.reshape(-1, 3).mean(0), (228, 178, 153), atol=2)


def test_exif_orientation_and_focal(photo: Image.Image, tmp_path: Path) -> None:
    wide = photo.crop((0, 0, 512, 384))
    path = tmp_path / "turned photo ü.jpg"
    wide.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif(6, FILM_FOCAL=26), quality=95)
    image = load_image(path)
    assert np.abs(image.pixels.astype(int) - np.asarray(wide)).mean() < 3
    assert image.focal_px == pytest.approx(26 / np.hypot(36, 24) * np.hypot(512, 384))
    small = load_image(path, max_side=256)
    assert small.pixels.shape == (192, 256, 3) and small.scale == 0.5
    assert small.focal_px == pytest.approx(image.focal_px / 2, rel=1e-6)


@pytest.mark.parametrize(
    "tags, expected",
    [
        ({}, None),
        ({"FOCAL": 5.0}, None),
        ({"FOCAL": 5.0, "DENSITY": 4000.0, "DENSITY_UNIT": 3}, 2000.0),
        ({"FOCAL": 5.0, "DENSITY": 4000.0, "DENSITY_UNIT": 3, "WIDTH": 2048, "HEIGHT": 2048}, 500.0),
        ({"FILM_FOCAL": 50, "WIDTH": 4000, "HEIGHT": 3000}, None),  # cropped afterwards
    ],
)
def test_focal_from_the_sensor(tags: dict, expected: float | None, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.jpg", exif=exif(**tags))
    assert load_image(tmp_path / "a.jpg").focal_px == (pytest.approx(expected) if expected else None)


def test_bad_files_are_named_with_the_next_step(photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "good.png")
    photo.save(tmp_path / "good.jpg")
    for suffix in ("png", "jpg"):
        data = (tmp_path / f"good.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image at all")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    for name, word in [("cut.png", "complete"), ("cut.jpg", "complete"), ("empty.jpg", "empty"), ("text.jpg", "an image"),
                       ("phone.heic", "export it as JPEG")]:  # fmt: skip
        with pytest.raises(FormatError, match=word) as caught:
            load_image(tmp_path / name)
        assert name in str(caught.value) and caught.value.hint and "\n" not in str(caught.value)
    with pytest.raises(AvtoolError, match="no such file"):
        load_image(tmp_path / "none.jpg")
    with pytest.raises(AvtoolError, match="directory"):
        load_image(tmp_path)


def test_a_hundred_megapixels_fit_in_a_gigabyte(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    Image.new("RGB", (10_000, 10_000), (10, 200, 30)).save(path, compress_level=1)
    code = (
        "import resource, sys; from avtool.capture.images import load_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "image = load_image(sys.argv[1])\n"
        "print(*image.pixels.shape, image.pixels[5, 5].tolist() == [10, 200, 30],\n"
        "      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120, check=True)
    height, width, _, same, grown = done.stdout.split()
    unit = 1 if sys.platform == "darwin" else 1024
    assert (height, width, same) == ("2048", "2048", "True") and int(grown) * unit < 1e9 and done.stderr == ""


def test_too_large_is_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 9) + b"IDAT" + bytes(13)
    )  # fmt: skip
    with pytest.raises(FormatError, match="200 megapixels"):
        load_image(path)
    assert Image.MAX_IMAGE_PIXELS is not None


def test_directories_are_listed_in_natural_order(tmp_path: Path) -> None:
    for name in ("b 10.jpg", "b 9.JPG", "b.png", "B 1.webp", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["b.png", "B 1.webp", "b 9.JPG", "b 10.jpg"]
    assert sorted(["x10y2.png", "x10y10.png", "x9.png"], key=natural_key) == ["x9.png", "x10y2.png", "x10y10.png"]
    (tmp_path / "none").mkdir()
    for missing in (tmp_path / "none", tmp_path / "absent"):
        with pytest.raises(AvtoolError) as caught:
            list_images(missing)
        assert missing.name in str(caught.value) and caught.value.hint
