"""avtool pseudo-mv: show a filmed person's moments from new cameras, as a data set."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console, options

if TYPE_CHECKING:
    import torch

    from ..head import HeadModel
    from ..portrait.synthesizers import Synthesizer


class SynthesizerName(str, Enum):
    """What draws the new views."""

    portrait = "portrait"
    avatar = "avatar"


def pseudo_mv_command(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="A video, photos, a directory of photos, a track.json, or - .")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIRECTORY", help="The data set to write.")] = Path("mv"),
    synthesizer: Annotated[
        SynthesizerName | None,
        typer.Option(help="What draws the new views: a portrait, or the person's own avatar; told by the file when left out."),
    ] = None,
    portrait: Annotated[
        Path | None, typer.Option(metavar="PORTRAIT", help="portrait.safetensors, from train-portrait; the shipped one when left out.")
    ] = None,
    avatar: Annotated[
        Path | None, typer.Option(metavar="AVATAR", help="avatar.safetensors of the same person, from finetune.")
    ] = None,
    views: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="New cameras for every picture.")] = 4,
    yaw: Annotated[
        float, typer.Option(min=0.0, max=180.0, metavar="DEG", help="How far they turn to either side of the real camera, in degrees.")
    ] = 40.0,
    pitch: Annotated[
        float, typer.Option(min=0.0, max=80.0, metavar="DEG", help="How far they turn up or down from the real camera, in degrees.")
    ] = 15.0,
    spread: Annotated[
        bool, typer.Option("--spread/--random", help="Cover the range evenly, each picture with other cameras; or draw them at random.")
    ] = True,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, metavar="T",
            help="Leave out pictures whose own view, drawn anew, differs by more: mean absolute difference of RGB in [0, 1] over"
            " both mattes, at 64 pixels a side. 0.08 when left out.",
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=16, max=2048, metavar="PIXELS", help="Side of the pictures; the portrait's own, 256 of an avatar.")
    ] = None,
    every: Annotated[int, typer.Option(min=1, metavar="K", help="Use every K-th picture.")] = 1,
    max_frames: Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after this many pictures.")] = None,
    head_model: options.HeadModelOption = "anny",
    head_model_path: options.HeadModelPathOption = None,
    force: options.ForceOption = False,
    seed: options.SeedOption = 0,
    device: options.DeviceOption = "auto",
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Make a multi-view data set of a person who was filmed from one side.

    Writes the real pictures with their mattes and, for each, the same moment from new cameras around the head, marked as pseudo
    in the track.json. Pictures whose own view comes out wrong when it is drawn anew are left out and counted; montage.png shows
    the rest and those, report.json lists all. A video and photos are tracked first, with the shape of the avatar if there is one;
    a track.json (of an avatar's person best made with track --person) saves that.

    Example: avtool pseudo-mv video.mp4 -o mv/
    """
    file = _chosen_file(synthesizer, portrait, avatar)
    if yaw == 0 and pitch == 0:
        raise typer.BadParameter("with both at 0 no camera is new", param_hint="--yaw and --pitch")

    from ..portrait.pseudo_files import check_place

    check_place(output, force)

    import torch

    from ..portrait.pseudo import THRESHOLD, PseudoOptions, make_pseudo_views
    from ..prior.drive import load_driver

    torch.manual_seed(seed)
    started = time.monotonic()
    head = None if head_model == "anny" else options.load_head(head_model, head_model_path)
    drawing = _load(file, avatar is not None, options.resolve_device(device), head)
    with console.progress("tracking", quiet) as step:
        source = load_driver(
            inputs, drawing.head.to("cpu"), seed=seed, max_frames=max_frames, progress=step, looks=True, stride=every, person=drawing.person
        )
    chosen = PseudoOptions(
        views=views, yaw=yaw, pitch=pitch, spread=spread, seed=seed, size=size, every=every, max_frames=max_frames,
        threshold=THRESHOLD if threshold is None else threshold,
    )  # fmt: skip
    with console.progress("drawing", quiet) as step:
        made = make_pseudo_views(source, drawing, output, chosen, step)
    report = {
        "output": str(output), "pictures": made.kept, "left_out": made.left_out, "pseudo_pictures": made.pseudo,
        "median_disagreement": made.disagreement, "threshold": made.threshold, "seconds": time.monotonic() - started,
    }  # fmt: skip
    console.report(report, as_json, quiet)


def _chosen_file(synthesizer: SynthesizerName | None, portrait: Path | None, avatar: Path | None) -> Path:
    """The one file that draws, the shipped portrait where none is named; wrong usage when there are two, or the wrong one."""
    if portrait is not None and avatar is not None:
        raise typer.BadParameter("expected --portrait FILE or --avatar FILE, found both", param_hint="--portrait, --avatar")
    if synthesizer is SynthesizerName.avatar and avatar is None:
        raise typer.BadParameter("--synthesizer avatar needs --avatar FILE", param_hint="--synthesizer")
    if synthesizer is SynthesizerName.portrait and avatar is not None:
        raise typer.BadParameter("--synthesizer portrait does not go with --avatar", param_hint="--synthesizer")
    return avatar or portrait or Path("default")


def _load(file: Path, is_avatar: bool, device: torch.device, head: HeadModel | None) -> Synthesizer:
    """The synthesizer that a file holds."""
    from ..portrait.synthesizers import AvatarSynthesizer, PortraitSynthesizer

    if is_avatar:
        from ..prior.avatar import Avatar

        return AvatarSynthesizer(Avatar.load(file, device, head))
    from ..head import load_head_model
    from ..portrait.network import Portrait
    from ..portrait.oneshot import with_motion

    head = head or load_head_model()
    portrait = Portrait.load(file, device, head)
    if portrait.metadata.get("stage") != "motion":
        return PortraitSynthesizer(portrait, head)
    if portrait.metadata.get("motion", "tracker") != "tracker":
        console.warn(f"{file}: of stage motion, used without its motion, as that is not the tracker's; one of stage static is made for this")
        return PortraitSynthesizer(portrait, head)
    driven = with_motion(portrait, file, head)
    return PortraitSynthesizer(driven.portrait, driven.head, driven.encoder)
