"""What drives a portrait: self- and cross-reenactment, 3D consistency and speed of portraits of stage motion, on clips of real people.

Of each clip the source is the frame of its first 40 % that is nearest to frontal and neutral; drivers are frames of its last 60 %, matte on
white, at the portrait's size, each with its own tracked camera and pose. Figures are means over a clip's frames, the tables' means and
deviations are over clips (or pairs of clips).

self-reenactment   PSNR, SSIM, LPIPS kinds, landmarks and identity against the real frame; and what avtool's tracker reads off the result:
                   expression_distance, the mean absolute difference of the 52 weights to the driver's, and pose_distance, the angle in
                   degrees between the heads in the camera. The result is put back to where the driver's frame has the crop, so that focal
                   length and identity are known to the tracker; `tracked` is the share in which it finds a face. Rows: each portrait; the same with the source's expression kept
                   (v_d = v_s) under the driver's pose; and the real frames tracked again in the same way, which is the tracker's floor.
cross-reenactment  every clip's source driven by every other clip (weights as they are): identity_source and identity_driver, the
                   similarity of the result with the source picture and with the driver's frame; expression and pose as above. The row
                   "real frames" has the source person's own later frames in place of results.
novel views        self-agreement: a frame's result is drawn from p and from q, the driver's camera turned about the head by --turn degrees to
                   either side. The picture from p is encoded as a new source, with the same motion as source and driver, and drawn at q.
                   Figures compare that with the direct picture at q: a portrait whose volume is consistent makes the same head of its
                   own side view. identity_across is the similarity of the direct pictures at p and q. Of both, the similarities are of
                   the kind of the paper's .82 -> .91 (it does not say how exactly that was taken); a blurred portrait agrees with itself
                   too, so these figures count only beside those of self-reenactment.
speed              frames a second of `avtool reenact PORTRAIT --source`, with and without tracking the driver, and its memory; seconds of
                   a training step of two pictures and memory of `avtool train-portrait` on --data.

Usage: python tests/bench/portrait_motion.py OUT --portrait "with pseudo"=a.safetensors "without pseudo"=b.safetensors
       --clips TRACK ... [--frames 40] [--turn 25] [--recognizer FILE] [--data heads/] [--only TABLE ...] [--quick]
       TRACK: avtool track clip.mp4 -o clip.json; the first portrait is compared with every other row
Writes OUT/table.md, OUT/table.json (a run goes on where one stopped) and OUT/sheets/*.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from avtool.runtime import prepare

prepare()  # as the program does, before torch is imported

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from portrait_common import (  # noqa: E402
    Case, Figures, OneShot, Pictures, Tables, avtool_offers, digest, figures_of, load_case, mean_of, meters_of, name_of, over_white, run_command, say,
    view_yaw, write_sheet,
)  # fmt: skip

from avtool.artifacts.track import Frame, Track  # noqa: E402
from avtool.errors import AvtoolError  # noqa: E402
from avtool.head import HeadModel, HeadParams, load_head_model  # noqa: E402
from avtool.metrics import align_face, cosine  # noqa: E402
from avtool.portrait.frontal import SOURCE_BACKGROUND, SourceView  # noqa: E402
from avtool.prior.evaluate import Meters, measure, spread, to_bytes  # noqa: E402
from avtool.rotations import axis_angle_to_matrix  # noqa: E402

TABLES = ("self-reenactment", "cross-reenactment", "novel views", "speed")
SOURCE_SHARE = 0.4
YAW_UNIT, EXPRESSION_UNIT = np.radians(10), 3.0  # a turn and a sum of weights that make a source equally worse
REAL = "real frames"
NOVEL_FRAMES = 8
STEPS = 21  # of the run that gives the cost of a step: the first warms up and is not counted


@dataclass(frozen=True)
class Clip:
    """A tracked clip: its case (source, then drivers) and their frames in the track."""

    name: str
    track: Track
    frames: list[Frame]
    case: Case

    @property
    def drivers(self) -> list[Frame]:
        """The frames of the case's targets."""
        return self.frames[1:]


