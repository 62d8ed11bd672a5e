"""A tiny untrained portrait that moves: what one-shot reenactment is tested on in seconds."""

from __future__ import annotations

from dataclasses import replace

import torch

from avtool.head import HeadModel
from avtool.portrait import PRESETS, Portrait

METADATA = {"stage": "motion", "motion": "tracker"}


def make_portrait(head: HeadModel, motion_size: int | None = None) -> Portrait:
    """As after some training: the outputs of the cross-attentions are no longer zero, and the head is opaque."""
    config = PRESETS["tiny"]
    portrait = Portrait.create(replace(config, motion_size=motion_size or config.motion_size), head, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in portrait.named_parameters():
            if ".cross.out." in name or name == "upsampler.last.weight":
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return portrait.eval()
