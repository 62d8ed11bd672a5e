"""One photo in, other views out: a portrait against the mean training head and against the photo on the tracked mesh.

Synthetic people that the portrait has not seen, exact cameras: of each the view nearest to the front goes in, the other views of the same
moment within 40 degrees come out, at the portrait's size, matte on white. Figures are means over a person's views, the tables' means and
deviations are over people. Rows:
  portrait             one pass; a portrait of stage motion is told the source's expression as source and driver, a static one nothing
  mean head            HeadGAP's --prior with the mean of its training people's codes on the mean shape, in this moment's pose and
                       expression, at the same camera
  mean head, own shape the same on this person's exact (or tracked) shape, which is more than the portrait is told
  photo on the mesh    projection.py, on the exact (or tracked) mesh: more than one photo gives

Real people with --real TRACK (avtool track of a clip in which the camera moves, as nerfies_book's orbit; every frame's tracked camera
and pose count as true) and --scan FOLDER (renderings of a head scan with exact cameras: views/cameras.json and an .obj; one photo is
tracked, and the scan's depth at its landmarks gives the scale that joins both spaces). There a case is a view, and n is their number.

Usage: python tests/bench/portrait_static.py OUT --portrait static.safetensors [--held-out others/] [--real TRACK ...] [--scan FOLDER]
       [--count 12] [--prior default] [--recognizer FILE] [--quick]
       others/: avtool synth-data --identities 12 --views 8 --expressions 1 --size SIDE --seed NEW (at the portrait's size or larger)
Writes OUT/table.md, OUT/table.json (a run goes on where one stopped) and OUT/sheets/PERSON.png to look at.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
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
    Case, Draw, OneShot, Pictures, Tables, digest, figures_of, load_case, mean_of, meters_of, name_of, say, view_yaw, write_sheet,
)  # fmt: skip
from projection import ProjectedPhoto, rasterize, to_samples  # noqa: E402

from avtool.artifacts.track import Frame, Track  # noqa: E402
from avtool.capture.matte import head_crop  # noqa: E402
from avtool.capture.samples import crop_square  # noqa: E402
from avtool.head import HeadModel, load_head_model  # noqa: E402
from avtool.portrait.dataset import group_moments  # noqa: E402
from avtool.prior.avatar import Avatar  # noqa: E402
from avtool.prior.dataset import find_tracks  # noqa: E402
from avtool.prior.evaluate import Meters, spread  # noqa: E402
from avtool.prior.prior import Prior  # noqa: E402

MAX_YAW = np.radians(40.0)
MIN_TURN = np.radians(3.0)  # of a real frame against the source: nearer ones show nothing new
REAL_VIEWS = 12
SYNTHETIC = "synthetic people"
MATTE_SIDE = 256


@dataclass(frozen=True)
class Views:
    """A person's source frame and the target frames to compare, in a track."""

    title: str
    name: str
    track: Track
    source: int
    targets: list[int]

    @property
    def single(self) -> bool:
        """Whether the table is of one person, and its cases are views."""
        return self.title != SYNTHETIC


def frontal_moment(track: Track) -> list[int]:
    """Frames of the moment that has the most frontal view."""
    yaws = [abs(view_yaw(frame)) for frame in track.frames]
    moments = group_moments(track.params(), torch.arange(len(yaws)))
    return min((moment.tolist() for moment in moments if len(moment) > 1), key=lambda group: min(yaws[i] for i in group), default=[])


def synthetic_views(folder: Path, head: HeadModel, count: int) -> Iterator[Views]:
    """The first people of a data set, who must have a moment with several views."""
    for path in find_tracks([folder])[:count]:
        track = Track.load(path, head)
        moment = frontal_moment(track)
        if not moment:
            raise SystemExit(f"{path}: no moment has two views; draw people with: avtool synth-data --views 8 --expressions 1")
        yaws = {i: abs(view_yaw(track.frames[i])) for i in moment}
        source = min(yaws, key=yaws.__getitem__)
        targets = [i for i in moment if i != source and yaws[i] <= MAX_YAW]
        if targets:
            yield Views(SYNTHETIC, path.parent.name, track, source, targets)
        else:
            say(f"{path.parent.name}: no other view within 40 degrees, left out")


def real_views(track: Track, name: str, count: int) -> Views:
    """Frames of a clip, evenly spread over the yaws within 40 degrees."""
    yaws = np.array([view_yaw(frame) for frame in track.frames])
    source = int(np.abs(yaws).argmin())
    usable = np.flatnonzero((np.abs(yaws) <= MAX_YAW) & (np.abs(yaws - yaws[source]) >= MIN_TURN))
    ordered = usable[np.argsort(yaws[usable])]
    wanted = np.linspace(yaws[ordered[0]], yaws[ordered[-1]], count)
    return Views(name, name, track, source, sorted({int(ordered[np.abs(yaws[ordered] - yaw).argmin()]) for yaw in wanted}))