def load_clip(path: Path, head: HeadModel, size: int, count: int, meters: Meters) -> Clip:
    """Chooses source and drivers of a track and reads them."""
    track = Track.load(path, head)
    cut = max(1, int(SOURCE_SHARE * len(track.frames)))
    unlike = [abs(view_yaw(f)) / YAW_UNIT + float(np.abs(f.expression).sum()) / EXPRESSION_UNIT for f in track.frames[:cut]]
    source = int(np.argmin(unlike))
    later = list(range(cut, len(track.frames)))
    indices = [source, *(later[k] for k in spread(len(later), count))]
    case = load_case(track, name_of(path), source, indices[1:], size, meters)
    return Clip(name_of(path), track, [track.frames[i] for i in indices], case)


def put_back(picture: NDArray[np.float32], frame: Frame) -> NDArray[np.uint8]:
    """A crop (S, S, 3) where it belongs in its frame, (H, W, 3) on white."""
    x, y, side = (int(round(float(value))) for value in frame.crop)
    canvas = Image.new("RGB", (frame.width, frame.height), "white")
    canvas.paste(Image.fromarray(to_bytes(picture)).resize((side, side), Image.Resampling.BICUBIC), (x, y))
    return np.asarray(canvas)


def track_again(pictures: Pictures, frames: Sequence[Frame], identity: NDArray, head: HeadModel) -> list[Frame | None]:
    """What the tracker reads off pictures of a known person seen by known cameras; None where it finds no face."""
    from avtool.tracking import TrackingOptions, track_photos

    options = TrackingOptions(mattes=False, photometric=False)
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name) / f"{k:04d}.png" for k in range(len(pictures))]
        for path, picture, frame in zip(paths, pictures, frames):
            Image.fromarray(put_back(picture, frame)).save(path)
        try:
            focal = float(frames[0].K[0, 0])
            found = track_photos(paths, head, focal=focal, photometric=False, identity=np.asarray(identity), options=options)
        except AvtoolError:  # none of them shows a face
            return [None] * len(paths)
        by_name = {Path(frame.image).name: frame for frame in found.frames}
        return [by_name.get(path.name) for path in paths]


def turn_of(frame: Frame) -> NDArray[np.float64]:
    """(3, 3) the head's rotation in the camera."""
    neck, head = axis_angle_to_matrix(torch.tensor(np.stack([frame.neck, frame.head]), dtype=torch.float64)).numpy()
    return np.asarray(frame.viewmat)[:3, :3] @ neck @ head


def motion_distance(found: Frame | None, driver: Frame) -> Figures:
    """Expression and pose of a re-tracked picture against its driver's."""
    if found is None:
        return {"tracked": 0.0, "expression_distance": None, "pose_distance": None}
    between = turn_of(found) @ turn_of(driver).T
    angle = np.degrees(np.arccos(np.clip((np.trace(between) - 1) / 2, -1, 1)))
    gap = float(np.abs(np.asarray(found.expression) - driver.expression).mean())
    return {"tracked": 1.0, "expression_distance": gap, "pose_distance": float(angle)}


def motion_figures(pictures: Pictures, drivers: Sequence[Frame], identity: NDArray, head: HeadModel) -> list[Figures]:
    """Of each picture."""
    return [motion_distance(found, driver) for found, driver in zip(track_again(pictures, drivers, identity, head), drivers)]


