"""The curve of a training log: PSNR of refined and of plain pictures over the steps, as a PNG.

Every dot is a line of the log (one batch), the line the mean of the WINDOW lines around it.

Usage: python tests/bench/training_curve.py avtool/prior/data/default.log -o tests/bench/default_prior_curve.png [--title TEXT]
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

KINDS = {"psnr": ("refined", (200, 90, 20)), "psnr_plain": ("plain splats", (30, 90, 170))}
WINDOW = 9
WIDTH, HEIGHT, MARGIN = 900, 420, 56
SCALE = 2  # drawn so much larger and scaled down, for smooth lines


def read_log(path: Path) -> dict[str, NDArray[np.float64]]:
    """Columns of the lines "step N: name value ..." that all of them have."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        found = re.match(r"step (\d+): (.*)", line)
        if found:
            words = found[2].split()
            rows.append({"step": float(found[1])} | {name: float(value) for name, value in zip(words[::2], words[1::2])})
    columns = {key: np.array([row[key] for row in rows]) for key in rows[0] if all(key in row for row in rows)} if rows else {}
    if not columns.keys() & KINDS.keys():
        raise SystemExit(f"{path}: expected lines like 'step 100: loss 0.4 psnr 15', found none")
    return columns


def smoothed(values: NDArray[np.float64], window: int = WINDOW) -> NDArray[np.float64]:
    """Means over `window` values around each, over fewer at the ends."""
    half = window // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def draw_curve(columns: dict[str, NDArray[np.float64]], title: str) -> Image.Image:
    """A chart of every one of KINDS that the log has."""
    image = Image.new("RGB", (SCALE * WIDTH, SCALE * HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    kinds = [key for key in KINDS if key in columns]
    steps, values = columns["step"], np.concatenate([columns[key] for key in kinds])
    low, high, last = 2 * np.floor(values.min() / 2), 2 * np.ceil(values.max() / 2), float(steps.max())

    def place(step: float, value: float) -> tuple[float, float]:
        x = MARGIN + (WIDTH - 2 * MARGIN) * step / last
        return SCALE * x, SCALE * (HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - low) / (high - low))

    def write(x: float, y: float, text: str, anchor: str, color: tuple[int, int, int] = (60, 60, 60)) -> None:
        draw.text((x, y), text, color, anchor=anchor, font_size=13 * SCALE)

    for value in np.arange(low, high + 1, 2):
        (x0, y), (x1, _) = place(0, value), place(last, value)
        draw.line((x0, y, x1, y), (225, 225, 225), SCALE)
        write(x0 - 8 * SCALE, y, f"{value:.0f} dB", "rm")
    for step in np.linspace(0, last, 7):
        x, y = place(step, low)
        write(x, y + 8 * SCALE, f"{step:,.0f}", "mt")
    write(SCALE * WIDTH / 2, SCALE * (HEIGHT - 8), "steps", "mb")
    write(SCALE * MARGIN, SCALE * 14, title, "lt")
    for k, key in enumerate(kinds):
        label, color = KINDS[key]
        for step, value in zip(steps, columns[key]):
            x, y = place(step, value)
            draw.ellipse((x - SCALE, y - SCALE, x + SCALE, y + SCALE), tuple((2 * c + 3 * 255) // 5 for c in color))
        draw.line([place(*point) for point in zip(steps, smoothed(columns[key]))], color, 2 * SCALE)
        write(SCALE * (WIDTH - MARGIN), SCALE * (HEIGHT - MARGIN - 40 + 18 * k), label, "rm", color)
    return image.resize((WIDTH, HEIGHT), Image.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--title", default="PSNR of training pictures")
    args = parser.parse_args()
    draw_curve(read_log(args.log), args.title).quantize(64).save(args.output, optimize=True)
    sys.stderr.write(f"{args.output}\n")


if __name__ == "__main__":
    main()
