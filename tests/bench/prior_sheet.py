"""What a prior knows, to be looked at: python tests/bench/prior_sheet.py OUT.png [--prior default] [--avatar FILE ...] [--people 6]

Without --avatar: people that nobody is, each a random mix of three of the prior's codes on a random shape, from five sides and with five
expressions. With --avatar: each avatar turned from -45 to 45 degrees, and with shut eyes, an open mouth and a smile.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avtool.cameras import intrinsics, orbit_viewmats
from avtool.prior.avatar import Avatar
from avtool.prior.prior import Prior

EXPRESSIONS: tuple[dict[str, float], ...] = (
    {"mouthSmileLeft": 0.8, "mouthSmileRight": 0.8, "mouthUpperUpLeft": 0.3, "mouthUpperUpRight": 0.3},
    {"jawOpen": 0.7},
    {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0},
    {"browInnerUp": 0.9, "browOuterUpLeft": 0.8, "browOuterUpRight": 0.8, "eyeWideLeft": 0.8, "eyeWideRight": 0.8, "jawOpen": 0.2},
    {"mouthPucker": 0.9},
)
DISTANCE, FOCAL = 1.1, 3.0  # metres, picture sides
MIX = 3


def random_person(prior: Prior, seed: int) -> Avatar:
    """A mix of codes, part by part the same, on a shape of its own."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(prior.num_identities, generator=generator)[:MIX]
    shares = torch.rand(len(chosen), generator=generator)
    code = (prior.codebook.codes.detach()[chosen] * (shares / shares.sum())[:, None, None]).sum(0, keepdim=True)
    identity = 0.7 * torch.randn(prior.head.num_identity, generator=generator)
    return Avatar(prior.head, prior.binding, prior.gapnet, prior.refiner, code, identity)


def pictures(avatar: Avatar, views: list[tuple[float, dict[str, float]]], size: int) -> np.ndarray:
    """One row (size, len(views) size, 3) uint8: yaw in degrees and expression weights of each."""
    names, row = list(avatar.head.expression_names), []
    skull = avatar.head(avatar.identity_params).vertices
    skull = skull[avatar.head.skin_weights.argmax(1) >= avatar.head.joint_names.index("neck")]
    center: Tensor = (skull.amin(0) + skull.amax(0)) / 2
    K = intrinsics(FOCAL * size, size, size)[None]
    zero = torch.zeros(1, 3)
    for yaw, weights in views:
        expression = torch.zeros(1, len(names))
        for name, weight in weights.items():
            expression[0, names.index(name)] = weight
        params = avatar.params_for(expression, zero, zero, zero, torch.zeros(1, 2, 3))
        viewmats = orbit_viewmats([math.radians(yaw)], [0.0], DISTANCE, center)
        with torch.no_grad():
            image, _ = avatar.render(params, viewmats, K, size, size)
        row.append((255 * image[0]).round().byte().numpy())
    return np.concatenate(row, 1)


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--prior", default="default")
    parser.add_argument("--avatar", type=Path, nargs="+", default=[])
    parser.add_argument("--people", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=192)
    options = parser.parse_args()
    if options.avatar:
        subjects = [Avatar.load(file) for file in options.avatar]
        views = [(yaw, {}) for yaw in (-45, -22, 0, 22, 45)] + [(0, EXPRESSIONS[k]) for k in (2, 1, 0)]
    else:
        prior = Prior.load(options.prior)
        subjects = [random_person(prior, options.seed + k) for k in range(options.people)]
        views = [(yaw, {}) for yaw in (-80, -40, 0, 40, 80)] + [(20, weights) for weights in EXPRESSIONS]
    Image.fromarray(np.concatenate([pictures(subject, views, options.size) for subject in subjects])).save(options.out)


if __name__ == "__main__":
    main()
