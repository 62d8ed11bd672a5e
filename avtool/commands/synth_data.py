"""avtool synth-data: draw synthetic people, a data set to train a prior on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from . import console, options

LARGE_SIZE = 320  # pictures above it show more than the smaller skin texture holds
SMALL_TEXTURE, LARGE_TEXTURE = 1024, 2048


def synth_data_command(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIRECTORY", help="The directory to write.")] = Path("heads"),
    identities: Annotated[int, typer.Option(min=1, metavar="N", help="Number of people.")] = 64,
    views: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures of each, every one from another side.")] = 16,
    expressions: Annotated[
        int, typer.Option(min=0, metavar="N", help="Different moments of each; 0 takes one a picture.")
    ] = 0,
    size: Annotated[int, typer.Option(min=16, max=2048, metavar="PIXELS", help="Side of the square pictures.")] = 256,
    samples: Annotated[int, typer.Option(min=1, max=8, metavar="N", help="Samples a pixel side, against jagged edges.")] = 2,
    light_variety: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="SHARE", help="0 lights everybody alike, 1 from all sides.")
    ] = 1.0,
    assets: Annotated[
        Path | None,
        typer.Option(metavar="DIRECTORY", help="MakeHuman's CC0 assets: photographic skins, irises, hair meshes."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Processes that draw.")] = 1,
    force: options.ForceOption = False,
    seed: options.SeedOption = 0,
    device: options.DeviceOption = "auto",
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Draw synthetic people from many sides, with the exact parameters of every picture.

    Each person gets a directory with pictures, mattes and a track.json, which train-prior reads like any other. Nobody in
    them exists. The same seed gives the same people, however many processes draw; an interrupted run, or one with more
    --identities, goes on where the last one stopped. --force starts anew.

    Example: avtool synth-data -o heads/ --identities 200 --views 16 --size 256 --jobs 4
    """
    from ..synth.dataset import DatasetOptions, clear_dataset, make_dataset

    options.resolve_device(device)  # checked only: pictures are drawn on the CPU
    if force:
        clear_dataset(output)
    chosen = DatasetOptions(
        identities=identities, views=views, expressions=expressions, size=size, seed=seed, samples=samples,
        light_variety=light_variety, texture_size=SMALL_TEXTURE if size <= LARGE_SIZE else LARGE_TEXTURE,
        assets=None if assets is None else str(assets),
    )  # fmt: skip
    started = time.monotonic()
    with console.progress("drawing", quiet) as step:
        make_dataset(output, chosen, jobs, lambda done, total: step(done, total, "people"))
    seconds = time.monotonic() - started
    report = {"output": output, "identities": identities, "pictures": identities * views, "seconds": seconds}
    console.report(report, as_json, quiet)
