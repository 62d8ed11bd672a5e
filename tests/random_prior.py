"""A prior with random weights whose people differ at once: what personalization is tested on without any training."""

from __future__ import annotations

import copy

import torch

from avtool.head import HeadModel
from avtool.prior.avatar import Avatar
from avtool.prior.prior import Prior


def random_prior(head: HeadModel, people: int = 3, uv_size: int = 24, refiner: str = "tiny", **settings: object) -> Prior:
    """Codes, last layers and refiner from a fixed seed: blotchy heads in colors of their own, points near the surface."""
    prior = Prior.create(head, people, preset="tiny", uv_size=uv_size, refiner=refiner, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        prior.codebook.codes.normal_(generator=generator)
        prior.gapnet.geometry_mlp.weights[-1].normal_(std=0.03, generator=generator)
        prior.gapnet.appearance_mlp.weights[-1].normal_(std=0.3, generator=generator)
        if prior.refiner is not None:
            prior.refiner.net[-1].weight.normal_(std=0.02, generator=generator)
    return prior


def person_of(prior: Prior, k: int, seed: int = 7, with_offsets: bool = True) -> Avatar:
    """Person k of the prior as an avatar with a random face shape and small vertex offsets; the prior is copied."""
    generator = torch.Generator().manual_seed(seed)
    identity = 0.5 * torch.randn(prior.head.num_identity, generator=generator)
    offsets = 1e-3 * torch.randn(prior.head.template.shape, generator=generator)
    return Avatar(
        prior.head, prior.binding, copy.deepcopy(prior.gapnet), copy.deepcopy(prior.refiner),
        prior.codebook.codes[k : k + 1].detach().clone(), identity, offsets if with_offsets else None, {"made_by": "test"},
    )  # fmt: skip