def scan_views(folder: Path, out: Path, head: HeadModel) -> Views:
    """A scan's renderings as frames of one track: the frontal one is tracked, the others are placed by their exact cameras."""
    from avtool.tracking import TrackingOptions, track_photos

    entries = json.loads((folder / "views" / "cameras.json").read_text(encoding="utf-8"))["views"]
    source = min(range(len(entries)), key=lambda k: abs(entries[k]["yaw_deg"]) + abs(entries[k]["pitch_deg"]))
    front = entries[source]
    options = TrackingOptions(focal=float(front["K"][0][0]))
    found = track_photos([(folder / "views" / front["image"]).resolve()], head, focal=options.focal, options=options)
    points = head.landmarks(head(found.params([0])).vertices)[0].numpy().astype(np.float64)
    scale = scan_scale(folder, front, found.frames[0], points)
    out.mkdir(parents=True, exist_ok=True)
    frames = [_scan_frame(folder, out, entry, front, found.frames[0], points, scale) for entry in entries]
    yaws = [abs(view_yaw(frame)) for frame in frames]
    targets = [k for k in range(len(frames)) if k != source and yaws[k] <= MAX_YAW]
    return Views("head scan", folder.name, replace(found, frames=frames, base=Path(), matte_images=()), source, targets)


def camera_of(entry: dict) -> NDArray[np.float64]:
    """(4, 4) world to camera, in the scan's units."""
    viewmat = np.eye(4)
    viewmat[:3, :3], viewmat[:3, 3] = entry["R"], entry["t"]
    return viewmat


def scan_scale(folder: Path, front: dict, frame: Frame, points: NDArray[np.float64]) -> float:
    """Meters a unit of the scan: the tracked depths of the landmarks (L, 3) over the scan's at the same pixels."""
    vertices, faces = read_obj(next(folder.glob("*.obj")))
    inverse, _ = rasterize(vertices, faces, camera_of(front), np.array(front["K"]), front["width"])
    xy, depth = to_samples(points, np.asarray(frame.viewmat), np.asarray(frame.K))
    column, row = np.clip(xy, 0, front["width"] - 1).astype(int).T
    seen = inverse[row, column] > 0
    return float(np.median(depth[seen] * inverse[row, column][seen]))


