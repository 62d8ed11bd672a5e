"""avtool invert: find a tracked person in a prior."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console, options


def invert_command(
    track: Annotated[str, typer.Argument(metavar="TRACK", help="track.json of the photos, or - .")] = "track.json",
    prior: Annotated[
        str, typer.Option("--prior", metavar="FILE", help="prior.safetensors, or default for the shipped one.")
    ] = "default",
    output: options.OutputOption = Path("inverted.safetensors"),
    steps: Annotated[int, typer.Option(min=1, help="At most this many steps; a flat loss ends earlier.")] = 500,
    free_steps: Annotated[
        int, typer.Option(min=0, help="Then so many steps away from the mix of known people; 0 keeps to it.")
    ] = 150,
    size: Annotated[int, typer.Option(min=32, max=1024, help="Side of the compared pictures in pixels.")] = 128,
    head_model: options.HeadModelOption = "anny",
    head_model_path: options.HeadModelPathOption = None,
    force: options.ForceOption = False,
    seed: options.SeedOption = 0,
    device: options.DeviceOption = "auto",
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Find a tracked person in a prior.

    Writes a first avatar: a mix, part by part, of the people that the prior knows, and a step away from it where nobody of them looks so.
    finetune makes it the person.

    Example: avtool invert --prior prior.safetensors
    """
    from ..artifacts.files import refuse_existing

    refuse_existing(output, force)

    from ..artifacts.track import Track
    from ..prior.invert import InvertOptions, invert
    from ..prior.prior import Prior

    where = options.resolve_device(device)
    head = None if head_model == "anny" else options.load_head(head_model, head_model_path)
    loaded = Track.load(track, head)
    known = Prior.load(prior, where, head)
    chosen = InvertOptions(steps=steps, free_steps=free_steps, size=size, seed=seed)
    with console.progress("inverting", quiet) as step:
        avatar = invert(known, loaded, chosen, step, name="standard input" if track == "-" else track)
    avatar.save(output, {"prior": Path(prior).name, "seed": str(seed)})
    console.report({"output": str(output), "photos": len(loaded.frames), "people": known.num_identities}, as_json, quiet)
