"""Fine-tuning (HeadGAP section 3.4): what the prior does not know of a person, learned from the photos under three guards.

1. f learns fast, the screen-space network thirty times and everything else hundreds of times slower. 2. The mouth takes no part
in the loss. 3. Reference views, rendered before, must stay as they were.

Pseudo pictures of the person from other sides (see pseudo_views.py) may add structure where the photos show nothing.

Shape legend: B photos, S x S pixels, N points, V vertices.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from avtool.artifacts.track import Track
from avtool.fit import Stage, run_stage
from avtool.gaussians.container import Gaussians
from avtool.head import HeadParams
from avtool.head.mesh import unique_edges
from avtool.losses import Arap
from avtool.prior.avatar import Avatar
from avtool.prior.dataset import MOTION
from avtool.prior.gapnet import Geometry
from avtool.prior.objective import LossWeights, pseudo_term, reconstruction, regularization
from avtool.prior.photos import PhotoLight, PhotoSet, hide, lit_images, load_photos
from avtool.prior.pseudo_views import load_pseudo
from avtool.prior.reference_views import make_reference_views
from avtool.prior.synthesis import expression_signal, pose_gaussians, render_channels

Progress = Callable[[int, int, str], None]
MIN_SIZE = 32
"""Photos are not halved below this: SSIM's window would see little else than its border."""


@dataclass(frozen=True)
class FinetuneOptions:
    """How to fine-tune; the paper's figures are the defaults, but for what is said beside them."""

    steps: int = 250  # half the paper's: f learns faster here
    size: int = 256
    coarse_share: float = 0.5  # share of the steps, from the start, on photos of half the size: about 0.6 of the time each
    # The paper's 1e-3 and 1e-5 belong to features of a size it does not give; ours are about 1, and at these rates half the
    # steps come nearer to held-out frames. f still moves 300 times as fast as the rest.
    feature_rate: float = 0.03
    other_rate: float = 1e-4
    # The screen-space network looks at a few pixels at a time, the same in every view: what it learns of hair and skin from the photos holds
    # in others.
    refiner_rate: float = 1e-3
    light_rate: float = 2e-3
    exclude_mouth: bool = True
    reference_weight: float = 0.01  # lambda_ref, of the sum over the views; 0 switches view regularization off
    reference_views: int = 16
    reference_size: int = 128  # they hold colors and outlines in place, which 128 pixels show
    reference_every: int = 2  # steps per reference view, with as many times the weight: half the cost, the same pull
    # Of a pseudo picture's structure and coverage, where a photo has 1. Views of a good synthesizer help as much at 0.25 as at 4; those
    # of a poor one cost the more the more they weigh.
    pseudo_weight: float = 0.25
    pseudo_size: int = 128  # structure and outlines, as the reference views
    pseudo_every: int = 2  # steps per pseudo picture, with as many times the weight
    weights: LossWeights = LossWeights()
    seed: int = 0