def read_obj(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Vertices (V, 3) and triangles (F, 3) of a Wavefront file; larger polygons are cut into fans."""
    vertices, faces = [], []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if words[:1] == ["v"]:
            vertices.append([float(x) for x in words[1:4]])
        elif words[:1] == ["f"]:
            ids = [int(word.split("/")[0]) - 1 for word in words[1:]]
            faces += [[ids[0], b, c] for b, c in zip(ids[1:-1], ids[2:])]
    return np.array(vertices), np.array(faces, np.int32)


def _scan_frame(
    folder: Path, out: Path, entry: dict, front: dict, tracked: Frame, points: NDArray[np.float64], scale: float
) -> Frame:
    """A rendering with the tracked head in it: x_q = (C_q C_front^-1) x_front, its shift in meters."""
    relative = camera_of(entry) @ np.linalg.inv(camera_of(front))
    relative[:3, 3] *= scale
    viewmat, K = relative @ np.asarray(tracked.viewmat), np.array(entry["K"])
    crop = head_crop(to_samples(points, viewmat, K)[0])
    mask = np.asarray(Image.open(folder / "views" / entry["mask"]).convert("L"))
    matte = out / f"{Path(entry['image']).stem}_matte.png"
    Image.fromarray(crop_square(mask, crop, MATTE_SIDE, 0)).save(matte)
    image = str((folder / "views" / entry["image"]).resolve())
    return replace(
        tracked, image=image, width=entry["width"], height=entry["height"], K=K, viewmat=viewmat, crop=crop, matte=str(matte.resolve()),
        landmarks=None,
    )  # fmt: skip


def mean_head(prior: Prior, case: Case, own_shape: bool) -> Pictures:
    """The prior's mean code at the case's cameras."""
    params, zero = case.samples.params, torch.zeros(prior.head.num_identity)
    identity = params.identity[0] if own_shape else zero
    code = prior.codebook.codes.detach().mean(0, keepdim=True)
    offsets = params.offsets if own_shape else None
    avatar = Avatar(prior.head, prior.binding, prior.gapnet, prior.refiner, code, identity, offsets)
    size, views = case.real.shape[1], case.targets
    chosen = params.index(views)
    posed = avatar.params_for(chosen.expression, chosen.neck, chosen.head, chosen.jaw, chosen.eyes)
    with torch.no_grad():
        images, _ = avatar.render(posed, case.samples.viewmats[views], case.samples.Ks[views], size, size)
    return images.numpy().astype(np.float32)


def photo_on_mesh(head: HeadModel, case: Case) -> Pictures:
    """The source on its own mesh, drawn in the pose and at the camera of every target."""
    samples = case.samples
    with torch.no_grad():
        vertices = head(samples.params).vertices.numpy()
    cameras: list[Tensor] = [samples.viewmats, samples.Ks]
    viewmats, Ks = (tensor.numpy() for tensor in cameras)
    projected = ProjectedPhoto(head, samples.images[0].numpy(), samples.mattes[0, ..., 0].numpy(), vertices[0], viewmats[0], Ks[0])
    pictures = []
    for k in range(1, len(vertices)):
        colors, alpha = projected.draw(vertices[k], viewmats[k], Ks[k], case.real.shape[1])
        pictures.append(colors + 1 - alpha[..., None])
    return np.stack(pictures).clip(0, 1).astype(np.float32)


def make_rows(shown: OneShot, prior: Prior, head: HeadModel) -> dict[str, Draw]:
    """What is compared; the portrait first."""
    return {
        "portrait": shown.show,
        "mean head": lambda case: mean_head(prior, case, own_shape=False),
        "mean head, own shape": lambda case: mean_head(prior, case, own_shape=True),
        "photo on the mesh": lambda case: photo_on_mesh(head, case),
    }


def compare(views: Views, rows: dict[str, Draw], size: int, meters: Meters, tables: Tables, sheets: Path) -> None:
    """Measures what is missing of one person, and writes the sheet."""
    keys = [f"{views.name} {i}" for i in views.targets] if views.single else [views.name]
    if all(tables.has(views.title, row, key) for row in rows for key in keys):
        return
    case = load_case(views.track, views.name, views.source, views.targets, size, meters)
    lines, decibels = {f"{views.name}: source, then the real views": case.real}, []
    for row, draw in rows.items():
        pictures = draw(case)
        found = figures_of(pictures, case, meters)
        for key, figures in zip(keys, found if views.single else [mean_of(found)]):
            tables.put(views.title, row, key, figures)
        lines[row] = np.concatenate([case.real[:1], pictures])
        decibels.append(f"{row} {mean_of(found)['psnr']:.2f}")
    write_sheet(sheets / f"{views.name}.png", lines)
    say(f"{views.name}, PSNR: {', '.join(decibels)}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--portrait", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, help="people of a seed that the portrait has not seen")
    parser.add_argument("--count", type=int, default=12, help="held-out people")
    parser.add_argument("--real", type=Path, nargs="+", default=[], help="tracks of real people")
    parser.add_argument("--scan", type=Path, help="folder of a head scan with renderings")
    parser.add_argument("--views", type=int, default=REAL_VIEWS, help="views of each real person")
    parser.add_argument("--prior", default="default", help="of the mean head")
    parser.add_argument("--recognizer", type=Path, help="face recognizer for identity similarity (.onnx, or a trusted .pt)")
    parser.add_argument("--quick", action="store_true", help="two people, PSNR and SSIM alone: a smoke test, no figures")
    args = parser.parse_args(arguments)
    if args.held_out is None and not args.real and args.scan is None:
        parser.error("name people: --held-out, --real or --scan")
    return args


def people(args: argparse.Namespace, head: HeadModel) -> Iterator[Views]:
    """Everybody who was named."""
    if args.held_out is not None:
        yield from synthetic_views(args.held_out, head, 2 if args.quick else args.count)
    for path in args.real:
        yield real_views(Track.load(path, head), name_of(path), 2 if args.quick else args.views)
    if args.scan is not None:
        yield scan_views(args.scan, args.out / "scan", head)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    head, prior = load_head_model(), Prior.load(args.prior)
    shown, meters = OneShot(args.portrait, head), meters_of(args.recognizer, args.quick)
    recognizer = None if args.recognizer is None else args.recognizer.name
    protocol = {"portrait": digest(args.portrait), "prior": digest(args.prior), "size": shown.size, "recognizer": recognizer, "quick": args.quick}
    tables = Tables(args.out, protocol)
    tables.notes += [f"{name} is absent: {reason}" for name, reason in meters.absent.items()]
    rows = make_rows(shown, prior, head)
    for views in people(args, head):
        compare(views, rows, shown.size, meters, tables, args.out / "sheets")
    sys.stdout.write(tables.finish())
    return 0


if __name__ == "__main__":
    sys.exit(main())
