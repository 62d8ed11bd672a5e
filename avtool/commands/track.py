"""avtool track: fit the head model to photos or a video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import AvtoolError
from . import console, options

if TYPE_CHECKING:
    from ..artifacts.track import Track
    from ..head import HeadModel


def track_command(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="A directory of photos, photos, one video, or a transforms.json.")
    ],
    output: options.OutputOption = Path("track.json"),
    overlay: Annotated[
        Path | None, typer.Option("--overlay", metavar="FILE", help="Also draw the fit beside the input: a .png, or a .mp4 for a video.")
    ] = None,
    focal: Annotated[
        str | None,
        typer.Option("--focal", metavar="MM|PX", help="Focal length: 50mm (35 mm equivalent) or 900px. Found if left out."),
    ] = None,
    person: Annotated[
        Path | None,
        typer.Option("--person", metavar="TRACK", help="Keep the shape and camera of an earlier track of the same person."),
    ] = None,
    photometric: Annotated[
        bool, typer.Option("--photometric/--no-photometric", help="Refine shape and pose by rendering.")
    ] = True,
    matte: Annotated[bool, typer.Option("--matte/--no-matte", help="Cut the head out of its background.")] = True,
    max_frames: Annotated[int | None, typer.Option(min=1, help="At most this many frames of a video.")] = None,
    stride: Annotated[int, typer.Option(min=1, help="Take every n-th frame of a video.")] = 1,
    head_model: options.HeadModelOption = "anny",
    head_model_path: options.HeadModelPathOption = None,
    force: options.ForceOption = False,
    seed: options.SeedOption = 0,
    device: options.DeviceOption = "auto",
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Fit the head model to photos or a video of one person.

    Writes camera, shape, expression and pose of every picture; mattes go to a .data directory beside the file.

    Example: avtool track photos/ -o track.json
    """
    from ..artifacts.files import refuse_existing

    refuse_existing(output, force)
    if overlay is not None:
        refuse_existing(overlay, force)
    data_set = _data_set(inputs)
    paths, video = ([], None) if data_set else _sources(inputs)
    if overlay is not None and video is None and overlay.suffix.lower() == ".mp4":
        raise AvtoolError(f"{overlay}: photos make a picture, not a video", "name a .png file")
    pixels, millimetres = _parse_focal(focal)

    from ..artifacts.track import Track
    from ..tracking import TrackingOptions, save_track, track_photos, track_video

    where = options.resolve_device(device)
    head = options.load_head(head_model, head_model_path)
    known = None if person is None else _load_person(person, head)
    chosen = TrackingOptions(
        focal=pixels, focal_mm=millimetres, photometric=photometric, mattes=matte, max_frames=max_frames, stride=stride,
        seed=seed, device=str(where),
    )
    with console.progress("tracking", quiet) as step:
        if data_set is not None:
            track = Track.load(data_set, head)
        elif video is not None:
            track = track_video(video, head, identity=known, options=chosen, progress=step)
        else:
            track = track_photos(paths, head, identity=known, options=chosen, progress=step)
    save_track(track, output, force)
    if overlay is not None:
        from ..tracking.overlay import write_overlay

        with console.progress("drawing", quiet):
            write_overlay(track, head, overlay, force)
    data = {"output": str(output), "frames": len(track.frames)}
    if data_set is None:
        error = 100.0 * track.metadata["landmark_error"]
        data |= {"landmark_error_percent": error, "focal_px": track.metadata["focal_px"]}
    console.report(data, as_json, quiet)


def _load_person(path: Path, head: HeadModel) -> Track:
    """The earlier track of --person, of the same head model."""
    from ..artifacts.track import Track
    from ..prior.storage import check_head_model

    track = Track.load(path, head)
    check_head_model(path, track.head_model, head.model_id)
    return track


def _data_set(inputs: list[str]) -> Path | None:
    """The transforms.json that another tracker wrote, when that is the only input."""
    path = Path(inputs[0])
    path = path / "transforms.json" if path.is_dir() else path
    return path if len(inputs) == 1 and path.name == "transforms.json" and path.is_file() else None


def _sources(inputs: list[str]) -> tuple[list[Path], Path | None]:
    """Photos, or the one video, that the arguments name."""
    from ..capture.images import list_images
    from ..capture.video import is_video

    videos = [Path(name) for name in inputs if is_video(name) and not Path(name).is_dir()]
    if videos:
        if len(inputs) > 1:
            raise AvtoolError(f"{videos[0]}: a video must be the only input", "track it by itself")
        return [], videos[0]
    paths: list[Path] = []
    for name in inputs:
        path = Path(name)
        paths += list_images(path) if path.is_dir() else [path]
    for path in paths:
        if not path.exists():
            raise AvtoolError(f"{path}: no such file or directory", "name photos, a directory of them, or one video")
    return paths, None


def _parse_focal(text: str | None) -> tuple[float | None, float | None]:
    """"50mm" to (None, 50), "900px" or "900" to (900, None)."""
    if text is None:
        return None, None
    value = text.strip().lower()
    unit = value[-2:] if value[-2:] in ("mm", "px") else "px"
    try:
        number = float(value.removesuffix(unit))
    except ValueError:
        number = 0.0
    if not 1.0 < number < 1e6:
        raise typer.BadParameter(f"--focal: expected a length like 50mm or 900px, found {text!r}")
    return (None, number) if unit == "mm" else (number, None)
