"""avtool reenact: drive an avatar with a video, photos or a track."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from . import console, options


class Camera(str, Enum):
    """Who holds the camera."""

    driver = "driver"
    fixed = "fixed"
    orbit = "orbit"


def reenact_command(
    avatar: Annotated[Path, typer.Argument(metavar="AVATAR", help="avatar.safetensors, from finetune or invert.")],
    driver: Annotated[
        list[str], typer.Argument(metavar="DRIVER", help="A video, photos, a directory of photos, a track.json, or - .")
    ],
    output: options.OutputOption = Path("reenacted.mp4"),
    camera: Annotated[
        Camera, typer.Option(help="The driver's own; one that stands still before the avatar; one that circles it.")
    ] = Camera.driver,
    background: Annotated[str, typer.Option(metavar="COLOR|FILE", help="A color name, #rrggbb or an image.")] = "white",
    size: Annotated[int, typer.Option(min=32, max=2048, help="Side of the square frames in pixels.")] = 256,
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
    refine: Annotated[bool, typer.Option("--refine/--no-refine", help="Use the avatar's screen-space network.")] = True,
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
    """Drive an avatar with a video, photos or a track.

    Writes a video (.mp4, with the driver's sound), a directory of PNGs, or a pattern like frames/%05d.png.
    A track.json saves tracking the same driver again. The video's metadata says that it is synthetic.

    Example: avtool reenact avatar.safetensors driver.mp4 -o out.mp4
    """
    from ..prior.sinks import check_output, parse_background

    check_output(output, force)
    parse_background(background, size)

    import torch

    from ..prior.avatar import Avatar
    from ..prior.drive import load_driver
    from ..prior.reenact import ReenactOptions, reenact

    torch.manual_seed(seed)
    head = None if head_model == "anny" else options.load_head(head_model, head_model_path)
    loaded = Avatar.load(avatar, options.resolve_device(device), head)
    with console.progress("tracking the driver", quiet) as step:
        source = load_driver(driver, loaded.head, seed=seed, max_frames=max_frames, progress=step)
    transfer = "auto" if relative is None else "relative" if relative else "absolute"
    chosen = ReenactOptions(
        camera=camera.value, background=background, size=size, fps=fps, side_by_side=side_by_side, transfer=transfer,
        smooth=smoothing, refine=refine, max_frames=max_frames,
    )
    with console.progress("rendering", quiet) as step:
        result = reenact(loaded, source, output, chosen, step)
    data = {"output": str(output), **asdict(result)}
    if result.tracking_seconds is None:
        data["frames_per_second_with_tracking"] = None if as_json else "not measured: the track was made beforehand"
    console.report(data, as_json, quiet)
