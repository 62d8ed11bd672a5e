"""Inversion (HeadGAP section 3.4): the person as a convex mix of the prior's codes, everything else frozen.

A second stage, which the paper does not have, lets the code leave the mix: gray hair or a blue cap that nobody in the prior has become
those of a whole part, on the sides that no photo shows, too. What fine-tuning learns afterwards stays where the photos show it.

Shape legend: B photos, K identities, P parts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from avtool.artifacts.track import Track
from avtool.fit import Stage, run_stage
from avtool.prior.avatar import Avatar
from avtool.prior.objective import LossWeights, reconstruction
from avtool.prior.photos import PhotoLight, PhotoSet, hide, lit_images, load_photos
from avtool.prior.prior import Prior
from avtool.prior.synthesis import expression_signal, pose_gaussians, render_channels

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class InvertOptions:
    """How to invert. 128 pixels decide a mix of known people as well as 256 do, in a quarter of the time."""

    steps: int = 500
    size: int = 128
    photos_per_step: int = 1  # drawn anew each step; more make a step dearer and its loss less noisy
    learning_rate: float = 0.1  # of the logits w; the paper gives none
    light_rate: float = 5e-3
    scan: bool = True  # start from how well each known person fits, instead of from the mean
    scan_size: int = 64  # and by plain splats: who is alike shows in small pictures, too
    flat_window: int = 50  # steps over which the loss must still fall ...
    flat_fraction: float = 0.005  # ... by this fraction, or the stage ends
    # The stage in which the code leaves the mix, in standard deviations of the known codes: their step, and what a squared one costs. Half a
    # deviation is usual after it; without the cost outlines drift on sides that no photo shows.
    free_steps: int = 150
    free_rate: float = 0.03
    free_weight: float = 0.02
    weights: LossWeights = LossWeights()
    seed: int = 0


class Inversion:
    """What inversion holds fixed (meshes, networks) and what it moves (w and light, then the code's distance from the mix and light)."""

    def __init__(self, prior: Prior, photos: PhotoSet, options: InvertOptions) -> None:
        self.prior, self.photos, self.options = prior, photos, options
        for module in (prior.gapnet, prior.codebook, prior.refiner):
            if module is not None:
                module.requires_grad_(False)
        self.logits = torch.zeros(prior.num_identities, prior.num_parts, device=prior.device)
        codes = prior.codebook.codes.detach()
        self.spread = codes.std(0, keepdim=True, correction=0)
        self.distance = torch.zeros_like(self.spread)
        self.light = PhotoLight(len(photos), prior.device)
        self.generator = torch.Generator().manual_seed(options.seed)
        with torch.no_grad():
            meshes = prior.head.stages(photos.params)
            self.posed, self.unposed = meshes.posed, meshes.unposed
            self.neutral = meshes.neutral.reshape(-1, *meshes.neutral.shape[-2:])[:1]  # one person: one neutral face

    def code(self) -> Tensor:
        """The person's code (1, P, C2): the mix, and the distance from it in standard deviations of the known codes."""
        return self.prior.codebook.mix(self.logits) + self.spread * self.distance

    def error(self, code: Tensor, index: Tensor, photos: PhotoSet, refine: bool = True) -> Tensor:
        """Mean over `photos` at index (b,) of how far the person with a code (1, P, C2) is from them."""
        prior, weights = self.prior, self.options.weights
        refiner = prior.refiner if refine else None
        geometry = prior.gapnet.geometry(code)
        static = prior.gapnet.appearance_static(code, geometry.raw)
        faces, binding = prior.head.faces, prior.binding
        signal = expression_signal(geometry, self.unposed[index], self.neutral, faces, binding)
        channels = prior.gapnet.appearance(static, signal)
        gaussians = pose_gaussians(geometry, self.posed[index], faces, binding, channels)
        size = photos.size
        colors, alphas = render_channels(gaussians, photos.viewmats[index], photos.Ks[index], size, size)
        refined, plain = lit_images(colors, alphas, refiner, self.light, index)
        target, outside = photos.targets[index], photos.outside[index]
        refined, plain = hide(outside, target, (refined, plain))
        loss = reconstruction(refined, target, weights)[0]
        if refiner is not None:
            loss = loss + reconstruction(plain, target, weights)[0]
        return loss + weights.alpha * ((alphas - photos.mattes[index]).abs() * ~outside).mean()

    def draw(self) -> Tensor:
        """Photos of a step: all, or a random few of many."""
        count = min(len(self.photos), self.options.photos_per_step)
        order = torch.arange(len(self.photos))
        if count < len(self.photos):
            order = torch.randperm(len(self.photos), generator=self.generator)[:count]
        return order.to(self.prior.device)

    @torch.no_grad()
    def scan(self, photos: PhotoSet, progress: Progress | None) -> None:
        """Start w from the error of each known person on the first of `photos`: the better, the more of them."""
        count = self.prior.num_identities
        first = torch.zeros(1, dtype=torch.int64, device=self.prior.device)
        errors = torch.zeros(count, device=self.prior.device)
        for k in range(count):
            errors[k] = self.error(self.prior.codebook.codes[k : k + 1], first, photos, refine=False)
            if progress is not None:
                progress(k + 1, count, "comparing with known people")
        # A spread of one standard deviation is one unit of logit: a lean, not a decision.
        spread = errors.std(correction=0).clamp_min(1e-6)
        self.logits.copy_((-(errors - errors.mean()) / spread)[:, None].expand_as(self.logits))

    def run(self, progress: Progress | None) -> None:
        """Optimize w until the steps are over or the loss is flat."""
        options = self.options
        history: list[float] = []
        stage = Stage("inversion", options.steps, {"w": options.learning_rate, "light": options.light_rate})
        params = {"w": self.logits, "light": self.light.parameters()}

        def loss(step: int) -> tuple[Tensor, dict[str, float]]:
            total = self.error(self.prior.codebook.mix(self.logits), self.draw(), self.photos)
            return total, {}

        def on_step(step: int, value: float, parts: dict) -> bool:
            history.append(value)
            if progress is not None:
                progress(step + 1, options.steps, f"loss {value:.4f}")
            return is_flat(history, options.flat_window, options.flat_fraction)

        run_stage(stage, params, loss, on_step)
        self.logits.requires_grad_(False)

    def leave_mix(self, progress: Progress | None) -> None:
        """Optimize the distance of the code from the mix, which stays."""
        options = self.options
        stage = Stage("free code", options.free_steps, {"distance": options.free_rate, "light": options.light_rate})

        def loss(step: int) -> tuple[Tensor, dict[str, float]]:
            cost = options.free_weight * self.distance.square().mean()
            return self.error(self.code(), self.draw(), self.photos) + cost, {}

        def on_step(step: int, value: float, parts: dict) -> None:
            if progress is not None:
                progress(step + 1, options.free_steps, f"beyond known people, loss {value:.4f}")

        run_stage(stage, {"distance": self.distance, "light": self.light.parameters()}, loss, on_step)
        self.distance.requires_grad_(False)


def is_flat(history: list[float], window: int, fraction: float) -> bool:
    """Whether the mean loss of the last window fell by less than a fraction of that of the window before."""
    if len(history) < 3 * window or fraction <= 0:
        return False
    recent, before = sum(history[-window:]), sum(history[-2 * window : -window])
    return recent > (1 - fraction) * before


def invert(
    prior: Prior, track: Track, options: InvertOptions | None = None, progress: Progress | None = None, name: str = "track"
) -> Avatar:
    """Find a tracked person in the prior.

    Only w (K, P) moves, then the code's distance from the mix, and a gain and bias per photo that are forgotten afterwards; the prior is
    not changed. With `free_steps` 0 the code is the paper's mix.

    Args:
        name: what to call the track in an error, usually its file.
        progress: called with (done, total, message).
    """
    options = options or InvertOptions()
    photos = load_photos(track, prior.head, options.size, name)
    inversion = Inversion(prior, photos, options)
    if options.scan and prior.num_identities > 1:
        size = min(options.size, options.scan_size)
        inversion.scan(load_photos(track, prior.head, size, name), progress)
    inversion.run(progress)
    if options.free_steps > 0 and prior.num_identities > 1:
        inversion.leave_mix(progress)
    with torch.no_grad():
        code = inversion.code()
    identity = torch.as_tensor(track.identity, dtype=torch.float32, device=prior.device)
    offsets = None if track.offsets is None else torch.as_tensor(track.offsets, dtype=torch.float32, device=prior.device)
    return Avatar(
        prior.head, prior.binding, copy.deepcopy(prior.gapnet), copy.deepcopy(prior.refiner), code, identity, offsets,
        {"made_by": "invert", "photos": str(len(photos))},
    )  # fmt: skip
