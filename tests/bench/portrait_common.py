"""What the benches of the one-shot portrait share: cases, a portrait on white, tables that a run can go on with, contact sheets.

Shape legend: B pictures, S side of the portrait's pictures in pixels; pictures (B, S, S, 3) in [0, 1] on white.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from avtool.artifacts.files import atomic_write
from avtool.artifacts.track import Track
from avtool.capture.samples import Samples, load_samples
from avtool.head import HeadModel, HeadParams
from avtool.metrics import summarize
from avtool.portrait.frontal import SourceView
from avtool.portrait.motion import load_motion
from avtool.portrait.network import Encoded, Portrait
from avtool.portrait.oneshot import source_view
from avtool.prior.evaluate import Meters, load_meters, measure, on_background, sample_landmarks, spread, to_bytes
from avtool.prior.photos import beyond_photo

sys.path.insert(0, str(Path(__file__).parent))
from synth_report import view_yaw  # noqa: E402

Pictures = NDArray[np.float32]
Figures = dict[str, float | None]
WHITE = (1.0, 1.0, 1.0)
BATCH = 8
DETECTED_SIDE = 256  # pictures are enlarged to at least this many pixels before faces are looked for
# What is lower where it is better; of all others the highest is best.
LOWER = (
    "lpips", "st_lpips", "landmark_distance", "contour_distance", "expression_distance", "pose_distance", "identity_driver", "seconds_a_step",
    "seconds", "peak_gib", "step_peak_gib",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One person: a source picture, and pictures that are asked for. samples: the source first, then the targets.

    real (1 + T, S, S, 3) are the same pictures on white; beyond (1 + T, S, S) bool where a crop leaves its photo, which is white in
    everything that is compared; landmarks (478, 2) of each in its pixels, or None; yaws (1 + T,) radians.
    """

    name: str
    samples: Samples
    real: Pictures
    beyond: NDArray[np.bool_]
    landmarks: list[NDArray[np.float64] | None]
    yaws: NDArray[np.float64]

    @property
    def targets(self) -> slice:
        """Of the samples."""
        return slice(1, None)

    def source(self) -> SourceView:
        """The source as a portrait is shown it."""
        return source_view(self.samples, self.real.shape[1])[:1]


def load_case(track: Track, name: str, source: int, targets: Sequence[int], size: int, meters: Meters) -> Case:
    """Reads the pictures of a source frame and its target frames."""
    indices = [source, *targets]
    samples = load_samples(track, indices, size, with_matte=True)
    real, beyond = on_background(samples, WHITE), beyond_photo(track, indices, size)[..., 0].numpy()
    real[beyond] = 1.0
    landmarks = [sample_landmarks(track, i, samples, k, meters) for k, i in enumerate(indices)]
    return Case(name, samples, real, beyond, landmarks, np.array([view_yaw(track.frames[i]) for i in indices]))


def name_of(path: Path) -> str:
    """A track's name in tables: its own, or its folder's where all tracks are called alike."""
    generic = path.stem == "track" or path.stem.startswith(("test_", "train"))
    return path.resolve().parent.name if generic else path.stem


