"""The files of a pseudo multi-view data set: pictures and mattes as they come, then track, report and montage.

    mv/images/00007.png, 00007_view0.png ...   mv/mattes/ (equal names)   mv/track.json   mv/report.json   mv/montage.png

The directory is written beside its place and moved there when it is complete. Shapes: N views, S x S pixels.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from avtool import __version__
from avtool.artifacts.files import atomic_write, refuse_existing
from avtool.artifacts.track import Frame, Track
from avtool.errors import AvtoolError

SCHEMA = "pseudo-mv/1"
SYNTHETIC_NOTE = "Synthetic picture: a rendering of a moment that another camera recorded. Made with avtool."
TILE = 160  # pixels of a picture on the montage
MONTAGE_VIEWS = 8
MORE_REJECTED = 4  # rows beyond the evenly spread ones
_RED, _LABEL, _BLANK = (200, 30, 30), (20, 20, 20), 235


@dataclass(frozen=True)
class Instant:
    """One moment, on the CPU.

    number: place among the pictures that were tried; frame_idx: index in the track; K (3, 3) of the crop; disagreement of the real
    picture with `again`; image (S, S, 3), matte (S, S, 1) real; again (S, S, 3) its own view drawn anew, on gray; viewmats (N, 4, 4);
    views: straight colors and coverage (N, S, S, 4) uint8, or None when the moment is left out.
    """

    number: int
    frame_idx: int
    K: Tensor
    disagreement: float
    image: Tensor
    matte: Tensor
    again: Tensor
    viewmats: Tensor
    views: Tensor | None


def check_place(output: Path, force: bool) -> None:
    """Refuses a directory before any work: one that exists without force, and with it what pseudo-mv did not write."""
    if output.exists() and not output.is_dir():
        raise AvtoolError(f"{output}: already exists and is no directory", "choose another --output; --force replaces data sets only")
    refuse_existing(output / "track.json" if output.is_dir() else output, force=True)
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not force:
        raise AvtoolError(f"{output}: already exists", "pass --force to replace it, or choose another --output")
    if not _is_ours(output):
        raise AvtoolError(f"{output}: holds something else than a data set of pseudo-mv", "choose another --output")


@contextmanager
def open_data_set(output: Path) -> Iterator[Path]:
    """A directory to write into, which takes the place of `output` when the body ends well, and else is removed."""
    place = output.resolve()  # the name of "." or "..", and of what a link leads to
    temporary, old = (place.with_name(f".{place.name[:100]}.{secrets.token_hex(4)}.{end}") for end in ("tmp", "old"))
    temporary.mkdir()
    try:
        yield temporary
        if place.exists():
            place.rename(old)
        temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not place.exists():
            old.rename(place)
        shutil.rmtree(old, ignore_errors=True)


class DataSetWriter:
    """Writes pictures as they come, and what has to wait for the last of them at the end."""

    def __init__(self, directory: Path, source: Track, size: int) -> None:
        self.directory, self.source, self.size = directory, source, size
        # Frame, name, K and viewmats of moments, as numbers: arrays that stay would lie between pictures that go, and pin their memory.
        self.moments: list[tuple[Frame, str, list[list[float]], list[list[list[float]]]]] = []
        self.entries: list[dict[str, object]] = []
        for name in ("images", "mattes"):
            (directory / name).mkdir()

    @property
    def kept(self) -> int:
        """Real pictures in the data set."""
        return len(self.moments)

    @property
    def left_out(self) -> int:
        """Real pictures that disagreed."""
        return len(self.entries) - len(self.moments)

    @property
    def pseudo(self) -> int:
        """Pseudo pictures."""
        return sum(len(viewmats) for _, _, _, viewmats in self.moments)

    @property
    def disagreements(self) -> list[float]:
        """Of all real pictures."""
        return [float(entry["disagreement"]) for entry in self.entries]

    def add(self, instant: Instant) -> None:
        """One moment: its pictures, if it is kept, and its place in the report."""
        frame = self.source.frames[instant.frame_idx]
        kept = instant.views is not None
        name = f"{instant.number:05d}"
        self.entries.append(
            {
                "source": frame.image if frame.image is not None else int(frame.frame_idx),
                "image": f"images/{name}.png" if kept else None,
                "disagreement": round(instant.disagreement, 5),
            }
        )
        if not kept:
            return
        self._save(name, to_bytes(torch.cat((instant.image, instant.matte), -1)))
        for j, picture in enumerate(instant.views):
            self._save(view_name(name, j), picture, SYNTHETIC_NOTE)
        self.moments.append((frame, name, instant.K.double().tolist(), instant.viewmats.double().tolist()))

    def _save(self, name: str, picture: Tensor, note: str | None = None) -> None:
        info = PngInfo()
        if note is not None:
            info.add_text("Comment", note)
        for folder, pixels in (("images", picture[..., :3]), ("mattes", picture[..., 3])):
            Image.fromarray(pixels.contiguous().numpy()).save(self.directory / folder / f"{name}.png", pnginfo=info, compress_level=4)

    def _frame(self, frame: Frame, name: str, K: NDArray[np.float64]) -> Frame:
        """The tracked frame as a whole picture of its own, the crop."""
        return replace(
            frame, image=f"images/{name}.png", matte=f"mattes/{name}.png", frame_idx=None, width=self.size, height=self.size, K=K,
            crop=(0.0, 0.0, float(self.size)),
        )  # fmt: skip

    def finish(self, made: dict[str, object], unit: str) -> None:
        """Track and report; `made` says how the pseudo pictures were made, `unit` what a disagreement is measured in."""
        source, real, pseudo = self.source, [], []
        for frame, name, K, viewmats in self.moments:
            taken = self._frame(frame, name, np.array(K))
            real.append(replace(taken, landmarks=_in_crop(frame, np.array(K))))
            for j, viewmat in enumerate(viewmats):
                view = self._frame(frame, view_name(name, j), np.array(K))
                pseudo.append(replace(view, viewmat=np.array(viewmat), landmarks=None, pseudo=taken.image))
        Track(
            head_model=source.head_model, identity=source.identity, frames=real + pseudo, offsets=source.offsets,
            seed=source.seed, metadata={**source.metadata, "pseudo": made}, base=self.directory,
        ).save(self.directory / "track.json")  # fmt: skip
        report = {"schema": SCHEMA, "version": __version__, **made, "disagreement_unit": unit}
        report |= {"kept": self.kept, "left_out": self.left_out, "pseudo_pictures": self.pseudo, "frames": self.entries}
        text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with atomic_write(self.directory / "report.json") as temporary:
            temporary.write_text(text, encoding="utf-8")


class MontageRows:
    """Rows of moments: the real picture, its view drawn anew, the new views; those left out in red. Small pictures only are kept."""

    def __init__(self, numbers: set[int], threshold: float) -> None:
        self.numbers, self.threshold = numbers, threshold
        self.rows: list[NDArray[np.uint8]] = []
        self.more = 0

    def add(self, instant: Instant) -> None:
        """A row for a moment whose number was chosen, or for one of the first others that are left out."""
        rejected = instant.views is None
        if instant.number not in self.numbers:
            if not rejected or self.more == MORE_REJECTED:
                return
            self.more += 1
        tiles = [instant.image, instant.again]
        if instant.views is not None:
            tiles += [x[..., :3] * x[..., 3:] + 1 - x[..., 3:] for x in instant.views[:MONTAGE_VIEWS].float() / 255]
        blank = np.full((TILE, TILE, 3), _BLANK, np.uint8)
        views = min(len(instant.viewmats), MONTAGE_VIEWS)
        row = np.concatenate([*map(_tile, tiles), *[blank] * (2 + views - len(tiles))], axis=1)
        self.rows.append(_labelled(row, instant.disagreement, self.threshold, rejected))

    def save(self, path: Path) -> None:
        """Write what has come."""
        Image.fromarray(np.concatenate(self.rows)).save(path)


def straight(image: Tensor, alpha: Tensor) -> Tensor:
    """Premultiplied pictures (..., 3) as the colors that mattes (..., 1) cut out of them exactly; white where nothing is."""
    return torch.where(alpha > 0.5 / 255, image / alpha.clamp_min(0.5 / 255), torch.ones_like(image)).clamp(0, 1)


def view_name(name: str, j: int) -> str:
    """Of the files of a moment's j-th view."""
    return f"{name}_view{j}"


