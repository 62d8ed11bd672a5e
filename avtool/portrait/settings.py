"""Settings of portrait training: one frozen dataclass, a YAML file of its fields, the command line on top."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from avtool.errors import FormatError
from avtool.portrait.config import PRESETS, PortraitConfig
from avtool.portrait.objective import PERCEPTUAL, PortraitWeights
from avtool.prior.settings import merged, read_yaml

STAGES = ("static", "motion")


@dataclass(frozen=True)
class PortraitTraining:
    """How a portrait is trained. The paper's figures in brackets."""

    stage: str = "static"  # static: one moment, another view; motion: cross-view self-reenactment
    preset: str = "small"  # sizes of a new network: tiny, small, paper
    size: int | None = None  # pixels a side; the preset's, or that of the portrait to start from, when left out [512]
    motion: str = "tracker"  # the frozen embedding: a registered name, or torchscript:FILE
    steps: int = 20000
    batch_size: int = 8  # moments a step, of all processes together [32]
    max_identities: int | None = None
    light: str = "any"  # even: without people whose track says that their light is uneven
    source_angle: float = 60.0  # degrees: a source shows the face; nothing can be said of one from behind
    real_target: float = 0.8  # chance that the real picture replaces a pseudo target [0.8]
    real_driver: float = 0.1  # and a pseudo driver [0.1]
    learning_rate: float = 1e-4  # [1e-4]
    motion_factor: float = 2.5  # on it, for the motion layers of stage motion [2.5]
    warmup: int = 100
    clip_norm: float = 1.0  # of each group's gradient; 0 leaves gradients as they are
    ema_decay: float = 0.998
    weights: PortraitWeights = field(default_factory=PortraitWeights)
    perceptual: str = "ssim"  # network of the perceptual term: ssim (none), lpips or st-lpips
    perceptual_weights: str = ""  # file or directory of ST-LPIPS' weights; the installed package's when empty
    recognizer: str = ""  # TorchScript file of the identity term
    adversarial_start: float = 0.3  # share of the steps before the discriminator joins
    discriminator_rate: float = 1e-4
    r1: float = 1.0
    r1_every: int = 16
    checkpoint_every: int = 1000
    preview_every: int = 1000
    log_every: int = 100

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return asdict(self)

    def to_yaml(self) -> str:
        """A file that --config reads back."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def network(self, motion_size: int) -> PortraitConfig:
        """Sizes of the network for an embedding of a length."""
        preset = PRESETS[self.preset]
        return replace(preset, motion_size=motion_size, size=self.size or preset.size)


def settings_from_dict(data: object, file: str) -> PortraitTraining:
    """Settings over the defaults; an unknown key is an error that names it and the known ones."""
    return merged(data, file, PortraitTraining())


def load_settings(path: str | Path | None) -> PortraitTraining:
    """Defaults, or a YAML file over them."""
    if path is None:
        return PortraitTraining()
    return check_settings(settings_from_dict(read_yaml(path, "train-portrait"), str(path)), str(path))


_CHOICES = {"stage": STAGES, "preset": tuple(PRESETS), "light": ("any", "even"), "perceptual": PERCEPTUAL}


def check_settings(settings: PortraitTraining, file: str = "configuration") -> PortraitTraining:
    """Ranges that types cannot say."""
    for key, known in _CHOICES.items():
        if getattr(settings, key) not in known:
            raise FormatError(file, key, " or ".join(known), getattr(settings, key))
    for key in ("steps", "batch_size", "log_every", "checkpoint_every", "preview_every", "r1_every"):
        if getattr(settings, key) < 1:
            raise FormatError(file, key, "at least 1", getattr(settings, key))
    for key in ("learning_rate", "discriminator_rate", "ema_decay", "adversarial_start"):
        if not 0 <= getattr(settings, key) < 1:
            raise FormatError(file, key, "in [0, 1)", getattr(settings, key))
    for key in ("real_target", "real_driver"):
        if not 0 <= getattr(settings, key) <= 1:
            raise FormatError(file, key, "in [0, 1]", getattr(settings, key))
    for key in ("motion_factor", "clip_norm", "r1", "warmup"):
        if getattr(settings, key) < 0:
            raise FormatError(file, key, "at least 0", getattr(settings, key))
    if not 0 < settings.source_angle <= 180:
        raise FormatError(file, "source_angle", "above 0 and at most 180", settings.source_angle)
    for key, value in asdict(settings.weights).items():
        if value < 0:
            raise FormatError(file, f"weights.{key}", "at least 0", value)
    if settings.weights.identity > 0 and not settings.recognizer:
        raise FormatError(file, "recognizer", "a TorchScript file for weights.identity", "nothing")
    if settings.stage == "motion" and settings.weights.perceptual == 0:
        raise FormatError(file, "weights.perceptual", "above 0 in stage motion, whose pseudo targets have no other term", 0)
    try:
        settings.network(1)
    except ValueError as error:
        raise FormatError(file, "size", f"one that the preset {settings.preset} can have", f"{settings.size}: {error}") from error
    return settings