class OneShot:
    """A portrait that draws on white. With a portrait of stage static both motions are None, whatever is passed."""

    def __init__(self, path: Path, head: HeadModel) -> None:
        self.head, self.portrait = head, Portrait.load(path).eval()
        self.driven = self.portrait.metadata.get("stage", "static") == "motion"
        name = self.portrait.metadata.get("motion", "tracker")
        if self.driven and name != "tracker":
            raise SystemExit(f"{path}: the benches drive portraits by tracked parameters, this one is driven by {name}")
        self.embedding = load_motion("tracker", head)

    @property
    def size(self) -> int:
        """S."""
        return self.portrait.config.size

    def motion(self, params: HeadParams) -> Tensor | None:
        """(B, M), or None for a static portrait."""
        return self.embedding.embed(params) if self.driven else None

    @torch.no_grad()
    def encode(self, source: SourceView) -> Encoded:
        """One picture on the source's gray."""
        return self.portrait.encode(source)

    @torch.no_grad()
    def draw(
        self, encoded: Encoded, source: HeadParams, driver: HeadParams, pose: HeadParams, viewmats: Tensor, Ks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Colors premultiplied (B, S, S, 3) and coverage (B, S, S, 1): expressions of `driver`, neck and head of `pose`, both (B,)."""
        images, alphas = [], []
        before, after = self.motion(source), self.motion(driver)
        pose = replace(pose, expression=driver.expression, jaw=driver.jaw, eyes=driver.eyes)
        for start in range(0, len(viewmats), BATCH):
            part = slice(start, min(start + BATCH, len(viewmats)))
            planes = self.portrait.planes(encoded, before, None if after is None else after[part])
            count = part.stop - part.start
            shown = self.portrait.render(planes.expand(count, -1, -1, -1, -1), encoded.source, pose.index(part), viewmats[part], Ks[part])
            images.append(shown.image)
            alphas.append(shown.alpha)
        return torch.cat(images), torch.cat(alphas)

    def show(self, case: Case, frozen: bool = False) -> Pictures:
        """The case's targets, each with its own expression, pose and camera; frozen keeps the source's expression."""
        params, count = case.samples.params, len(case.real) - 1
        source, pose = params.index(slice(0, 1)), params.index(case.targets)
        driver = params.index([0] * count) if frozen else pose
        cameras = case.samples.viewmats[case.targets], case.samples.Ks[case.targets]
        return over_white(*self.draw(self.encode(case.source()), source, driver, pose, *cameras))


def over_white(images: Tensor, alphas: Tensor) -> Pictures:
    """Premultiplied pictures as they are compared."""
    return (images + 1 - alphas).clamp(0, 1).numpy().astype(np.float32)


def figures_of(pictures: Pictures, case: Case, meters: Meters) -> list[Figures]:
    """All metrics of every target; `found` is 1 where the landmarks of a face are found in the picture, else 0."""
    rows: list[Figures] = []
    for picture, real, beyond, landmarks in zip(pictures, case.real[1:], case.beyond[1:], case.landmarks[1:]):
        shown = picture.copy()
        shown[beyond] = 1.0
        row = measure(shown, real, landmarks, meters)
        if meters.detect is not None and landmarks is not None:
            row["found"] = float(row["landmark_distance"] is not None)
        rows.append(row)
    return rows


def mean_of(rows: Sequence[Figures]) -> Figures:
    """Of every figure the mean over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: summarize([row.get(name) for row in rows])["mean"] for name in names}


