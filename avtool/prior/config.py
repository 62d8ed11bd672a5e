"""Configuration of prior training: one frozen dataclass, a YAML file of its fields, command line on top."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from avtool.errors import FormatError
from avtool.prior.gapnet import PRESETS
from avtool.prior.objective import PERCEPTUAL, LossWeights
from avtool.prior.refiner import REFINER_WIDTHS
from avtool.prior.settings import merged, read_yaml


@dataclass(frozen=True)
class TrainConfig:
    """How a prior is trained. Defaults are for one GPU and an hour or so; the paper's figures in brackets."""

    preset: str = "default"  # widths of GAPNet: tiny, default, large, paper
    uv_size: int = 128  # [300]
    refiner: str = "default"  # width of the CNN: none, tiny, default, large, paper
    image_size: int = 256
    coarse_share: float = 0.0  # share of the steps, from the start, on pictures of half the size: about half the cost each
    steps: int = 20000  # [100,000]
    batch_size: int = 32  # pictures a step, of all processes together [32]
    accumulate: int = 1  # parts that a step is computed in, one after the other: memory of one, gradient of all
    views_per_identity: int = 4  # pictures of one person in a batch; A^g and meshes of a person are shared by them
    max_identities: int | None = None
    light: str = "any"  # even: without people whose track says that their light is uneven
    precision: str = "fp32"  # bf16: products of the networks in bfloat16, where the hardware is faster at it
    learning_rate: float = 1e-3  # [1e-3]
    # Times learning_rate for the codes [1]: a code moves only when its person is drawn, once in a round of all people, and thousands of
    # steps are few rounds.
    code_speed: float = 5.0
    track_rate: float = 1e-5  # identity, expression, pose: 0 keeps exact synthetic parameters as they are
    offset_rate: float = 1e-6  # static vertex offsets, metres a step
    warmup: int = 100
    ema_decay: float = 0.998  # 0 switches the running mean of the weights off
    weights: LossWeights = field(default_factory=LossWeights)
    perceptual: str = "lpips"  # network of the term that weights.lpips weighs: none, lpips or st-lpips
    perceptual_weights: str = ""  # file or directory of ST-LPIPS' weights; the installed package's when empty
    pseudo_weight: float = 0.25  # of a pseudo picture, where a real one has 1; only its structure and coverage count
    real_target: float = 0.8  # chance that a real picture of the same moment replaces a pseudo one [Portrait4D-v2: 0.8]
    single_part: bool = False  # ablation "without parts"
    dynamics: bool = True  # False: ablation "without dynamics"
    checkpoint_every: int = 1000
    preview_every: int = 1000
    log_every: int = 100

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return asdict(self)

    def to_yaml(self) -> str:
        """A file that --config reads back."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def config_from_dict(data: object, file: str, base: TrainConfig | None = None) -> TrainConfig:
    """Settings over a base; an unknown key is an error that names it and the known ones."""
    return merged(data, file, base or TrainConfig())


def load_config(path: str | Path | None) -> TrainConfig:
    """Defaults, or a YAML file over them."""
    if path is None:
        return TrainConfig()
    return check_config(config_from_dict(read_yaml(path, "train-prior"), str(path)), str(path))


_CHOICES = {
    "preset": tuple(PRESETS), "refiner": tuple(REFINER_WIDTHS), "light": ("any", "even"), "precision": ("fp32", "bf16"),
    "perceptual": PERCEPTUAL,
}  # fmt: skip


def check_config(config: TrainConfig, file: str = "configuration") -> TrainConfig:
    """Ranges that types cannot say."""
    for key, known in _CHOICES.items():
        if getattr(config, key) not in known:
            raise FormatError(file, key, " or ".join(known), getattr(config, key))
    for key in ("uv_size", "steps", "batch_size", "accumulate", "views_per_identity", "log_every", "checkpoint_every", "preview_every"):
        if getattr(config, key) < 1:
            raise FormatError(file, key, "at least 1", getattr(config, key))
    if config.image_size < 16:
        raise FormatError(file, "image_size", "at least 16", config.image_size)
    if config.coarse_share > 0 and config.image_size < 32:
        raise FormatError(file, "coarse_share", "0 for pictures under 32 pixels", config.coarse_share)
    if config.batch_size % config.views_per_identity:
        raise FormatError(file, "batch_size", f"a multiple of views_per_identity ({config.views_per_identity})", config.batch_size)
    people = config.batch_size // config.views_per_identity
    if people % config.accumulate:
        raise FormatError(file, "accumulate", f"a divisor of the {people} people of a batch", config.accumulate)
    if config.perceptual == "st-lpips" and config.weights.lpips == 0:
        raise FormatError(file, "perceptual", "a weight for st-lpips (weights.lpips, --lpips)", 0)
    if config.code_speed < 0:
        raise FormatError(file, "code_speed", "at least 0", config.code_speed)
    if config.pseudo_weight < 0:
        raise FormatError(file, "pseudo_weight", "at least 0", config.pseudo_weight)
    if not 0 <= config.real_target <= 1:
        raise FormatError(file, "real_target", "in [0, 1]", config.real_target)
    for key in ("coarse_share", "learning_rate", "track_rate", "offset_rate", "ema_decay"):
        if not 0 <= getattr(config, key) < 1:
            raise FormatError(file, key, "in [0, 1)", getattr(config, key))
    return config
