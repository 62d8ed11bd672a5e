"""A small patch discriminator and its losses: non-saturating, with R1 on real pictures every few steps.

Goodfellow et al. 2014 for the loss, Mescheder et al. 2018 for R1, Karras et al. 2020 for computing it rarely.

Shape legend: B samples, S x S pixels, p x p patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (32, 64, 128)


class PatchDiscriminator(nn.Module):
    """Pictures (B, S, S, 3) in [0, 1] -> a logit a patch (B, p, p), S / p = 8: large where it looks real."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in WIDTHS:
            # No normalization: R1 keeps the gradients small, and statistics of a batch would tie its samples together.
            layers += [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            channels = width
        self.net = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, p, p)."""
        return self.net(2 * images.movedim(-1, 1) - 1)[:, 0]


def generator_loss(logits: Tensor) -> Tensor:
    """Non-saturating: what the pictures of the portrait should raise."""
    return F.softplus(-logits).mean()


def discriminator_loss(network: PatchDiscriminator, real: Tensor, fake: Tensor, r1: float) -> Tensor:
    """Real against rendered pictures, both (B, S, S, 3); `r1` is the weight of the gradient penalty, 0 for a step without."""
    real = real.detach().requires_grad_(r1 > 0)
    seen = network(real)
    loss = F.softplus(-seen).mean() + F.softplus(network(fake.detach())).mean()
    if r1 > 0:
        (gradient,) = torch.autograd.grad(seen.mean((1, 2)).sum(), real, create_graph=True)
        loss = loss + 0.5 * r1 * gradient.square().sum((1, 2, 3)).mean()
    return loss