def meters_of(recognizer: Path | None, quick: bool) -> Meters:
    """The metrics of avtool eval; only those without networks in a smoke run."""
    if quick:
        return Meters(absent={"networks": "smoke run"})
    # A picture without a face is a figure here ("found"), not news.
    logging.getLogger("avtool").setLevel(logging.ERROR)
    meters = load_meters(None if recognizer is None else str(recognizer))
    detect = meters.detect
    assert detect is not None

    def enlarged(image: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """Portraits are small, and the detector refuses small faces."""
        factor = -(-DETECTED_SIDE // image.shape[0])
        side = (factor * image.shape[1], factor * image.shape[0])
        found = detect(np.asarray(Image.fromarray(image).resize(side, Image.Resampling.BILINEAR)))
        return None if found is None else found / factor

    return replace(meters, detect=enlarged)


class Tables:
    """tables[title][row][case][figure] in OUT/table.json, written after every case, and OUT/table.md.

    `protocol` is what the figures were made with: a run with another one must not go on in the same folder.
    """

    def __init__(self, folder: Path, protocol: dict[str, object]) -> None:
        self.file, self.protocol = folder / "table.json", protocol
        self.notes: list[str] = []
        self.data: dict[str, dict[str, dict[str, Figures]]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if not self.file.is_file():
            return
        found = json.loads(self.file.read_text(encoding="utf-8"))
        changed = [key for key in protocol if found["protocol"].get(key) != protocol[key]]
        if changed:
            raise SystemExit(f"{self.file}: was made with another {', '.join(changed)}; name another folder")
        self.data = found["tables"]

    def has(self, title: str, row: str, case: str) -> bool:
        """Whether a figure of an earlier run is there."""
        return case in self.data.get(title, {}).get(row, {})

    def put(self, title: str, row: str, case: str, figures: Figures) -> None:
        """Keeps the figures of one case and writes them."""
        self.data.setdefault(title, {}).setdefault(row, {})[case] = figures
        text = json.dumps({"protocol": self.protocol, "tables": self.data}, indent=1) + "\n"
        with atomic_write(self.file) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def column(self, title: str, row: str, figure: str) -> dict[str, float]:
        """A figure of all cases that have it."""
        cases = self.data.get(title, {}).get(row, {})
        return {case: value for case, found in cases.items() if (value := found.get(figure)) is not None}

    def finish(self) -> str:
        """Writes and returns the tables as Markdown: mean ± deviation over the cases, and the first row against each other."""
        parts = [self._table(title) for title in self.data]
        settings = ", ".join(f"{key} {value}" for key, value in self.protocol.items())
        text = "\n".join([*parts, f"Protocol: {settings}.", *(f"{note}." for note in self.notes)]) + "\n"
        with atomic_write(self.file.with_suffix(".md")) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return text

    def _table(self, title: str) -> str:
        rows = self.data[title]
        names = list(dict.fromkeys(name for cases in rows.values() for found in cases.values() for name in found))
        names = [name for name in names if any(self.column(title, row, name) for row in rows)]
        lines = [f"### {title}", "", f"| row | n | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
        first = next(iter(rows))
        for row, cases in rows.items():
            cells = [_cell(list(self.column(title, row, name).values()), len(cases)) for name in names]
            lines.append(f"| {row} | {len(cases)} | {' | '.join(cells)} |")
        for row in list(rows)[1:]:
            cells = [self._gain(title, first, row, name) for name in names]
            lines.append(f"| *{first} against {row}* | | {' | '.join(cells)} |")
        return "\n".join([*lines, ""])

    def _gain(self, title: str, first: str, other: str, name: str) -> str:
        """Difference case by case, and in how many cases the first row is the better one."""
        ours, theirs = self.column(title, first, name), self.column(title, other, name)
        gaps = np.array([ours[case] - theirs[case] for case in ours if case in theirs])
        if not len(gaps):
            return ""
        better = int((gaps < 0).sum() if name in LOWER else (gaps > 0).sum())
        return f"{gaps.mean():+.3f} ± {gaps.std():.3f}, better in {better} of {len(gaps)}"


def _cell(values: list[float], cases: int) -> str:
    if not values:
        return ""
    count = "" if len(values) == cases else f" (n {len(values)})"
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}{count}"


def digest(path: Path | str) -> str:
    """Twelve figures of a file's sha256; a name that is no file stays as it is."""
    file = Path(path)
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.is_file() else str(path)


def write_sheet(file: Path, rows: dict[str, Pictures], columns: int = 10) -> None:
    """A PNG with a line of at most `columns` pictures for each row, all thinned alike, under its name."""
    lines = []
    for label, pictures in rows.items():
        size = pictures.shape[1]
        picked = pictures[spread(len(pictures), columns)]
        strip = Image.new("RGB", (size * len(picked), 14), "white")
        ImageDraw.Draw(strip).text((3, 1), label, fill="black")
        lines.append(np.concatenate([np.asarray(strip), to_bytes(np.concatenate(list(picked), axis=1))]))
    width = max(line.shape[1] for line in lines)
    padded = [np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=255) for line in lines]
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(padded)).save(file)


@dataclass(frozen=True)
class Ran:
    """How a command went: seconds of wall time, its largest resident memory in GiB (children's included), its standard output."""

    seconds: float
    peak_gib: float
    output: str


def run_command(arguments: Sequence[str | Path]) -> Ran:
    """Runs `avtool ARGUMENTS`; a failure ends the bench with the command's own words."""
    command = [sys.executable, "-m", "avtool", *(str(argument) for argument in arguments)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (out, err):
            stream.seek(0)
        words = err.read().decode(errors="replace").strip()
        if process.returncode:
            raise SystemExit(f"avtool {' '.join(command[3:])}: exit {process.returncode}: {words[-800:]}")
        return Ran(seconds, usage.ru_maxrss / 2**20, out.read().decode())


def avtool_offers(command: str, option: str) -> bool:
    """Whether a subcommand has an option, by its help."""
    return option in run_command([command, "--help"]).output


def say(text: str) -> None:
    """To standard error."""
    sys.stderr.write(text + "\n")


Draw = Callable[[Case], Pictures]
