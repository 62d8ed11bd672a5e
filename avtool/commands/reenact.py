"""avtool reenact: drive an avatar, or a portrait of one photo, with a video, photos or a track."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import AvtoolError
from . import console, options


class Camera(str, Enum):
    """Who holds the camera."""

    driver = "driver"
    fixed = "fixed"
    orbit = "orbit"


def reenact_command(
    avatar: Annotated[
        Path,
        typer.Argument(
            metavar="AVATAR|PORTRAIT",
            help="avatar.safetensors, from finetune or invert; or, with --source, portrait.safetensors, from train-portrait, or default for "
            "the shipped one.",
        ),
    ],
    driver: Annotated[
        list[str], typer.Argument(metavar="DRIVER", help="A video, photos, a directory of photos, a track.json, or - .")
    ],
    output: options.OutputOption = Path("reenacted.mp4"),
    source: Annotated[
        str | None,
        typer.Option(
            metavar="PHOTO|TRACK",
            help="Whom a portrait shows: a photo of one face, or a track (- for standard input), of which the most frontal real "
            "picture is taken.",
        ),
    ] = None,
    motion: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A portrait's motion embedding, where it is not the tracker's: torchscript:FILE (a program: trust it).",
        ),
    ] = None,
    camera: Annotated[
        Camera, typer.Option(help="The driver's own; one that stands still before the person; one that circles it.")
    ] = Camera.driver,
    background: Annotated[str, typer.Option(metavar="COLOR|FILE", help="A color name, #rrggbb or an image.")] = "white",
    size: Annotated[
        int,
        typer.Option(min=32, max=2048, help="Side of the square frames in pixels; a portrait draws at its own, and is resampled."),
    ] = 256,
    fps: Annotated[
        float | None, typer.Option(min=0.1, max=240, help="Frames per second; the driver's when left out.")
    ] = None,
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help="Show the driver at the left.")] = False,
    relative: Annotated[
        bool | None,
        typer.Option(
            "--relative/--absolute",
            help="Expressions relative to the driver's neutral face, or as they are; "
            "when left out, relative if the driver is another person.",
        ),
    ] = None,
    smoothing: Annotated[bool, typer.Option("--smooth/--no-smooth", help="Filter the driver's motion over time.")] = True,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine/--no-refine",
            help="Use the avatar's screen-space network, or a portrait's super-resolution; without the latter its volume is shown "
            "as it was drawn, enlarged.",
        ),
    ] = True,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")] = None,
    head_model: options.HeadModelOption = "anny",
    head_model_path: options.HeadModelPathOption = None,
    force: options.ForceOption = False,
    seed: options.SeedOption = 0,
    device: options.DeviceOption = "auto",
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Drive an avatar, or a portrait of one photo, with a video, photos or a track.

    A portrait (the shipped one, or of train-portrait --stage motion) needs --source and no fitting: the photo is tracked and encoded once.
    A track of it as --source saves that, too.

    Writes a video (.mp4, with the driver's sound), a directory of PNGs, or a pattern like frames/%05d.png.
    A track.json saves tracking the same driver again. The video's metadata says that it is synthetic.

    Example: avtool reenact avatar.safetensors driver.mp4 -o out.mp4

    Example: avtool reenact default --source photo.jpg driver.mp4 -o out.mp4
    """
    from ..prior.sinks import check_output, parse_background

    check_output(output, force)
    parse_background(background, size)
    kind = _checked_kind(avatar, source, motion, driver)

    import torch

    from ..prior.drive import check_driver, load_driver
    from ..prior.reenact import ReenactOptions, reenact

    check_driver(driver)
    torch.manual_seed(seed)
    head = None if head_model == "anny" else options.load_head(head_model, head_model_path)
    where = options.resolve_device(device)
    shown = None
    if kind == "portrait":
        from ..portrait.oneshot import load_source, load_to_drive

        network = load_to_drive(avatar, where, head, motion)
        with console.progress("tracking the source", quiet) as step:
            shown = load_source(source, network, seed, step)
        puppet = shown.puppet
    else:
        from ..prior.avatar import Avatar

        puppet = Avatar.load(avatar, where, head)
    with console.progress("tracking the driver", quiet) as step:
        loaded = load_driver(driver, puppet.head, seed=seed, max_frames=max_frames, progress=step)
    transfer = "auto" if relative is None else "relative" if relative else "absolute"
    chosen = ReenactOptions(
        camera=camera.value, background=background, size=size, fps=fps, side_by_side=side_by_side, transfer=transfer,
        smooth=smoothing, refine=refine, max_frames=max_frames,
    )
    with console.progress("rendering", quiet) as step:
        result = reenact(puppet, loaded, output, chosen, step, shown and shown.seconds)
    data = {"output": str(output), "source": shown and shown.name, **asdict(result)}
    if shown is None:
        del data["source"], data["source_seconds"]
    if result.tracking_seconds is None:
        data["frames_per_second_with_tracking"] = None if as_json else "not measured: the track was made beforehand"
    console.report(data, as_json, quiet)


def _checked_kind(path: Path, source: str | None, motion: str | None, driver: list[str]) -> str:
    """"avatar" or "portrait", as the file says; AvtoolError when the other options do not go with it."""
    from ..artifacts.tensors import artifact_kind
    from ..portrait.storage import portrait_file

    kind = artifact_kind(portrait_file(path), ("avatar", "portrait"))
    if kind == "portrait" and source is None:
        raise AvtoolError(f"{path}: a portrait shows whom --source names, found none", "add --source photo.jpg")
    for option, value in (("--source", source), ("--motion", motion)):
        if kind == "avatar" and value is not None:
            raise AvtoolError(
                f"{option} {value}: {path} is an avatar, which is one person already", "leave it out, or name a portrait of train-portrait"
            )
    if source == "-" and "-" in driver:
        raise AvtoolError("--source -: standard input is the driver already", "name a file for one of them")
    return kind
