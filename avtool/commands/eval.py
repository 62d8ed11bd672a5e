"""avtool eval: measure an avatar against held-out frames of the same person."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console, options

if TYPE_CHECKING:
    from rich.table import Table

MODES = {"both": ("refined", "unrefined"), "yes": ("refined",), "no": ("unrefined",)}
ROWS = (
    ("psnr", "PSNR, dB"),
    ("psnr_above_chin", "PSNR above the chin, dB"),
    ("ssim", "SSIM"),
    ("ssim_above_chin", "SSIM above the chin"),
    ("lpips", "LPIPS"),
    ("st_lpips", "ST-LPIPS"),
    ("landmark_distance", "landmark distance, % of eye distance"),
    ("contour_distance", "the same, brows eyes nose lips"),
    ("identity_similarity", "identity similarity"),
)


def _check_refine(value: str) -> str:
    if value not in MODES:
        raise typer.BadParameter(f"expected both, yes or no, found {value!r}")
    return value


def eval_command(
    avatar: Annotated[Path, typer.Argument(metavar="AVATAR", help="avatar.safetensors, from finetune or invert.")],
    track: Annotated[str, typer.Argument(metavar="TRACK", help="Track of held-out frames of the same person, or - .")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Metrics as JSON; - for standard output.")
    ] = Path("metrics.json"),
    montage: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A picture of real, render and error for some frames.")
    ] = None,
    size: Annotated[int, typer.Option(min=32, max=1024, help="Side of the compared pictures in pixels.")] = 256,
    refine: Annotated[
        str, typer.Option(metavar="both|yes|no", callback=_check_refine, help="Measure with the screen-space network, without, or both.")
    ] = "both",
    recognizer: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Face recognizer for identity: .onnx, or a TorchScript file that you trust (it is a program)."),
    ] = None,
    lpips_backbone: Annotated[str, typer.Option(metavar="vgg|alex|squeeze", help="Backbone of LPIPS and ST-LPIPS (vgg, alex).")] = "vgg",
    max_frames: Annotated[int | None, typer.Option(min=1, help="Measure this many frames, spread evenly.")] = None,
    head_model: options.HeadModelOption = "anny",
    head_model_path: options.HeadModelPathOption = None,
    force: options.ForceOption = False,
    seed: options.SeedOption = 0,
    device: options.DeviceOption = "auto",
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Measure an avatar against held-out frames of the same person.

    PSNR, SSIM, LPIPS, its shift-tolerant kin ST-LPIPS, landmark distance and identity similarity, per frame and as mean and
    deviation, with and without the screen-space network. A metric that cannot be computed here is absent with its reason.

    Example: avtool eval avatar.safetensors test_track.json -o metrics.json --montage montage.png
    """
    from ..artifacts.files import atomic_write, refuse_existing

    refuse_existing(output, force)
    refuse_existing(montage, force)

    import torch
    from PIL import Image

    from ..artifacts.track import Track
    from ..prior.avatar import Avatar
    from ..prior.drive import check_head_model
    from ..prior.evaluate import EvalOptions, evaluate, load_meters
    from ..prior.evaluate import montage as draw_montage

    torch.manual_seed(seed)
    place = options.resolve_device(device)
    head = None if head_model == "anny" else options.load_head(head_model, head_model_path)
    loaded = Avatar.load(avatar, place, head)
    frames = Track.load(track, loaded.head)
    check_head_model(frames, loaded.head.model_id, track)
    meters = load_meters(None if recognizer is None else str(recognizer), lpips_backbone, str(place))
    chosen = EvalOptions(size=size, modes=MODES[refine], max_frames=max_frames)
    with console.progress("evaluating", quiet) as step:
        result = evaluate(loaded, frames, chosen, meters, step)
    data = {**result.report, "avatar": str(avatar), "track": track}
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if str(output) != "-":
        with atomic_write(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if montage is not None:
        with atomic_write(montage) as temporary:
            Image.fromarray(draw_montage(result.shown)).save(temporary)
    console.get_console(quiet).print(_table(data, MODES[refine]))
    if as_json or str(output) == "-":
        sys.stdout.write(text)


def _table(data: dict, modes: tuple[str, ...]) -> Table:
    from rich.table import Table

    protocol = data["protocol"]
    table = Table(title=f"{protocol['num_frames']} frames, {protocol['resolution']} pixels, {protocol['crop']}")
    table.add_column("metric")
    for mode in modes:
        table.add_column(mode, justify="right")
    for name, label in ROWS:
        cells = []
        for mode in modes:
            entry = data[mode].get(name)
            known = entry is not None and entry["mean"] is not None
            reason = data["absent"].get(name, "not measured")
            cells.append(f"{entry['mean']:.3f} ± {entry['std']:.3f}" if known else f"absent: {reason}")
        table.add_row(label, *cells)
    return table
