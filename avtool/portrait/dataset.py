"""Who shows what to whom: moments of tracked people, and draws of source, driver and target pictures from them.

A moment is all pictures of one person with the same expression, neck, head, jaw and eyes. A picture is pseudo when its track says
that it was made from a real one (Frame.pseudo): real ones carry detail, pseudo ones the views that were never photographed.

Shape legend: F pictures of all people, K people, N moments, B samples of a batch, S x S pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from avtool.errors import AvtoolError
from avtool.head import HeadModel, HeadParams
from avtool.portrait.frontal import SOURCE_BACKGROUND, SourceView
from avtool.prior.dataset import MOTION, TrainingSet, group_moments, load_training_set
from avtool.prior.sampler import BatchSampler
from avtool.rotations import axis_angle_to_matrix


@dataclass(frozen=True)
class PortraitBatch:
    """Picture indices (B,) of the sources, the drivers and the targets, and a background color each (B, 1, 1, 3)."""

    source: Tensor
    driver: Tensor
    target: Tensor
    background: Tensor

    def part(self, index: int, count: int) -> PortraitBatch:
        """The index-th of `count` equal slices."""
        assert len(self.source) % count == 0
        return PortraitBatch(*(x.chunk(count)[index] for x in (self.source, self.driver, self.target, self.background)))

    def to(self, device: torch.device | str) -> PortraitBatch:
        """Move all tensors."""
        return PortraitBatch(*(x.to(device) for x in (self.source, self.driver, self.target, self.background)))


@dataclass
class PortraitSet:
    """Pictures of K people with their moments.

    data: pictures and everything tracked; people (F,) who is in a picture; moments: picture indices of each of the N moments;
    owners: whose moment it is; facing (F,) radians between where the face looks and where the camera is.
    """

    data: TrainingSet
    people: Tensor
    moments: list[Tensor]
    owners: list[int]
    facing: Tensor

    @staticmethod
    def of(data: TrainingSet) -> PortraitSet:
        """Find the moments of a training set."""
        people = torch.empty(len(data.images), dtype=torch.long)
        moments, owners = [], []
        for person, frames in enumerate(data.frames):
            people[frames] = person
            groups = group_moments(data.params, frames)
            moments += groups
            owners += [person] * len(groups)
        return PortraitSet(data, people, moments, owners, facing_angles(data.params, data.viewmats))

    def to(self, device: torch.device | str) -> PortraitSet:
        """Move the pictures and what belongs to them; what draws are made of stays on the CPU."""
        return replace(self, data=self.data.to(device), people=self.people.to(device))

    def params(self, index: Tensor) -> HeadParams:
        """Tracked parameters of pictures (B,)."""
        params, who = self.data.params, self.people[index]
        motion = {name: getattr(params, name)[index] for name in MOTION}
        offsets = None if params.offsets is None else params.offsets[who]
        return HeadParams(identity=params.identity[who], offsets=offsets, **motion)

    def sources(self, index: Tensor) -> Tensor:
        """Pictures (B, S, S, 3) as a source is shown to the network."""
        return self.data.targets(index, self.data.Ks.new_full((1, 1, 1, 1), SOURCE_BACKGROUND))[0]

    def source_views(self, index: Tensor) -> SourceView:
        """The same with what was tracked in them."""
        return SourceView(self.sources(index), self.params(index), self.data.viewmats[index], self.data.Ks[index])


def on_gray(images: Tensor, mattes: Tensor | None) -> Tensor:
    """Pictures (B, S, S, 3) cut out by their mattes (B, S, S, 1), as a source is shown to the network, outside of training sets."""
    assert mattes is not None
    return images * mattes + (1 - mattes) * SOURCE_BACKGROUND


def load_portrait_set(
    directories: Sequence[str | Path],
    head: HeadModel,
    size: int,
    max_identities: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    light: str = "any",
) -> PortraitSet:
    """Read data sets as load_training_set() does."""
    return PortraitSet.of(load_training_set(directories, head, size, max_identities, progress, light))


def facing_angles(params: HeadParams, viewmats: Tensor) -> Tensor:
    """Angle (F,) in radians between the direction of the posed face and that of the camera: 0 frontal, pi from behind."""
    turned = axis_angle_to_matrix(params.neck) @ axis_angle_to_matrix(params.head)
    forward = turned[..., :, 2]
    camera = -(viewmats[:, :3, :3].mT @ viewmats[:, :3, 3:])[..., 0]
    cosine = torch.cosine_similarity(forward, camera, dim=-1)
    return torch.acos(cosine.clamp(-1, 1)).cpu()


class StaticSampler:
    """Pairs of one moment: a source p from which the face is seen, and another picture q of it (method of section 3.1)."""

    def __init__(self, data: PortraitSet, batch_size: int, seed: int, source_angle: float) -> None:
        limit, pseudo = math.radians(source_angle), data.data.pseudo.cpu()
        chosen, owners = [], []
        self.sources: list[Tensor] = []
        for group, owner in zip(data.moments, data.owners):
            real = group[~pseudo[group]]
            sources = real[data.facing[real] <= limit]
            if len(real) > 1 and len(sources):
                chosen.append(real)
                owners.append(owner)
                self.sources.append(sources)
        if not chosen:
            raise AvtoolError(
                f"no moment is shown by two real pictures, one of them within {source_angle:g} degrees of the face",
                "draw people with: avtool synth-data --views 8 --expressions 2",
            )
        self.moments = chosen
        self.rounds = _rounds(chosen, owners, data, batch_size, seed)

    @property
    def batch_size(self) -> int:
        """B: fewer than asked for when there are fewer moments."""
        return self.rounds.num_identities

    def batch(self) -> PortraitBatch:
        """The next batch, on the CPU."""
        moments, _ = self.rounds.draw()
        pairs = []
        for k in moments.tolist():
            source = _choice(self.sources[k], self.rounds.generator)
            others = self.moments[k][self.moments[k] != source]
            pairs.append(torch.stack((source, _choice(others, self.rounds.generator))))
        source, target = torch.stack(pairs).unbind(1)
        return PortraitBatch(source, source, target, self.rounds.colors(len(pairs)))

    def state(self) -> dict[str, Tensor]:
        """What load_state needs to go on with the same draws."""
        return self.rounds.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on as saved."""
        self.rounds.load_state(state)


