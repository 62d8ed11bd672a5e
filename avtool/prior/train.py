"""Prior learning (HeadGAP section 3.3): auto-decoding of many tracked people, in one process or several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from avtool.errors import AvtoolError
from avtool.head import HeadModel
from avtool.prior.checkpoint import Checkpoint
from avtool.prior.config import TrainConfig, check_config, config_from_dict
from avtool.prior.dataset import TrainingSet, load_training_set, split_weight
from avtool.prior.distributed import World
from avtool.prior.loop import Log, Progress
from avtool.prior.prior import Prior
from avtool.prior.trainer import Trainer, TrainOptions

__all__ = ["Trainer", "TrainOptions", "resumed_settings", "train_prior", "training_metadata"]

DEVICE_CACHE_BYTES = 12 * 2**30
"""Data sets up to this size live on the GPU: 200 people x 24 views at 256 are 1.3 GB."""


def train_prior(
    dataset_dirs: Sequence[str | Path],
    head: HeadModel,
    config: TrainConfig | None = None,
    options: TrainOptions | None = None,
    progress: Progress | None = None,
    log: Log | None = None,
) -> Prior:
    """Train a prior on tracked people; returns it with averaged weights.

    Under torchrun every process calls it alike, and the first alone writes and reports (see distributed.py). With `options.init` it
    starts from the networks of a known prior, whose sizes then hold, and every person from the mean of the people that one knows.

    Args:
        dataset_dirs: directories of people, each with a track.json; "=WEIGHT" at the end draws them more or less often.
        config: None for the defaults; on resume the checkpoint's settings hold, except for `steps`.
        progress: called with (done, total, message). log: called with (step, figures) every `log_every` steps.
    """
    options, world = options or TrainOptions(), World.from_environment()
    saved = Checkpoint.load(options.resume) if options.resume else None
    config, options = resumed_settings(config, options, saved, head)
    config = check_config(config or TrainConfig())
    options = replace(options, device=world.device(options.device))
    if not world.is_main:
        options, progress, log = replace(options, checkpoint=None, previews=None), None, None
    check_hardware(config, torch.device(options.device))
    with world.joined(options.device):
        data = _loaded(dataset_dirs, head, config, progress).to(options.device)
        prior = _networks(config, options, head.to(options.device), data.num_identities)
        torch.manual_seed(options.seed)
        trainer = Trainer(prior, data, config, options, world)
        if saved is not None:
            trainer.restore(saved, Path(options.resume))
        if options.previews is not None:
            options.previews.mkdir(parents=True, exist_ok=True)
        trainer.run(progress, log)
    if options.checkpoint is not None:
        trainer.checkpoint().save(options.checkpoint)
    trainer.average.put()
    return prior


def _networks(config: TrainConfig, options: TrainOptions, head: HeadModel, num_identities: int) -> Prior:
    """What training moves: untrained networks, or those to start from."""
    if options.init is not None:
        return Prior.load(options.init, head.device, head).for_people(num_identities)
    return Prior.create(
        head, num_identities, preset=config.preset, uv_size=config.uv_size, refiner=config.refiner,
        single_part=config.single_part, dynamics=config.dynamics, seed=options.seed,
    )  # fmt: skip


def check_hardware(config: TrainConfig, device: torch.device) -> None:
    """Set CUDA's precision; AvtoolError when the device cannot compute as configured."""
    if device.type != "cuda":
        return
    torch.set_float32_matmul_precision("high")  # TF32: twice as fast, and colors need no more digits
    if config.precision == "bf16" and not torch.cuda.is_bf16_supported():
        raise AvtoolError(f"{torch.cuda.get_device_name(device)} has no bfloat16", "train with --precision fp32")


def _loaded(
    dataset_dirs: Sequence[str | Path], head: HeadModel, config: TrainConfig, progress: Progress | None
) -> TrainingSet:
    """The data set on the CPU; AvtoolError when it is too large to be kept in memory."""
    data = load_training_set(
        dataset_dirs, head.to("cpu"), config.image_size, config.max_identities, progress, config.light
    )
    if data.images.nbytes > DEVICE_CACHE_BYTES:
        raise AvtoolError(
            f"the data set takes {data.images.nbytes / 2**30:.0f} GB in memory", "lower max_identities or image_size"
        )
    return data


def resumed_settings(
    config: TrainConfig | None, options: TrainOptions, saved: Checkpoint | None, head: HeadModel | None = None
) -> tuple[TrainConfig | None, TrainOptions]:
    """What a run is really done with: on resume the checkpoint's settings and seed, with the number of steps of `config`; the
    sizes of a prior to start from."""
    if saved is not None:
        settings = config_from_dict(saved.config, str(options.resume))
        options = replace(options, seed=saved.seed, init=None)  # the checkpoint holds all weights
        return settings if config is None else replace(settings, steps=config.steps), options
    if options.init is None:
        return config, options
    return replace(config or TrainConfig(), **Prior.load(options.init, head=head).sizes()), options


def training_metadata(config: TrainConfig, options: TrainOptions, data: Sequence[str | Path]) -> dict[str, str]:
    """How a prior was made, for its file."""
    sources = [split_weight(source) for source in data]
    metadata = {
        "config": json.dumps(config.to_dict(), sort_keys=True),
        "seed": str(options.seed),
        "data": ",".join(path.name for path, _ in sources),
    }
    if options.init is not None:
        metadata["init"] = Path(options.init).name
    if len({weight for _, weight in sources}) > 1:
        metadata["data_weights"] = ",".join(f"{weight:g}" for _, weight in sources)
    return metadata