def self_reenactment(shown: dict[str, OneShot], clips: list[Clip], meters: Meters, tables: Tables, sheets: Path) -> None:
    """The clip's person driven by the clip."""
    title = TABLES[0]
    rows: dict[str, Callable[[Case], Pictures]] = {name: portrait.show for name, portrait in shown.items()}
    rows |= {f"{name}, frozen expression": lambda case, p=portrait: p.show(case, frozen=True) for name, portrait in shown.items()}
    rows[REAL] = lambda case: case.real[1:]
    head = next(iter(shown.values())).head
    for clip in clips:
        if all(tables.has(title, row, clip.name) for row in rows):
            continue
        lines = {}
        for row, draw in rows.items():
            pictures = draw(clip.case)
            figures = mean_of(motion_figures(pictures, clip.drivers, clip.track.identity, head))
            # Against itself a real frame has no distance.
            tables.put(title, row, clip.name, figures if row == REAL else mean_of(figures_of(pictures, clip.case, meters)) | figures)
            lines[row] = np.concatenate([clip.case.real[:1], pictures[spread(len(pictures), 9)]])
        write_sheet(sheets / f"self_{clip.name}.png", lines)
        say(f"self-reenactment of {clip.name}")


def embedding(picture: NDArray[np.float32], landmarks: NDArray | None, meters: Meters) -> NDArray[np.float32] | None:
    """The recognizer's, of a picture with landmarks, which are detected where None; None where there is no face."""
    if meters.recognizer is None or meters.detect is None:
        return None
    landmarks = meters.detect(to_bytes(picture)) if landmarks is None else landmarks
    return None if landmarks is None else meters.recognizer(align_face(to_bytes(picture), landmarks))


def similarity(a: NDArray | None, b: NDArray | None) -> float | None:
    """Cosine of two embeddings that exist."""
    return None if a is None or b is None else cosine(a, b)


def driven_by(portrait: OneShot, source: Clip, driver: Clip, frozen: bool) -> Pictures:
    """The source's person with the driver's motion, at the driver's cameras."""
    own, theirs = source.case.samples.params.index(slice(0, 1)), driver.case.samples
    count = len(driver.drivers)
    pose = replace(theirs.params.index(slice(1, None)), identity=own.identity[0], offsets=own.offsets)
    moved = own.index([0] * count) if frozen else pose
    encoded = portrait.encode(source.case.source())
    return over_white(*portrait.draw(encoded, own, moved, pose, theirs.viewmats[1:], theirs.Ks[1:]))


def identity_figures(pictures: Pictures, source: Clip, driver: Clip, meters: Meters) -> list[Figures]:
    """Similarity of each picture with the source and with the driver's frame."""
    wanted = embedding(source.case.real[0], source.case.landmarks[0], meters)
    rows: list[Figures] = []
    for k, picture in enumerate(pictures):
        own = embedding(picture, None, meters)
        other = embedding(driver.case.real[1 + k], driver.case.landmarks[1 + k], meters)
        rows.append({"identity_source": similarity(own, wanted), "identity_driver": similarity(own, other)})
    return rows


def cross_reenactment(shown: dict[str, OneShot], clips: list[Clip], meters: Meters, tables: Tables, sheets: Path) -> None:
    """Every clip's person driven by every other clip."""
    title, head = TABLES[1], next(iter(shown.values())).head
    rows: dict[str, Callable[[Clip, Clip], Pictures]] = {}
    for name, portrait in shown.items():
        rows[name] = lambda a, b, p=portrait: driven_by(p, a, b, frozen=False)
        rows[f"{name}, frozen expression"] = lambda a, b, p=portrait: driven_by(p, a, b, frozen=True)
    rows[REAL] = lambda a, b: a.case.real[1:]
    for source, driver in ((a, b) for a in clips for b in clips if a is not b):
        case = f"{source.name} by {driver.name}"
        lines = {case: driver.case.real[1:]}
        for row, draw in rows.items():
            if tables.has(title, row, case):
                continue
            pictures = draw(source, driver)
            figures = mean_of(identity_figures(pictures[: len(driver.drivers)], source, driver, meters))
            if row != REAL:
                figures |= mean_of(motion_figures(pictures, driver.drivers, source.track.identity, head))
                lines[row] = pictures
            tables.put(title, row, case, figures)
        if len(lines) > 1:
            write_sheet(sheets / f"cross_{case.replace(' ', '_')}.png", lines)
            say(f"cross-reenactment of {case}")


