"""How far synthetic people are from real ones: python tests/bench/synth_report.py DATASET --real TRACK [TRACK ...] [--people N]

Compares head crops at 256 pixels: skin tone, contrast, sharpness and brightness of a synthetic data set (avtool synth-data -o DATASET)
with those of tracks of real people, views within 45 degrees of frontal; and runs avtool's face detector, which was trained on real faces,
on the synthetic views among them (bar: 98 % found). Prints a markdown table. The unit of a mean or spread is the crop; every track gives
the same number of crops at most, so that no clip outweighs the others. --sheet writes rows of real crops over rows of synthetic ones.

Skin is the landmarks' face oval inside the matte without eyes, brows and mouth, eroded: hair, glasses and beards within the oval count.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from avtool.runtime import prepare

prepare()  # as the program does, before torch is imported

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion, gaussian_filter, laplace
from skimage.color import rgb2lab

from avtool.artifacts.track import Frame, Track
from avtool.capture.detector import FaceDetector
from avtool.capture.samples import load_samples
from avtool.rotations import axis_angle_to_matrix

SIZE = 256
MAX_YAW = math.radians(45)
FOUND_BAR = 0.98
MIN_OVERLAP = 0.25  # of a detection with the landmarks' box: boxes reach from the brows to the chin, landmarks a little further
MIN_SKIN = 800  # pixels at 256 x 256, less is no basis for statistics
# MediaPipe's indices of contours on its face mesh.
OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136, 172, 58, 132, 93,
    234, 127, 162, 21, 54, 103, 67, 109,
)
HOLES = (
    (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
    (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
    (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185),
    (70, 63, 105, 66, 107, 55, 65, 52, 53, 46),
    (300, 293, 334, 296, 336, 285, 295, 282, 283, 276),
)
# What is measured, and what more and less of it is called.
MEASURES = {
    "skin L*": ("lighter", "darker"), "skin a*": ("redder", "less red"), "skin b*": ("yellower", "less yellow"),
    "spread of L* on skin": ("more varied", "more even"), "spread of a* on skin": ("more varied", "more even"),
    "spread of b* on skin": ("more varied", "more even"), "contrast on skin (sd of luminance)": ("stronger", "weaker"),
    "contrast of the person (sd of luminance)": ("stronger", "weaker"), "sharpness of skin (Laplacian variance x 1000)": ("sharper", "softer"),
    "high-frequency share on skin (%)": ("sharper", "softer"), "darkest hundredth of the person": ("brighter", "darker"),
    "median luminance of the person": ("brighter", "darker"), "brightest hundredth of the person": ("brighter", "darker"),
}


@dataclass(frozen=True)
class Crop:
    """rgb (S, S, 3) and matte (S, S) in [0, 1]; landmarks (478, 2) pixels of the crop; yaw radians; name for messages."""

    rgb: NDArray[np.float32]
    matte: NDArray[np.float32]
    landmarks: NDArray[np.float64]
    yaw: float
    name: str

    def on_white(self) -> NDArray[np.uint8]:
        """(S, S, 3)."""
        matte = self.matte[..., None]
        return np.round(255 * (self.rgb * matte + 1 - matte)).astype(np.uint8)


def view_yaw(frame: Frame) -> float:
    """Radians by which the camera stands to the left (positive) of where the head, its turn included, faces."""
    turns = torch.tensor(np.stack([frame.neck, frame.head]), dtype=torch.float64)
    neck, head = axis_angle_to_matrix(turns).numpy()
    toward = (neck @ head).T @ np.asarray(frame.viewmat)[:3, :3].T @ [0.0, 0.0, -1.0]
    return math.atan2(toward[0], toward[2])


def read_crops(track: Track, count: int, max_yaw: float = MAX_YAW) -> list[Crop]:
    """At most `count` head crops of a track, evenly spread over its frames with landmarks and a yaw below `max_yaw`."""
    yaws = [view_yaw(frame) for frame in track.frames]
    usable = [i for i, frame in enumerate(track.frames) if frame.landmarks is not None and abs(yaws[i]) <= max_yaw]
    if not usable:
        return []
    picked = [usable[k] for k in np.unique(np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(int))]
    samples = load_samples(track, picked, SIZE)
    crops = []
    for k, i in enumerate(picked):
        x0, y0, side = track.frames[i].crop
        points = (np.asarray(track.frames[i].landmarks) - (x0, y0)) * SIZE / side
        crops.append(Crop(samples.images[k].numpy(), samples.mattes[k, ..., 0].numpy(), points, yaws[i], f"{track.base.name} {i}"))
    return crops


def skin_mask(crop: Crop) -> NDArray[np.bool_]:
    """(S, S): inside the face oval and the matte, outside of eyes, brows and mouth, eroded by 3 pixels."""
    image = Image.new("1", (SIZE, SIZE))
    draw = ImageDraw.Draw(image)
    draw.polygon([tuple(point) for point in crop.landmarks[list(OVAL)]], fill=1)
    for hole in HOLES:
        draw.polygon([tuple(point) for point in crop.landmarks[list(hole)]], fill=0)
    return binary_erosion(np.asarray(image) & (crop.matte > 0.98), iterations=3)


def measure(crop: Crop) -> list[float] | None:
    """Values of MEASURES in order; None where too little skin is seen."""
    skin = skin_mask(crop)
    if skin.sum() < MIN_SKIN:
        return None
    lab = rgb2lab(crop.rgb)[skin]
    luminance = (crop.rgb @ np.array([0.2126, 0.7152, 0.0722], np.float32)).astype(np.float64)
    person = luminance[crop.matte > 0.95]
    fine = luminance - gaussian_filter(luminance, 1.5)
    variance = luminance[skin].var()
    low, middle, high = np.percentile(person, (1, 50, 99))
    return [
        *lab.mean(0), *lab.std(0), math.sqrt(variance), person.std(), 1000 * laplace(luminance)[skin].var(),
        100 * fine[skin].var() / max(variance, 1e-9), low, middle, high,
    ]


def verdict(real: NDArray[np.float64], synthetic: NDArray[np.float64], words: tuple[str, str]) -> str:
    """How the synthetic values (M,) differ from the real ones (N,), in standard deviations of the real ones."""
    if len(real) < 2:
        return "one real crop says nothing of their spread"
    gap = (synthetic.mean() - real.mean()) / max(real.std(), 1e-9)
    if abs(gap) < 0.25:
        return f"alike ({gap:+.1f} sd)"
    degree = "a little" if abs(gap) < 1 else "clearly" if abs(gap) < 2 else "far"
    return f"synthetic is {degree} {words[int(gap < 0)]} ({gap:+.1f} sd)"


def table(real: list[Crop], synthetic: list[Crop]) -> str:
    """The comparison in markdown."""
    values = [np.array([row for crop in crops if (row := measure(crop)) is not None]) for crops in (real, synthetic)]
    lines = [
        f"| measure | {len(values[0])} real crops | {len(values[1])} synthetic crops | difference |", "| --- | ---: | ---: | --- |",
    ]
    for k, (name, words) in enumerate(MEASURES.items()):
        columns = [v[:, k] for v in values]
        cells = [f"{column.mean():.3g} ± {column.std():.2g}" for column in columns]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {verdict(*columns, words)} |")
    return "\n".join(lines)


def is_found(detector: FaceDetector, crop: Crop) -> bool:
    """Whether the detector sees a face where the landmarks are, in the crop on white."""
    low, high = crop.landmarks.min(0), crop.landmarks.max(0)
    for face in detector.detect(crop.on_white()):
        shared = np.clip(np.minimum(face.box[2:], high) - np.maximum(face.box[:2], low), 0, None).prod()
        union = (face.box[2:] - face.box[:2]).prod() + (high - low).prod() - shared
        if shared / union > MIN_OVERLAP:
            return True
    return False


def sheet(rows: Iterable[list[Crop]], columns: int) -> NDArray[np.uint8]:
    """(H, W, 3): crops on white, `columns` a row, each list evenly spread over its row or rows."""
    lines = []
    for crops in rows:
        picked = [crops[k] for k in np.linspace(0, len(crops) - 1, min(2 * columns, len(crops))).round().astype(int)]
        for start in range(0, len(picked), columns):
            tiles = [crop.on_white() for crop in picked[start : start + columns]]
            tiles += [np.full((SIZE, SIZE, 3), 255, np.uint8)] * (columns - len(tiles))
            lines.append(np.concatenate(tiles, 1))
        lines.append(np.full((12, columns * SIZE, 3), 90, np.uint8))
    return np.concatenate(lines[:-1])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="folder with person_*/track.json")
    parser.add_argument("--real", type=Path, nargs="+", required=True, help="tracks of real people")
    parser.add_argument("--people", type=int, default=0, help="only the first so many synthetic people; 0: all")
    parser.add_argument("--crops", type=int, default=8, help="at most so many crops of a track are compared (default 8)")
    parser.add_argument("--sheet", type=Path, default=Path("synth_report.png"), help="picture to write (default synth_report.png)")
    parser.add_argument("--columns", type=int, default=8, help="crops a row of the picture (default 8)")
    parser.add_argument("--markdown", type=Path, help="also write the report here")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    folders = sorted(args.dataset.glob("person_*/track.json"))
    folders = folders[: args.people] if args.people else folders
    if not folders:
        print(f"{args.dataset}: no person_*/track.json", file=sys.stderr)
        return 1
    real = [crop for path in args.real for crop in read_crops(Track.load(path), args.crops)]
    if not real:
        print("no frame of the real tracks has landmarks and is seen from within 45 degrees", file=sys.stderr)
        return 1
    detector, compared, missed, seen = FaceDetector(), [], [], 0
    for path in folders:
        crops = read_crops(Track.load(path), sys.maxsize)
        seen += len(crops)
        missed += [crop for crop in crops if not is_found(detector, crop)]
        compared += [crops[k] for k in np.unique(np.linspace(0, len(crops) - 1, min(args.crops, len(crops))).round().astype(int))]
    share = 1 - len(missed) / max(seen, 1)
    mark = "met" if share >= FOUND_BAR else "missed"
    report = table(real, compared) + (
        f"\n\nFace detector: {100 * share:.1f} % of {seen} synthetic views within {math.degrees(MAX_YAW):.0f} degrees of frontal found "
        f"(bar {100 * FOUND_BAR:.0f} %: {mark})."
    )
    if missed:
        report += " Not found: " + ", ".join(crop.name for crop in missed) + "."
    print(report)
    if args.markdown:
        args.markdown.write_text(report + "\n", encoding="utf-8")
    Image.fromarray(sheet([real, compared, *([missed] if missed else [])], args.columns)).save(args.sheet)
    return 0 if share >= FOUND_BAR else 1


if __name__ == "__main__":
    sys.exit(main())
