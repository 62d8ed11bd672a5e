"""The identity codebook z of the auto-decoder: one code per identity and part."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Codebook(nn.Module):
    """z (K, P, C2), zero-initialized as in HeadGAP: K identities, P parts."""

    def __init__(self, num_identities: int, num_parts: int, channels: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(num_identities, num_parts, channels))

    def forward(self, identities: Tensor) -> Tensor:
        """Identity indices (I,) -> codes (I, P, C2)."""
        return self.codes[identities]

    def mix(self, logits: Tensor) -> Tensor:
        """Convex mix per part, z*_l = sum_j softmax(w)_jl z_jl (HeadGAP eq. 9): logits (K, P) -> code (1, P, C2)."""
        weights = torch.softmax(logits, dim=0)
        return (weights[..., None] * self.codes).sum(0, keepdim=True)