def _in_crop(frame: Frame, cut: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The frame's landmarks in pixels of the crop whose K is `cut`: an affine map of the whole picture's."""
    if frame.landmarks is None:
        return None
    full = np.asarray(frame.K, np.float64)
    scale = np.diagonal(cut)[:2] / np.diagonal(full)[:2]
    return (np.asarray(frame.landmarks, np.float64)[:, :2] - full[:2, 2]) * scale + cut[:2, 2]


def _is_ours(directory: Path) -> bool:
    try:
        report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and str(report.get("schema", "")).startswith("pseudo-mv/")


def to_bytes(picture: Tensor) -> Tensor:
    """[0, 1] to 8 bits."""
    return (picture.clamp(0, 1) * 255).round().byte()


def _tile(picture: Tensor) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(to_bytes(picture).numpy()).resize((TILE, TILE), Image.Resampling.BOX))


def _labelled(row: NDArray[np.uint8], found: float, threshold: float, rejected: bool) -> NDArray[np.uint8]:
    """The row with its disagreement written into the second picture, framed and crossed out when it is left out."""
    image = Image.fromarray(row)
    draw = ImageDraw.Draw(image)
    color = _RED if rejected else _LABEL
    if rejected:
        draw.rectangle((0, 0, row.shape[1] - 1, TILE - 1), outline=color, width=3)
        draw.line((TILE, 0, 2 * TILE, TILE), fill=color, width=2)
    text = f"{found:.3f} > {threshold:g}: left out" if rejected else f"{found:.3f}"
    draw.rectangle((TILE, TILE - 16, TILE + 6 * len(text) + 5, TILE - 4), fill=(255, 255, 255))
    draw.text((TILE + 3, TILE - 16), text, fill=color)
    return np.asarray(image)