def turned(viewmats: Tensor, centers: Tensor, angle: float) -> Tensor:
    """Cameras (B, 4, 4) that go around points (B, 3) by an angle in radians, to the person's left."""
    rotation = axis_angle_to_matrix(torch.tensor([0.0, -angle, 0.0]))  # the world turns the other way
    around = torch.eye(4).repeat(len(viewmats), 1, 1)
    around[:, :3, :3] = rotation
    around[:, :3, 3] = centers - centers @ rotation.mT
    return viewmats @ around


def both_sides(portrait: OneShot, clip: Clip, angle: float) -> tuple[Pictures, Pictures, Pictures]:
    """Direct pictures at p and at q, and those at q of the portrait that is made of the picture at p."""
    picked = [1 + k for k in spread(len(clip.drivers), NOVEL_FRAMES)]
    samples = clip.case.samples
    params, Ks = samples.params.index(picked), samples.Ks[picked]
    own: HeadParams = samples.params.index(slice(0, 1))
    with torch.no_grad():
        centers = portrait.head.landmarks(portrait.head(params).vertices).mean(1)
    p, q = (turned(samples.viewmats[picked], centers, sign * angle) for sign in (1, -1))
    encoded = portrait.encode(clip.case.source())
    colors, alphas = portrait.draw(encoded, own, params, params, p, Ks)
    at_q = over_white(*portrait.draw(encoded, own, params, params, q, Ks))
    again = []
    for k in range(len(picked)):
        one = params.index(slice(k, k + 1))
        picture = (colors[k : k + 1] + (1 - alphas[k : k + 1]) * SOURCE_BACKGROUND).clamp(0, 1)
        encoded = portrait.encode(SourceView(picture, one, p[k : k + 1], Ks[k : k + 1]))
        again.append(over_white(*portrait.draw(encoded, one, one, one, q[k : k + 1], Ks[k : k + 1])))
    return over_white(colors, alphas), at_q, np.concatenate(again)


def novel_views(shown: dict[str, OneShot], clips: list[Clip], meters: Meters, tables: Tables, sheets: Path, angle: float) -> None:
    """Self-agreement of every portrait on every clip."""
    title = TABLES[2]
    for clip in clips:
        lines = {}
        for name, portrait in shown.items():
            if tables.has(title, name, clip.name):
                continue
            at_p, at_q, again = both_sides(portrait, clip, angle)
            rows = []
            for first, direct, second in zip(at_p, at_q, again):
                landmarks = None if meters.detect is None else meters.detect(to_bytes(direct))
                across = similarity(embedding(first, None, meters), embedding(direct, landmarks, meters))
                rows.append(measure(second, direct, landmarks, meters) | {"identity_across": across})
            tables.put(title, name, clip.name, mean_of(rows))
            lines |= {f"{name}, from p": at_p, f"{name}, from q": at_q, f"{name}, from q, made of p": again}
        if lines:
            write_sheet(sheets / f"novel_{clip.name}.png", lines)
            say(f"novel views of {clip.name}")


def reenact_speed(portrait: Path, source: Path, driver: Path, size: int, frames: int) -> tuple[dict, float]:
    """The report of `avtool reenact` and its memory in GiB."""
    with tempfile.TemporaryDirectory() as name:
        arguments = ["--size", size, "--max-frames", frames, "-o", Path(name) / "out.mp4", "--json", "-q"]
        ran = run_command(["reenact", portrait, "--source", source, driver, *arguments])
    return json.loads(ran.output), ran.peak_gib


def step_cost(portrait: Path, stage: str, data: Path, batch: int) -> Figures:
    """Seconds and memory of a training step that starts from a portrait: the mean of all steps but the first, as the command reports it."""
    with tempfile.TemporaryDirectory() as name:
        arguments = ["--steps", STEPS, "--batch-size", batch, "-o", Path(name) / "p.safetensors", "--json", "-q"]
        report = json.loads(run_command(["train-portrait", data, "--stage", stage, "--init", portrait, *arguments]).output)
    return {"seconds_a_step": report["ms"] / 1000, "step_peak_gib": report.get("memory_gb")}


