"""avtool train-portrait: learn the network that makes a head of one photo."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console, options, training

if TYPE_CHECKING:
    from ..portrait.settings import PortraitTraining


class StageName(str, Enum):
    """What is learned."""

    static = "static"
    motion = "motion"


class PerceptualName(str, Enum):
    """The perceptual distance."""

    ssim = "ssim"
    lpips = "lpips"
    st_lpips = "st-lpips"


def train_portrait_command(
    dataset: training.DatasetArgument = None,
    output: options.OutputOption = Path("portrait.safetensors"),
    stage: Annotated[
        StageName | None,
        typer.Option(help="static: a moment from another side, cross-attention off; motion: a driver's moment, from --init."),
    ] = None,
    init: Annotated[
        Path | None, typer.Option(metavar="PORTRAIT", help="The portrait to start from, default is the shipped one; stage motion needs one.")
    ] = None,
    config: training.ConfigOption = None,
    print_config: training.PrintConfigOption = False,
    preset: Annotated[str | None, typer.Option(help="Sizes of the network: tiny, small or paper.")] = None,
    size: Annotated[int | None, typer.Option(min=16, help="Side of all pictures in pixels; the preset's when left out.")] = None,
    motion: Annotated[
        str | None, typer.Option(metavar="NAME", help="The frozen motion embedding: tracker, or torchscript:FILE (a program: trust it).")
    ] = None,
    steps: training.StepsOption = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Moments a step, of all processes together.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="Learning rate of Adam.")] = None,
    perceptual: Annotated[
        PerceptualName | None, typer.Option(help="The perceptual distance: SSIM, LPIPS, or the ST-LPIPS of stlpips-pytorch.")
    ] = None,
    identity: Annotated[
        float | None, typer.Option(min=0.0, help="Weight of the identity loss (needs --recognizer).")
    ] = None,
    recognizer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TorchScript face recognizer of the identity loss (a program: trust it).")
    ] = None,
    adversarial: Annotated[float | None, typer.Option(min=0.0, help="Weight of the discriminator's loss.")] = None,
    light: training.LightOption = None,
    max_identities: training.MaxIdentitiesOption = None,
    time_limit: training.TimeLimitOption = None,
    resume: training.ResumeOption = None,
    checkpoint: training.CheckpointOption = None,
    previews: training.PreviewsOption = None,
    head_model: options.HeadModelOption = "anny",
    head_model_path: options.HeadModelPathOption = None,
    force: options.ForceOption = False,
    seed: options.SeedOption = 0,
    device: options.DeviceOption = "auto",
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Learn a one-shot portrait from many tracked people.

    Stage static learns to show one picture's moment from another camera, and needs people whose moments are seen from several sides
    (avtool synth-data --expressions). Stage motion starts from its result and learns to drive it. Checkpoints are written as training
    goes; --resume goes on from one. Options override the file of --config. Under torchrun the processes share every batch.

    Example: avtool train-portrait heads/ --stage static -o static.safetensors
    """
    from dataclasses import replace

    from ..portrait.settings import check_settings, load_settings

    overrides = {
        "stage": stage and stage.value, "preset": preset, "size": size, "motion": motion, "steps": steps, "batch_size": batch_size,
        "learning_rate": learning_rate, "perceptual": perceptual and perceptual.value, "light": light and light.value,
        "recognizer": recognizer and str(recognizer), "max_identities": max_identities,
    }  # fmt: skip
    settings = check_settings(_override(load_settings(config), overrides, identity, adversarial), "options")
    if print_config:
        sys.stdout.write(settings.to_yaml())
        return
    checkpoint = training.check_files(dataset, output, checkpoint, resume, force)

    from ..portrait.train import PortraitOptions, resumed_stage, train_portrait

    if resume is not None and stage is None:
        settings = replace(settings, stage=resumed_stage(resume))
    chosen = PortraitOptions(
        device=str(options.resolve_device(device)), seed=seed, time_limit=time_limit, checkpoint=checkpoint,
        previews=previews or output.with_suffix(".previews"), resume=resume, init=init,
    )  # fmt: skip
    head = options.load_head(head_model, head_model_path)
    log = training.TrainingLog(quiet)
    with console.progress("training", log.quiet) as step:
        portrait = train_portrait(dataset, head, settings, chosen, step, log)
    if not log.is_main:
        return
    portrait.save(output, portrait.metadata)
    console.report({"output": output, **log.last}, as_json, quiet)


def _override(
    settings: PortraitTraining, overrides: dict[str, object], identity: float | None, adversarial: float | None
) -> PortraitTraining:
    """Settings with the options that were given on top."""
    from dataclasses import replace

    given = {"identity": identity, "adversarial": adversarial}
    weights = replace(settings.weights, **{key: value for key, value in given.items() if value is not None})
    return replace(settings, weights=weights, **{key: value for key, value in overrides.items() if value is not None})