class MotionSampler:
    """Cross-view self-reenactment (section 3.2): a real source of any moment, driver and target of one moment.

    Both are pseudo where the moment has pseudo pictures; then the target is replaced by the moment's real picture with probability
    `real_target`, the driver with `real_driver`. A moment without pseudo pictures gives real ones.
    """

    def __init__(
        self, data: PortraitSet, batch_size: int, seed: int, source_angle: float, real_target: float, real_driver: float
    ) -> None:
        self.real_target, self.real_driver = real_target, real_driver
        limit, pseudo = math.radians(source_angle), data.data.pseudo.cpu()
        self.sources = {}
        for person, frames in enumerate(data.data.frames):
            real = frames[~pseudo[frames]]
            self.sources[person] = real[data.facing[real] <= limit]
        kept = [(group, k) for group, k in zip(data.moments, data.owners) if len(self.sources[k])]
        if not kept:
            raise AvtoolError(f"nobody has a real picture within {source_angle:g} degrees of the face to be the source")
        chosen, self.owners = [group for group, _ in kept], [owner for _, owner in kept]
        self.real = [group[~pseudo[group]] for group in chosen]
        self.made = [group[pseudo[group]] for group in chosen]
        self.rounds = _rounds(chosen, self.owners, data, batch_size, seed)

    @property
    def batch_size(self) -> int:
        """B: fewer than asked for when there are fewer moments."""
        return self.rounds.num_identities

    def batch(self) -> PortraitBatch:
        """The next batch, on the CPU."""
        moments, _ = self.rounds.draw()
        triples = [torch.stack(self._triple(k)) for k in moments.tolist()]
        return PortraitBatch(*torch.stack(triples).unbind(1), self.rounds.colors(len(triples)))

    def _triple(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = self.rounds.generator
        source = _choice(self.sources[self.owners[k]], generator)
        real, made = self.real[k], self.made[k]
        # Drawn always, so that the number of draws does not depend on the data.
        keep_target, keep_driver = (torch.rand(2, generator=generator) >= torch.tensor((self.real_target, self.real_driver))).tolist()
        target = _choice(made if len(made) and (keep_target or not len(real)) else real, generator)
        driver = _choice(made if len(made) and (keep_driver or not len(real)) else real, generator)
        return source, driver, target

    def state(self) -> dict[str, Tensor]:
        """What load_state needs to go on with the same draws."""
        return self.rounds.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on as saved."""
        self.rounds.load_state(state)


def _rounds(moments: list[Tensor], owners: list[int], data: PortraitSet, batch_size: int, seed: int) -> BatchSampler:
    """Draws of moments so that people, not moments, are drawn by the weights of their data sets."""
    counts = torch.bincount(torch.tensor(owners), minlength=data.data.num_identities).tolist()
    weights = [data.data.weights[owner] / counts[owner] for owner in owners]
    return BatchSampler(moments, batch_size, 1, seed, weights)


def _choice(items: Tensor, generator: torch.Generator) -> Tensor:
    return items[torch.randint(len(items), (), generator=generator)]