def speed(files: dict[str, Path], shown: dict[str, OneShot], clip: Path, data: Path | None, tables: Tables, frames: int) -> None:
    """Of every portrait, on the first clip."""
    title, track = TABLES[3], Track.load(clip)
    for name, file in files.items():
        case = f"{name_of(clip)}, {frames} frames"
        if tables.has(title, name, case):
            continue
        figures: Figures = {}
        if track.video is not None and avtool_offers("reenact", "--source"):
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder) / "source.png"
                write_first_frame(track, source)
                tracked, figures["peak_gib"] = reenact_speed(file, source, clip, shown[name].size, frames)
                whole, _ = reenact_speed(file, source, track.resolve(track.video), shown[name].size, frames)
            figures["frames_per_second"] = tracked.get("frames_per_second")
            figures["frames_per_second_with_tracking"] = whole.get("frames_per_second_with_tracking")
        else:
            tables.notes.append("reenact's speed is absent: the clip's track names no video, or the command takes no --source")
        if data is not None:
            figures |= step_cost(file, "motion" if shown[name].driven else "static", data, batch=2)
        if figures:
            tables.put(title, name, case, figures)


def write_first_frame(track: Track, file: Path) -> None:
    """The clip's first tracked frame as a photo."""
    from avtool.capture.video import read_frames

    _, pixels = next(iter(read_frames(track.resolve(track.video), [int(track.frames[0].frame_idx)])))
    Image.fromarray(pixels).save(file)


def named(argument: str) -> tuple[str, Path]:
    """NAME=FILE, or FILE, whose name is its stem."""
    name, equals, file = argument.partition("=")
    return (name, Path(file)) if equals else (Path(argument).stem, Path(argument))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--portrait", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--clips", type=Path, nargs="+", required=True, help="tracks of clips")
    parser.add_argument("--frames", type=int, default=40, help="drivers of each clip")
    parser.add_argument("--turn", type=float, default=25.0, help="degrees to either side of the novel views")
    parser.add_argument("--recognizer", type=Path, help="face recognizer for identity similarity (.onnx, or a trusted .pt)")
    parser.add_argument("--data", type=Path, help="a data set for the cost of a training step")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--quick", action="store_true", help="three drivers, PSNR and SSIM alone: a smoke test, no figures")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    head, files = load_head_model(), dict(named(argument) for argument in args.portrait)
    shown = {name: OneShot(file, head) for name, file in files.items()}
    sizes = {portrait.size for portrait in shown.values()}
    if len(sizes) > 1:
        raise SystemExit(f"portraits of one size are compared, found sizes {sorted(sizes)}")
    size, frames, meters = sizes.pop(), 3 if args.quick else args.frames, meters_of(args.recognizer, args.quick)
    protocol = {f"portrait {name}": digest(file) for name, file in files.items()}
    protocol |= {"size": size, "frames": frames, "turn": args.turn, "recognizer": args.recognizer and args.recognizer.name, "quick": args.quick}
    tables, sheets = Tables(args.out, protocol), args.out / "sheets"
    tables.notes += [f"{name} is absent: {reason}" for name, reason in meters.absent.items()]
    clips = [load_clip(path, head, size, frames, meters) for path in args.clips] if set(args.only) - {"speed"} else []
    if "self-reenactment" in args.only:
        self_reenactment(shown, clips, meters, tables, sheets)
    if "cross-reenactment" in args.only:
        cross_reenactment(shown, clips, meters, tables, sheets)
    if "novel views" in args.only:
        novel_views(shown, clips, meters, tables, sheets, float(np.radians(args.turn)))
    if "speed" in args.only:
        speed(files, shown, args.clips[0], args.data, tables, 10 if args.quick else 100)
    sys.stdout.write(tables.finish())
    return 0


if __name__ == "__main__":
    sys.exit(main())
