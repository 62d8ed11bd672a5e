"""Portrait training from the outside: data sets in, network out (Portrait4D-v2, arXiv 2403.13570, section 3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from avtool.errors import AvtoolError, FormatError
from avtool.head import HeadModel
from avtool.portrait.dataset import PortraitSet, load_portrait_set
from avtool.portrait.motion import MotionEncoder, load_motion
from avtool.portrait.network import Portrait
from avtool.portrait.settings import PortraitTraining, check_settings
from avtool.portrait.trainer import PortraitOptions, PortraitTrainer, saved_settings
from avtool.prior.checkpoint import Checkpoint
from avtool.prior.dataset import split_weight
from avtool.prior.distributed import World
from avtool.prior.loop import Log, Progress, run_training
from avtool.prior.storage import check_head_model
from avtool.prior.train import DEVICE_CACHE_BYTES

__all__ = ["PortraitOptions", "resumed_stage", "train_portrait", "training_metadata"]


def train_portrait(
    dataset_dirs: Sequence[str | Path],
    head: HeadModel,
    config: PortraitTraining | None = None,
    options: PortraitOptions | None = None,
    progress: Progress | None = None,
    log: Log | None = None,
) -> Portrait:
    """Train a portrait on tracked people; returns it with averaged weights.

    Stage "static" learns Psi_3d from people seen from several sides; stage "motion" starts from such a portrait
    (`options.init`) and learns Psi. Under torchrun every process calls it alike, and the first alone writes and reports.

    Args:
        dataset_dirs: directories of people, each with a track.json; "=WEIGHT" at the end draws them more or less often.
        config: None for the defaults; on resume the checkpoint's settings hold, except for `steps`.
        progress: called with (done, total, message). log: called with (step, figures) every `log_every` steps.
    """
    options, world = options or PortraitOptions(), World.from_environment()
    config, options, saved = resumed(config, options)
    options = replace(options, device=world.device(options.device))
    if not world.is_main:
        options, progress, log = replace(options, checkpoint=None, previews=None), None, None
    if torch.device(options.device).type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as in prior training
    head = head.to(options.device)
    encoder = load_motion(config.motion, head)
    portrait = _network(config, options, saved, encoder, head)
    with world.joined(options.device):
        data = _loaded(dataset_dirs, head, config, portrait.config.size, progress).to(options.device)
        trainer = PortraitTrainer(portrait, encoder, head, data, config, options, world)
        if saved is not None:
            trainer.restore(saved, Path(options.resume))
        if options.previews is not None:
            options.previews.mkdir(parents=True, exist_ok=True)
        run_training(trainer, progress, log)
    if options.checkpoint is not None:
        trainer.checkpoint().save(options.checkpoint)
    trainer.average.put()
    portrait.metadata = training_metadata(config, options, dataset_dirs, encoder)
    return portrait.eval()


def resumed_stage(path: Path) -> str:
    """Which stage a checkpoint is of."""
    return saved_settings(Checkpoint.load(path), path)[0].stage


def resumed(
    config: PortraitTraining | None, options: PortraitOptions
) -> tuple[PortraitTraining, PortraitOptions, Checkpoint | None]:
    """What a run is really done with: on resume the checkpoint's settings and seed, with the number of steps of `config`."""
    if options.resume is None:
        settings = check_settings(config or PortraitTraining())
        if settings.stage == "motion" and options.init is None:
            raise AvtoolError("stage motion starts from a static portrait, found none", "train one with --stage static, and pass it as --init")
        return settings, options, None
    saved = Checkpoint.load(options.resume)
    settings, _ = saved_settings(saved, options.resume)
    if config is not None and config.stage != settings.stage:
        hint = "--resume goes on with a stage; --init starts one from a portrait"
        raise FormatError(options.resume, "stage", config.stage, settings.stage, hint)
    settings = settings if config is None else replace(settings, steps=config.steps)
    return settings, replace(options, seed=saved.seed, init=None), saved


def _network(
    config: PortraitTraining, options: PortraitOptions, saved: Checkpoint | None, encoder: MotionEncoder, head: HeadModel
) -> Portrait:
    """The network to train: of the checkpoint's sizes, the portrait to start from, or one of the preset."""
    if saved is not None:
        sizes = saved_settings(saved, Path(options.resume))[1]
        check_head_model(options.resume, saved.head_model, head.model_id)
        if sizes.motion_size != encoder.size:
            raise FormatError(options.resume, "motion_size", f"{encoder.size}, that of {config.motion}", sizes.motion_size)
        return Portrait.create(sizes, head, options.seed)
    if options.init is None:
        return Portrait.create(config.network(encoder.size), head, options.seed)
    start = Portrait.load(options.init, head.device, head)
    if config.size not in (None, start.config.size):
        raise FormatError(options.init, "size", f"{config.size} as --size says", start.config.size)
    return started_from(start, encoder, head, options.seed)


def started_from(start: Portrait, encoder: MotionEncoder, head: HeadModel, seed: int) -> Portrait:
    """The portrait itself, or, for an embedding that is not the one it was made for, all of it but the motion layers."""
    known = start.metadata.get("motion", encoder.name)
    if known == encoder.name and start.config.motion_size == encoder.size:
        return start
    fresh = Portrait.create(replace(start.config, motion_size=encoder.size), head, seed)
    with torch.no_grad():
        torch._foreach_copy_([p.data for p in fresh.static_parameters()], [p.data for p in start.static_parameters()])
    return fresh


def _loaded(
    dataset_dirs: Sequence[str | Path], head: HeadModel, config: PortraitTraining, size: int, progress: Progress | None
) -> PortraitSet:
    """The data sets on the CPU; AvtoolError when they are too large to be kept in memory."""
    found = load_portrait_set(dataset_dirs, head.to("cpu"), size, config.max_identities, progress, config.light)
    if found.data.images.nbytes > DEVICE_CACHE_BYTES:
        raise AvtoolError(
            f"the data set takes {found.data.images.nbytes / 2**30:.0f} GB in memory", "lower max_identities or size"
        )
    return found


def training_metadata(
    config: PortraitTraining, options: PortraitOptions, data: Sequence[str | Path], encoder: MotionEncoder
) -> dict[str, str]:
    """How a portrait was made, for its file: stage, embedding and its size, settings, seed and data."""
    return {
        "stage": config.stage,
        "motion": encoder.name,
        "motion_size": str(encoder.size),
        "config": json.dumps(config.to_dict(), sort_keys=True),
        "seed": str(options.seed),
        "data": ",".join(split_weight(source)[0].name for source in data),
    }
