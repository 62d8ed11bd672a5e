"""avtool finetune: learn what the prior does not know of a person."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console, options


def finetune_command(
    inverted: Annotated[Path, typer.Argument(metavar="INVERTED", help="inverted.safetensors, from invert.")],
    track: Annotated[str, typer.Argument(metavar="TRACK", help="The track.json it was inverted from, or - .")] = "track.json",
    output: options.OutputOption = Path("avatar.safetensors"),
    steps: Annotated[int, typer.Option(min=1, help="Number of optimization steps.")] = 250,
    size: Annotated[int, typer.Option(min=32, max=1024, help="Side of the compared pictures in pixels.")] = 256,
    reference_weight: Annotated[
        float, typer.Option(min=0.0, help="Weight of the views that must stay as they are; 0 lets them go.")
    ] = 0.01,
    pseudo: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Data set with pseudo pictures of this person from other sides: their structure counts, not their colors."
        ),
    ] = None,
    pseudo_weight: Annotated[float, typer.Option(min=0.0, help="Weight of a pseudo picture, where a photo has 1.")] = 0.25,
    head_model: options.HeadModelOption = "anny",
    head_model_path: options.HeadModelPathOption = None,
    force: options.ForceOption = False,
    seed: options.SeedOption = 0,
    device: options.DeviceOption = "auto",
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Learn from the photos what the prior does not know of a person.

    The mouth and unseen sides are guarded, so that the avatar stays good where the photos show nothing. --pseudo adds views that were
    made of real pictures: their real pictures are not looked at, and pseudo pictures in TRACK itself are no photos.

    Example: avtool finetune inverted.safetensors track.json -o avatar.safetensors
    """
    from ..artifacts.files import refuse_existing

    refuse_existing(output, force)

    from ..artifacts.track import Track
    from ..prior.avatar import Avatar
    from ..prior.finetune import FinetuneOptions, finetune
    from ..prior.pseudo_views import load_pseudo_track

    where = options.resolve_device(device)
    head = None if head_model == "anny" else options.load_head(head_model, head_model_path)
    avatar = Avatar.load(inverted, where, head)
    loaded = Track.load(track, head)
    made = None if pseudo is None else load_pseudo_track(pseudo)
    chosen = FinetuneOptions(steps=steps, size=size, reference_weight=reference_weight, pseudo_weight=pseudo_weight, seed=seed)
    with console.progress("fine-tuning", quiet) as step:
        name = "standard input" if track == "-" else track
        tuned = finetune(avatar, loaded, chosen, step, name, made, str(pseudo))
    tuned.save(output)
    report = {"output": str(output), "photos": len(loaded.real_frames())}
    if made is not None:
        report["pseudo"] = len(made.frames) - len(made.real_frames())
    console.report(report, as_json, quiet)