class Finetuning:
    """One person's parameters while they move."""

    def __init__(
        self, avatar: Avatar, track: Track, options: FinetuneOptions, name: str, pseudo: PhotoSet | None = None
    ) -> None:
        self.options, self.head, self.binding = options, avatar.head, avatar.binding
        self.photos = load_photos(track, avatar.head, options.size, name)
        halved = options.coarse_share > 0 and options.size >= 2 * MIN_SIZE
        self.coarse = load_photos(track, avatar.head, options.size // 2, name) if halved else self.photos
        self.gapnet, self.refiner = copy.deepcopy(avatar.gapnet), copy.deepcopy(avatar.refiner)
        self.code, self.identity = avatar.code.clone(), avatar.identity.clone()
        offsets = avatar.offsets
        self.offsets = torch.zeros_like(avatar.head.template) if offsets is None else offsets.clone()
        self.motion = {name: getattr(self.photos.params, name).clone() for name in MOTION}
        self.light = PhotoLight(len(self.photos), avatar.device)
        self.arap = Arap(avatar.head.template, unique_edges(avatar.head.faces))
        self.generator = torch.Generator().manual_seed(options.seed)
        self.pseudo = pseudo
        self.order: list[int] = []
        self.pseudo_order: list[int] = []
        guarded = options.reference_weight > 0 and options.reference_views > 0
        self.references = make_reference_views(avatar, options.reference_views, options.reference_size) if guarded else None

    def groups(self) -> dict[str, list[Tensor]]:
        """Parameters by the name of their learning rate: "features", "refiner", "light", and "other"."""
        features = self.gapnet.features
        networks = [p for p in self.gapnet.parameters() if p is not features]
        refiner = [] if self.refiner is None else list(self.refiner.parameters())
        person = [self.code, self.identity, self.offsets, *self.motion.values()]
        return {"features": [features], "refiner": refiner, "other": networks + person, "light": self.light.parameters()}

    def next_photo(self) -> int:
        """Photos in shuffled rounds."""
        if not self.order:
            self.order = torch.randperm(len(self.photos), generator=self.generator).tolist()
        return self.order.pop()

    def next_pseudo(self, step: int) -> int | None:
        """Pseudo pictures in shuffled rounds, on the steps that have one: between those of the reference views."""
        if self.pseudo is None or (step + 1) % self.options.pseudo_every:
            return None
        if not self.pseudo_order:
            self.pseudo_order = torch.randperm(len(self.pseudo), generator=self.generator).tolist()
        return self.pseudo_order.pop()

    def posed(self, photo: int, view: int | None = None, pseudo: int | None = None) -> tuple[Gaussians, Geometry]:
        """Gaussians of a photo's pose and, where they are due, of a pseudo picture's pose and last of a reference view's face,
        (1 to 3, N); local geometry."""
        motion = {name: value[photo : photo + 1] for name, value in self.motion.items()}
        if pseudo is not None:
            made = self.pseudo.params
            motion = {name: torch.cat((value, getattr(made, name)[pseudo : pseudo + 1])) for name, value in motion.items()}
        params = HeadParams(identity=self.identity, offsets=self.offsets, **motion)
        head, faces = self.head, self.head.faces
        meshes = head.stages(params)
        posed, expressed = meshes.posed, meshes.unposed
        if view is not None:
            seen, _ = head.rest_shape(replace(params, expression=self.references.expression[view : view + 1]))
            posed, expressed = torch.cat((posed, seen)), torch.cat((expressed, seen))
        geometry = self.gapnet.geometry(self.code)
        static = self.gapnet.appearance_static(self.code, geometry.raw)
        signal = expression_signal(geometry, expressed, meshes.neutral, faces, self.binding)
        channels = self.gapnet.appearance(static, signal)
        return pose_gaussians(geometry, posed, faces, self.binding, channels), geometry

    def next_view(self, step: int) -> int | None:
        """A reference view drawn at random, on the steps that have one."""
        if self.references is None or step % self.options.reference_every:
            return None
        return int(torch.randint(len(self.references), (1,), generator=self.generator))

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """One photo, one random reference view (times their number), one pseudo picture, and the regularizers."""
        photo, view, pseudo = self.next_photo(), self.next_view(step), self.next_pseudo(step)
        gaussians, geometry = self.posed(photo, view, pseudo)
        weights = self.options.weights
        early = step < self.options.coarse_share * self.options.steps
        parts = self.photo_loss(gaussians[:1], self.coarse if early else self.photos, photo)
        parts |= regularization(geometry, self.binding.spacing, weights)
        parts["arap"] = weights.arap * self.arap(self.offsets)
        if view is not None:
            weight = self.options.reference_weight * len(self.references) * self.options.reference_every
            parts["reference"] = weight * self.reference_loss(gaussians[-1:], view)
        if pseudo is not None:
            weight = self.options.pseudo_weight * self.options.pseudo_every
            parts["pseudo"] = weight * self.pseudo_loss(gaussians[1:2], pseudo)
        return torch.stack(list(parts.values())).sum(), {name: value.detach() for name, value in parts.items()}

    def photo_loss(self, gaussians: Gaussians, photos: PhotoSet, photo: int) -> dict[str, Tensor]:
        """Lrec of refined and plain picture outside the mouth, and coverage."""
        weights, size = self.options.weights, photos.size
        index = slice(photo, photo + 1)
        colors, alphas = render_channels(gaussians, photos.viewmats[index], photos.Ks[index], size, size)
        which = torch.tensor([photo], device=colors.device)
        refined, plain = lit_images(colors, alphas, self.refiner, self.light, which)
        target, hole = photos.targets[index], photos.outside[index]
        coverage = ((alphas - photos.mattes[index]).abs() * ~hole).mean()
        if self.options.exclude_mouth:
            hole = hole | (photos.mouths[index] > 0)
        refined, plain = hide(hole, target, (refined, plain))
        parts = {"photo": reconstruction(refined, target, weights)[0]}
        if self.refiner is not None:
            parts["plain"] = reconstruction(plain, target, weights)[0]
        parts["alpha"] = weights.alpha * coverage
        return parts

    def reference_loss(self, gaussians: Gaussians, view: int) -> Tensor:
        """Lrec of one reference view against itself before fine-tuning, as the mouth's in training where an expression shows."""
        views, index, size = self.references, slice(view, view + 1), self.options.reference_size
        colors, alphas = render_channels(gaussians, views.viewmats[index], views.Ks[index], size, size)
        refined, _ = lit_images(colors, alphas, self.refiner, None, None)
        whole, changed = reconstruction(refined, views.pictures[index], self.options.weights, views.changed[index])
        return whole + self.options.weights.mouth * changed

    def pseudo_loss(self, gaussians: Gaussians, pseudo: int) -> Tensor:
        """Structure and coverage of one pseudo picture outside the mouth; no light of a photo, since no color counts."""
        views, index = self.pseudo, slice(pseudo, pseudo + 1)
        colors, alphas = render_channels(gaussians, views.viewmats[index], views.Ks[index], views.size, views.size)
        refined, plain = lit_images(colors, alphas, self.refiner, None, None)
        hole = views.outside[index]
        mouth = views.mouths[index] > 0 if self.options.exclude_mouth else torch.zeros_like(hole)
        pictures = [plain] if self.refiner is None else [refined, plain]
        target, mattes = views.targets[index], views.mattes[index]
        return pseudo_term(pictures, alphas, target, mattes, self.options.weights, known=~hole, compared=~mouth)

    def run(self, progress: Progress | None) -> None:
        """All steps."""
        options = self.options
        rates = {
            "features": options.feature_rate, "refiner": options.refiner_rate, "other": options.other_rate, "light": options.light_rate,
        }  # fmt: skip
        stage = Stage("fine-tuning", options.steps, rates)

        def on_step(step: int, value: float, parts: dict) -> None:
            if progress is not None:
                progress(step + 1, options.steps, f"loss {value:.4f}")

        run_stage(stage, self.groups(), self.loss, on_step)

    def avatar(self, metadata: dict[str, str]) -> Avatar:
        """The person as it is now."""
        return Avatar(
            self.head, self.binding, self.gapnet, self.refiner, self.code, self.identity.detach(), self.offsets.detach(),
            metadata,
        )  # fmt: skip


def finetune(
    avatar: Avatar, track: Track, options: FinetuneOptions | None = None, progress: Progress | None = None, name: str = "track",
    pseudo: Track | None = None, pseudo_name: str = "pseudo pictures",
) -> Avatar:  # fmt: skip
    """Fine-tune an inverted avatar on the track it was inverted from; the given avatar is not changed.

    Args:
        name: what to call the track in an error, usually its file.
        progress: called with (done, total, message).
        pseudo: a track with pseudo pictures of the same person, whose structure is learned beside the photos'; its real ones are
            not looked at. pseudo_name: what to call it in an error.
    """
    options = options or FinetuneOptions()
    views = None if pseudo is None else load_pseudo(pseudo, avatar.head, options.pseudo_size, options.seed, pseudo_name)
    tuning = Finetuning(avatar, track, options, name, views)
    tuning.run(progress)
    guard = "with" if tuning.references is not None else "without"
    note = f"{options.steps} steps, {guard} view regularization"
    if views is not None:
        note += f", {len(views)} pseudo pictures of weight {options.pseudo_weight:g}"
    return tuning.avatar({**avatar.metadata, "tuned": note})
