"""avtool train-prior: learn a prior of many tracked people."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console, options

if TYPE_CHECKING:
    from ..prior.config import TrainConfig


class Light(str, Enum):
    """Whose pictures count."""

    any = "any"
    even = "even"


class Precision(str, Enum):
    """What networks compute with."""

    fp32 = "fp32"
    bf16 = "bf16"


class Perceptual(str, Enum):
    """The network of the perceptual loss."""

    none = "none"
    lpips = "lpips"
    st_lpips = "st-lpips"


class Backend(str, Enum):
    """Who rasterizes."""

    auto = "auto"
    numba = "numba"
    torch = "torch"
    gsplat = "gsplat"


def train_prior_command(
    dataset: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DATASET...",
            help="Directories of people, each with a track.json and its pictures; DATASET=WEIGHT draws a person of it that"
            " often, where 1 is usual.",
        ),
    ] = None,
    output: options.OutputOption = Path("prior.safetensors"),
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Settings as YAML, see --print-config.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Write the settings as YAML to standard output and stop.")
    ] = False,
    preset: Annotated[str | None, typer.Option(help="Width of the networks: tiny, default, large or paper.")] = None,
    refiner: Annotated[str | None, typer.Option(help="Screen-space network: none, tiny, default, large, paper.")] = None,
    uv_size: Annotated[int | None, typer.Option(min=8, help="Side of the atlas that points are seeded on.")] = None,
    image_size: Annotated[int | None, typer.Option(min=16, help="Side of the training pictures in pixels.")] = None,
    coarse_share: Annotated[
        float | None, typer.Option(min=0.0, max=0.99, help="Share of the steps, from the start, at half the image size.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Number of optimization steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures a step, of all processes together.")] = None,
    accumulate: Annotated[
        int | None, typer.Option(min=1, help="Compute a step in so many parts, one after the other: less memory.")
    ] = None,
    views_per_identity: Annotated[int | None, typer.Option(min=1, help="Pictures of one person in a batch.")] = None,
    track_rate: Annotated[
        float | None, typer.Option(min=0.0, help="Learning rate of the tracked parameters; 0 keeps them.")
    ] = None,
    offset_rate: Annotated[
        float | None, typer.Option(min=0.0, help="Learning rate of the vertex offsets; 0 goes without.")
    ] = None,
    lpips: Annotated[float | None, typer.Option(min=0.0, help="Weight of the perceptual loss (needs its network).")] = None,
    perceptual: Annotated[
        Perceptual | None, typer.Option(help="Its network: LPIPS, or the shift-tolerant ST-LPIPS of stlpips-pytorch.")
    ] = None,
    light: Annotated[Light | None, typer.Option(help="even: leave out people whose track says that their light is uneven.")] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="bf16: products of the networks in bfloat16 (the rasterizer and the losses stay).")
    ] = None,
    max_identities: Annotated[int | None, typer.Option(min=1, help="Use only the first people.")] = None,
    time_limit: Annotated[
        float | None, typer.Option(min=1.0, metavar="SECONDS", help="Finish within this time, and save.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="CHECKPOINT", help="Go on from a checkpoint, bit for bit.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where checkpoints go; OUTPUT.checkpoint when left out.")
    ] = None,
    previews: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where previews go; OUTPUT.previews when left out.")
    ] = None,
    render_backend: Annotated[Backend, typer.Option(help="Rasterizer; auto takes gsplat on CUDA.")] = Backend.auto,
    head_model: options.HeadModelOption = "anny",
    head_model_path: options.HeadModelPathOption = None,
    force: options.ForceOption = False,
    seed: options.SeedOption = 0,
    device: options.DeviceOption = "auto",
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Learn a prior from many tracked people.

    Checkpoints are written as training goes; --resume goes on from one. Options override the file of --config. Under torchrun
    (torchrun --nproc-per-node 2 -m avtool train-prior ...) the processes share every batch, on CUDA with a device each; a
    checkpoint goes on with any number of processes.

    Pseudo pictures, which a track says were made of real ones, give geometry and not colors: a real picture of the same moment takes
    the place of one with probability real_target, and of the others the structure and the coverage count pseudo_weight times as much
    as a real picture's (settings of --config).

    Example: avtool train-prior heads/ -o prior.safetensors
    """
    from ..artifacts.files import refuse_existing
    from ..errors import AvtoolError
    from ..prior.config import check_config, load_config

    overrides = {
        "preset": preset, "refiner": refiner, "uv_size": uv_size, "image_size": image_size,
        "coarse_share": coarse_share, "steps": steps,
        "batch_size": batch_size, "views_per_identity": views_per_identity, "track_rate": track_rate,
        "offset_rate": offset_rate, "max_identities": max_identities, "accumulate": accumulate,
        "light": light and light.value, "precision": precision and precision.value,
        "perceptual": perceptual and perceptual.value,
    }  # fmt: skip
    settings = _override(load_config(config), overrides, lpips)
    settings = check_config(settings, "options")
    if print_config:
        sys.stdout.write(settings.to_yaml())
        return
    if not dataset:
        raise typer.BadParameter("name at least one data set directory", param_hint="DATASET")
    refuse_existing(output, force)
    checkpoint = checkpoint or output.with_suffix(".checkpoint.safetensors")
    if resume is None:
        refuse_existing(checkpoint, force)
    elif not resume.is_file():
        raise AvtoolError(f"{resume}: no such checkpoint", "leave --resume out to start anew")

    from ..prior.checkpoint import Checkpoint
    from ..prior.distributed import World
    from ..prior.train import TrainOptions, resumed_settings, train_prior, training_metadata

    chosen = TrainOptions(
        device=str(options.resolve_device(device)), render_backend=render_backend.value, seed=seed,
        time_limit=time_limit, checkpoint=checkpoint, previews=previews or output.with_suffix(".previews"), resume=resume,
    )  # fmt: skip
    settings, chosen = resumed_settings(settings, chosen, None if resume is None else Checkpoint.load(resume))
    head = options.load_head(head_model, head_model_path)
    main_process = World.from_environment().is_main
    quiet = quiet or not main_process
    talk = console.get_console(quiet)
    last: dict[str, float] = {}

    def log(step: int, figures: dict[str, float]) -> None:
        last.update(figures)
        text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        talk.print(f"step {step}: {text}", markup=False)

    with console.progress("training", quiet) as step:
        prior = train_prior(dataset, head, settings, chosen, step, log)
    if not main_process:
        return
    prior.save(output, training_metadata(settings, chosen, dataset))
    console.report({"output": output, "identities": prior.num_identities, **last}, as_json, quiet)


def _override(settings: TrainConfig, overrides: dict[str, object], lpips: float | None) -> TrainConfig:
    """Settings with the options that were given on top."""
    from dataclasses import replace

    settings = replace(settings, **{key: value for key, value in overrides.items() if value is not None})
    return settings if lpips is None else replace(settings, weights=replace(settings.weights, lpips=lpips))
