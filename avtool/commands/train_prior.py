"""avtool train-prior: learn a prior of many tracked people."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console, options, training

if TYPE_CHECKING:
    from ..prior.config import TrainConfig


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
    dataset: training.DatasetArgument = None,
    output: options.OutputOption = Path("prior.safetensors"),
    init: Annotated[
        str | None,
        typer.Option(
            metavar="PRIOR", help="Start from the networks of a known prior, whose sizes hold then; default is the one in the package."
        ),
    ] = None,
    config: training.ConfigOption = None,
    print_config: training.PrintConfigOption = False,
    preset: Annotated[str | None, typer.Option(help="Width of the networks: tiny, default, large or paper.")] = None,
    refiner: Annotated[str | None, typer.Option(help="Screen-space network: none, tiny, default, large, paper.")] = None,
    uv_size: Annotated[int | None, typer.Option(min=8, help="Side of the atlas that points are seeded on.")] = None,
    image_size: Annotated[int | None, typer.Option(min=16, help="Side of the training pictures in pixels.")] = None,
    coarse_share: Annotated[
        float | None, typer.Option(min=0.0, max=0.99, help="Share of the steps, from the start, at half the image size.")
    ] = None,
    steps: training.StepsOption = None,
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
    light: training.LightOption = None,
    precision: Annotated[
        Precision | None, typer.Option(help="bf16: products of the networks in bfloat16 (the rasterizer and the losses stay).")
    ] = None,
    max_identities: training.MaxIdentitiesOption = None,
    time_limit: training.TimeLimitOption = None,
    resume: training.ResumeOption = None,
    checkpoint: training.CheckpointOption = None,
    previews: training.PreviewsOption = None,
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
    checkpoint = training.check_files(dataset, output, checkpoint, resume, force)

    from ..prior.checkpoint import Checkpoint
    from ..prior.train import TrainOptions, resumed_settings, train_prior, training_metadata

    chosen = TrainOptions(
        device=str(options.resolve_device(device)), render_backend=render_backend.value, seed=seed,
        time_limit=time_limit, checkpoint=checkpoint, previews=previews or output.with_suffix(".previews"), resume=resume, init=init,
    )  # fmt: skip
    head = options.load_head(head_model, head_model_path)
    settings, chosen = resumed_settings(settings, chosen, None if resume is None else Checkpoint.load(resume), head)
    log = training.TrainingLog(quiet)
    with console.progress("training", log.quiet) as step:
        prior = train_prior(dataset, head, settings, chosen, step, log)
    if not log.is_main:
        return
    prior.save(output, training_metadata(settings, chosen, dataset))
    console.report({"output": output, "identities": prior.num_identities, **log.last}, as_json, quiet)


def _override(settings: TrainConfig, overrides: dict[str, object], lpips: float | None) -> TrainConfig:
    """Settings with the options that were given on top."""
    from dataclasses import replace

    settings = replace(settings, **{key: value for key, value in overrides.items() if value is not None})
    return settings if lpips is None else replace(settings, weights=replace(settings.weights, lpips=lpips))
