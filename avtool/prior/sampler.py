"""Who is shown when: batches of identities and pictures, drawn from a generator whose state can be saved.

Shape legend: K identities in all, I of them in a batch, B = I * views pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What one step trains on: identities (I,), pictures (B,) grouped by identity, a background color each (B, 1, 1, 3)."""

    identities: Tensor
    pictures: Tensor
    background: Tensor

    def part(self, index: int, count: int) -> Batch:
        """The index-th of `count` equal slices of whole identities; their losses' mean is then the batch's."""
        assert len(self.identities) % count == 0
        return Batch(*(x.chunk(count)[index] for x in (self.identities, self.pictures, self.background)))

    def to(self, device: torch.device | str) -> Batch:
        """Move all tensors."""
        return Batch(self.identities.to(device), self.pictures.to(device), self.background.to(device))


class BatchSampler:
    """Draws identities in shuffled rounds and, for each, distinct random pictures.

    With equal weights everyone is in every round once. Otherwise a person of weight w is in a fraction w / (the greatest
    w) of them, evenly spaced from a random start (systematic sampling), so that the shares are exact and not only
    expected. Nobody is twice in a batch, which bounds a weight: whoever would have to be in a batch more than once is in
    every one, and the others share the rest by their weights.

    A pseudo picture gives way to a real one of its moment with probability `real_target` (Portrait4D-v2, section 3.2). A picture
    may then be twice in a batch.

    Args:
        frames: per identity the indices of its pictures. weights: per identity; None when all are equal.
        twins: per pseudo picture the real ones of its moment; nothing more is drawn where there are none.
    """

    def __init__(
        self, frames: list[Tensor], identities: int, views: int, seed: int, weights: Sequence[float] | None = None,
        twins: Mapping[int, Tensor] | None = None, real_target: float = 0.0,
    ) -> None:  # fmt: skip
        self.frames = frames
        self.num_identities, self.num_views = min(identities, len(frames)), views
        self.generator = torch.Generator().manual_seed(seed)
        self.twins, self.real_target = twins or {}, real_target
        self.queue: list[int] = []
        self.rates: Tensor | None = None
        if weights is not None and len(set(weights)) > 1:
            shares = batch_shares(weights, self.num_identities)
            self.rates = shares / shares.max()
            self.credit = torch.rand(len(frames), generator=self.generator, dtype=torch.float64)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Identities (I,) and picture indices (I * views,), grouped by identity; both on the CPU."""
        while len(set(self.queue)) < self.num_identities:
            fresh = torch.randperm(len(self.frames), generator=self.generator).tolist()
            included = self._included()
            # Nobody twice in a batch: whoever still waits from the round before comes last in this one.
            early = set(self.queue)
            self.queue += sorted((k for k in fresh if included[k]), key=lambda k: k in early)
        chosen: list[int] = []
        waiting = []  # whoever is in the queue twice keeps the second place
        for k in self.queue:
            (chosen if len(chosen) < self.num_identities and k not in chosen else waiting).append(k)
        self.queue = waiting
        pictures = torch.cat([self._pictures(self.frames[k]) for k in chosen])
        return torch.tensor(chosen), self._with_real(pictures)

    def batch(self) -> Batch:
        """The next batch, background colors included; on the CPU."""
        identities, pictures = self.draw()
        return Batch(identities, pictures, self.colors(len(pictures)))

    def _included(self) -> list[bool]:
        """Who is in the next round."""
        if self.rates is None:
            return [True] * len(self.frames)
        self.credit += self.rates
        included = self.credit >= 1
        self.credit -= included.double()
        return included.tolist()

    def _pictures(self, frames: Tensor) -> Tensor:
        order = torch.randperm(len(frames), generator=self.generator)
        repeats = -(-self.num_views // len(frames))
        return frames[order.repeat(repeats)[: self.num_views]]

    def _with_real(self, pictures: Tensor) -> Tensor:
        """Pictures (B,) with real ones in the place of pseudo ones; the number of draws does not depend on who is pseudo."""
        if not self.twins:
            return pictures
        replaced, which = torch.rand(2, len(pictures), generator=self.generator)
        for i, picture in enumerate(pictures.tolist()):
            if picture in self.twins and replaced[i] < self.real_target:
                twins = self.twins[picture]
                pictures[i] = twins[int(which[i] * len(twins))]
        return pictures

    def colors(self, count: int) -> Tensor:
        """Random background colors (count, 1, 1, 3): coverage must be learned, not hidden by a white wall."""
        return torch.rand(count, 1, 1, 3, generator=self.generator)

    def state(self) -> dict[str, Tensor]:
        """What load_state needs to go on with the same draws."""
        state = {"generator": self.generator.get_state(), "queue": torch.tensor(self.queue, dtype=torch.int64)}
        return state if self.rates is None else {**state, "credit": self.credit.clone()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on as saved."""
        self.generator.set_state(state["generator"].cpu())
        self.queue = state["queue"].tolist()
        if self.rates is not None:
            self.credit = state["credit"].clone()


def batch_shares(weights: Sequence[float], identities: int) -> Tensor:
    """Weights (K,) -> chance of each to be in a batch of I different people (K,), at most 1, their sum I."""
    shares = torch.tensor(weights, dtype=torch.float64)
    certain = torch.zeros(len(shares), dtype=torch.bool)
    while True:
        free = identities - int(certain.sum())
        scaled = shares * (free / shares[~certain].sum()) if free > 0 else torch.zeros_like(shares)
        scaled[certain] = 1.0
        beyond = (scaled > 1) & ~certain
        if not beyond.any():
            return scaled.clamp_min(1e-12)
        certain |= beyond
