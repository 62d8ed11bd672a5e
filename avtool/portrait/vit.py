"""The transformer that turns what the source shows into canonical features, and motion into a change of them.

Shape legend: B batch, N tokens, D channels, K motion tokens, M motion embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avtool.portrait.config import PortraitConfig


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention of queries (B, N, D) over keys and values (B, K, D): (B, N, D)."""
    split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value)]
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """Tokens read motion. The output starts at zero, so a network that gains these layers starts as it was."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_motion = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, motion: Tensor) -> Tensor:
        """(B, N, D) and motion tokens (B, K, D) -> what to add to x."""
        key, value = self.key_value(self.norm_motion(motion)).chunk(2, dim=-1)
        return self.out(attend(self.query(self.norm(x)), key, value, self.heads))


class Block(nn.Module):
    """Pre-norm self-attention, cross-attention to motion, MLP. Without motion the middle part is left out, not computed."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.proj = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.cross = CrossAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(approximate="tanh"), nn.Linear(mlp_ratio * dim, dim))

    def forward(self, x: Tensor, motion: Tensor | None) -> Tensor:
        """(B, N, D), motion (B, K, D) or None -> (B, N, D)."""
        x = x + self.proj(attend(*self.qkv(self.norm1(x)).chunk(3, dim=-1), self.heads))
        if motion is not None:
            x = x + self.cross(x, motion)
        return x + self.mlp(self.norm2(x))


class MotionTokens(nn.Module):
    """The 2-layer mapping of a motion embedding (B, M) to K = motion_tokens^2 keys and values (B, K, D)."""

    def __init__(self, config: PortraitConfig) -> None:
        super().__init__()
        self.count = config.motion_tokens**2
        self.mapping = nn.Sequential(
            nn.Linear(config.motion_size, config.dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.dim, self.count * config.dim),
        )
        # Tokens of one embedding must differ, or attention has nothing to choose from.
        self.position = nn.Parameter(0.02 * torch.randn(self.count, config.dim))

    def forward(self, motion: Tensor) -> Tensor:
        """(B, M) -> (B, K, D)."""
        return self.mapping(motion).unflatten(-1, (self.count, -1)) + self.position


class Transformer(nn.Module):
    """Neutralizing blocks under the source's motion, then reenacting blocks under the driver's."""

    def __init__(self, config: PortraitConfig) -> None:
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(config.token_size**2, config.dim))
        self.motion = MotionTokens(config)
        sizes = (config.dim, config.heads, config.mlp_ratio)
        self.neutralizing = nn.ModuleList(Block(*sizes) for _ in range(config.neutralizing))
        self.reenacting = nn.ModuleList(Block(*sizes) for _ in range(config.reenacting))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, source_motion: Tensor | None, driver_motion: Tensor | None) -> Tensor:
        """Tokens (B, N, D), motions (B, M) or None -> tokens (B, N, D).

        A batch of one goes with any number of motions: what they share is computed once.
        """
        return self.reenact(self.neutralize(x, source_motion), driver_motion)

    def neutralize(self, x: Tensor, source_motion: Tensor | None) -> Tensor:
        """The first half: tokens (B, N, D) of a source without its expression."""
        return self._through(self.neutralizing, x + self.position, source_motion)

    def reenact(self, neutral: Tensor, driver_motion: Tensor | None) -> Tensor:
        """The second half: neutral tokens (B, N, D) with a driver's expression."""
        return self.norm(self._through(self.reenacting, neutral, driver_motion))

    def _through(self, blocks: nn.ModuleList, x: Tensor, embedding: Tensor | None) -> Tensor:
        motion = None if embedding is None else self.motion(embedding)
        if motion is not None and len(x) != len(motion):
            count = max(len(x), len(motion))
            x, motion = x.expand(count, -1, -1), motion.expand(count, -1, -1)
        for block in blocks:
            x = block(x, motion)
        return x
