"""One step of portrait training, static (Psi_3d) or motion (Psi), and everything that moves in it.

Portrait4D-v2, arXiv 2403.13570, sections 3.1 to 3.4. Shape legend: B samples, S x S pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from avtool.errors import AvtoolError, FormatError
from avtool.fit import Stage, make_optimizer
from avtool.head import HeadModel
from avtool.losses import mse_to_psnr
from avtool.portrait.augment import Augmentation
from avtool.portrait.config import PortraitConfig
from avtool.portrait.dataset import MotionSampler, PortraitBatch, PortraitSet, StaticSampler
from avtool.portrait.discriminator import PatchDiscriminator, discriminator_loss, generator_loss
from avtool.portrait.identity import IdentityLoss
from avtool.portrait.motion import MotionEncoder
from avtool.portrait.network import Portrait, PortraitPicture
from avtool.portrait.objective import Target, at_size, load_perceptual, on_color, portrait_terms
from avtool.portrait.settings import PortraitTraining, check_settings, settings_from_dict
from avtool.prior.checkpoint import Checkpoint, group_tensors, load_groups, load_optimizer, optimizer_tensors
from avtool.prior.cost import StepCost
from avtool.prior.distributed import World
from avtool.prior.loop import RunningMean
from avtool.prior.preview import save_preview
from avtool.prior.storage import check_head_model

_PREVIEWED = 6  # pairs on a preview


@dataclass(frozen=True)
class PortraitOptions:
    """What is not part of the result's meaning: where and how long it runs, and what it writes beside the portrait."""

    device: str = "cpu"
    seed: int = 0
    time_limit: float | None = None  # seconds
    checkpoint: Path | None = None
    previews: Path | None = None  # directory
    resume: Path | None = None
    init: Path | None = None  # the portrait to start from


class PortraitTrainer:
    """Everything that moves during training, and one step of it."""

    def __init__(
        self, portrait: Portrait, encoder: MotionEncoder, head: HeadModel, data: PortraitSet, config: PortraitTraining,
        options: PortraitOptions, world: World = World(),
    ) -> None:  # fmt: skip
        self.portrait, self.encoder, self.data = portrait.train(), encoder, data
        self.config, self.options, self.world = config, options, world
        self.sampler = self._sampler(config.batch_size, options.seed)
        if self.sampler.batch_size % world.size:
            raise AvtoolError(
                f"the {self.sampler.batch_size} samples of a batch do not divide evenly among {world.size} processes",
                f"choose batch_size as a multiple of {world.size}, and a data set with as many moments",
            )
        weights, device = config.weights, portrait.device
        self.perceptual = load_perceptual(config.perceptual, weights.perceptual, device, config.perceptual_weights)
        self.identity = IdentityLoss(config.recognizer, head) if weights.identity > 0 else None
        self.augmentation = Augmentation()
        self.stage = self._stage()
        self.optimizer = make_optimizer(self.stage, self.groups)
        self.average = RunningMean([p for group in self.groups.values() for p in group], config.ema_decay)
        self.critic = Critic(config, options, device, world) if weights.adversarial > 0 else None
        self.step, self.elapsed = 0, 0.0
        self.cost = StepCost(device)
        self.step_loss = world.wrapped(self._moved(), self.batch_loss)

    def _sampler(self, batch_size: int, seed: int) -> StaticSampler | MotionSampler:
        config = self.config
        if config.stage == "static":
            return StaticSampler(self.data, batch_size, seed, config.source_angle)
        return MotionSampler(self.data, batch_size, seed, config.source_angle, config.real_target, config.real_driver)

    def _stage(self) -> Stage:
        config = self.config
        factor = config.motion_factor if config.stage == "motion" else 0.0
        rates = {"static": config.learning_rate, "motion": factor * config.learning_rate}
        return Stage(config.stage, config.steps, rates, warmup=config.warmup, clip_norm=config.clip_norm or None)

    @property
    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter by the name of its learning rate."""
        return {"static": self.portrait.static_parameters(), "motion": self.portrait.motion_parameters()}

    def _moved(self) -> list[nn.Parameter]:
        """Every tensor that has a gradient, marked as such."""
        for name, group in self.groups.items():
            for tensor in group:
                tensor.requires_grad_(self.stage.learning_rates[name] > 0)
        return [tensor for group in self.groups.values() for tensor in group if tensor.requires_grad]

    def _generator(self, salt: int) -> torch.Generator:
        """Randomness on the device. It follows from the step, so that there is no state of it to save."""
        generator = torch.Generator(self.portrait.device)
        return generator.manual_seed(hash((self.options.seed, self.step, self.world.rank, salt)) % 2**63)

    def embed(self, index: Tensor, salt: int) -> Tensor:
        """Motion embeddings (B, M) of pictures (B,); pictures are changed at random before they are embedded."""
        if not self.encoder.reads_images:
            return self.encoder.embed(self.data.params(index))
        return self.encoder.embed_images(self.augmentation(self.data.sources(index), self._generator(salt)))

    def reconstruct(self, batch: PortraitBatch, generator: torch.Generator | None = None) -> PortraitPicture:
        """Targets of a batch as the network sees them; without a generator rays are sampled evenly."""
        motions: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.config.stage == "motion":
            motions = self.embed(batch.source, 1), self.embed(batch.driver, 2)
        data, target = self.data.data, batch.target
        return self.portrait(
            self.data.source_views(batch.source), *motions, self.data.params(target), data.viewmats[target], data.Ks[target], data.size,
            generator,
        )  # fmt: skip

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this process's slice of the next batch."""
        mine = self.sampler.batch().part(self.world.rank, self.world.size)
        return self.step_loss(mine.to(self.portrait.device))

    def target(self, batch: PortraitBatch) -> Target:
        """What a batch should look like."""
        image, matte = self.data.data.targets(batch.target, batch.background)
        return Target(image, matte, batch.background, self.data.data.pseudo[batch.target])

    def batch_loss(self, batch: PortraitBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """All terms on a batch."""
        config, target = self.config, self.target(batch)
        picture = self.reconstruct(batch, self._generator(0))
        parts = portrait_terms(picture, target, config.weights, self.perceptual)
        shown = on_color(picture.image, picture.alpha, target.color)
        real = (~target.pseudo).nonzero()[:, 0]
        share = len(real) / len(shown)
        if self.identity is not None and len(real):
            parts["identity"] = config.weights.identity * share * self._identity(shown[real], target.image[real], batch.target[real])
        if self.critic is not None and self.critic.begun(self.done):
            if len(real):
                parts["adversarial"] = config.weights.adversarial * share * generator_loss(self.critic.network(shown[real]))
            self.critic.seen = (self._real_pictures(batch, target), shown.detach())
        for name in ("identity", "adversarial"):  # every process names the same terms, whatever its slice holds
            if getattr(config.weights, name) > 0 and name not in parts:
                parts[name] = shown.sum() * 0
        total = torch.stack(list(parts.values())).sum()
        parts = {name: value.detach() for name, value in parts.items()}
        parts["mse"] = (shown.detach().clamp(0, 1) - target.image).square().mean()
        return total, parts

    @property
    def done(self) -> float:
        """How much of the training is over, by steps or by time."""
        limit = self.options.time_limit
        return max(self.step / self.config.steps, 0.0 if limit is None else self.elapsed / limit)

    def _identity(self, shown: Tensor, target: Tensor, index: Tensor) -> Tensor:
        data, facing = self.data.data, self.data.facing[index.cpu()].to(shown.device)
        return self.identity(shown.clamp(0, 1), target, self.data.params(index), data.viewmats[index], data.Ks[index], facing)

    def _real_pictures(self, batch: PortraitBatch, target: Target) -> Tensor:
        """Pictures for the discriminator: the targets, or the sources where a target is pseudo."""
        if not bool(target.pseudo.any()):
            return target.image
        sources, _ = self.data.data.targets(batch.source, batch.background)
        return torch.where(target.pseudo[:, None, None, None], sources, target.image)

    def after_step(self) -> None:
        """What follows the optimizer's step."""
        if self.critic is not None:
            self.critic.update(self.step)
        self.average.update(self.step)

    def summary(self, parts: dict[str, Tensor]) -> dict[str, float]:
        """Figures of a log line: the loss, PSNR on the random backgrounds, and the terms."""
        values = {name: float(value) for name, value in parts.items() if name != "mse"}
        return {"loss": sum(values.values()), "psnr": mse_to_psnr(parts["mse"]), **values}

    def checkpoint(self) -> Checkpoint:
        """All state between two steps."""
        tensors = {f"params.{k}": v for k, v in group_tensors(self.groups).items()}
        tensors |= {f"average.{i}": v for i, v in enumerate(self.average.tensors)}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(self.optimizer).items()}
        tensors |= {f"sampler.{k}": v for k, v in self.sampler.state().items()}
        if self.critic is not None:
            tensors |= self.critic.state()
        config = {"portrait": self.config.to_dict(), "network": self.portrait.config.to_dict()}
        return Checkpoint(
            self.step, self.elapsed, tensors, config, self.portrait.head_model, self._fingerprint(), self.options.seed
        )  # fmt: skip

    def _fingerprint(self) -> str:
        return f"{self.data.data.fingerprint()} {self.encoder.name}"

    def restore(self, saved: Checkpoint, path: Path) -> None:
        """Go on where a checkpoint stopped; data and embedding must be the same."""
        check_head_model(path, saved.head_model, self.portrait.head_model)
        if saved.data != self._fingerprint():
            raise FormatError(path, "data", "the data set and motion embedding that this checkpoint was trained with", "another one")
        load_groups(self.groups, saved.take("params"), path)
        average = {f"average.{k}": v for k, v in saved.take("average").items()}
        load_groups({"average": self.average.tensors}, average, path)
        load_optimizer(self.optimizer, saved.take("optimizer"), path)
        self.sampler.load_state(saved.take("sampler"))
        if self.critic is not None:
            self.critic.restore(saved, path)
        self.step, self.elapsed = saved.step, saved.elapsed

    def preview(self, path: Path) -> None:
        """Write rows of sources, targets, results, volume-rendered results and depths of a few pairs, always the same."""
        batch = self._sampler(_PREVIEWED, 0).batch().to(self.portrait.device)
        batch = replace(batch, background=torch.ones_like(batch.background))
        self.portrait.eval()
        with torch.no_grad(), self.average.inside():
            picture = self.reconstruct(batch)
        self.portrait.train()
        size, target = self.data.data.size, self.target(batch)
        shown, low = (
            on_color(image, alpha, batch.background)
            for image, alpha in ((picture.image, picture.alpha), (picture.low, picture.low_alpha))
        )
        depth = depth_picture(picture.depth, picture.low_alpha)
        save_preview(path, [self.data.sources(batch.source), target.image, shown, *(enlarged(x, size) for x in (low, depth))])


class Critic:
    """The discriminator, its optimizer, and the pictures that it learns from after the portrait's step."""

    def __init__(self, config: PortraitTraining, options: PortraitOptions, device: torch.device, world: World) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.network = PatchDiscriminator().to(device)
        self.config = config
        self.parameters = list(self.network.parameters())
        # The moments of a game are kept short, as StyleGAN does.
        groups = [{"params": self.parameters, "lr": config.discriminator_rate, "name": "critic"}]
        self.optimizer = torch.optim.Adam(groups, betas=(0.0, 0.99))
        self.step_loss = world.wrapped(self.parameters, self._loss)
        self.seen: tuple[Tensor, Tensor] | None = None
        self._frozen(True)

    def begun(self, done: float) -> bool:
        """Whether it takes part when this share of the training is over."""
        return done >= self.config.adversarial_start

    def _frozen(self, frozen: bool) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(not frozen)

    def _loss(self, real: Tensor, fake: Tensor, r1: float) -> Tensor:
        return discriminator_loss(self.network, real, fake, r1)

    def update(self, step: int) -> None:
        """One step on the pictures that were seen; R1 every so often, with as much more weight."""
        if self.seen is None:
            return
        every = self.config.r1_every
        self._frozen(False)
        self.optimizer.zero_grad(set_to_none=True)
        self.step_loss(*self.seen, self.config.r1 * every if step % every == 0 else 0.0).backward()
        self.optimizer.step()
        self._frozen(True)
        self.seen = None

    def state(self) -> dict[str, Tensor]:
        """Tensors of a checkpoint."""
        moments = {f"critic_optimizer.{k}": v for k, v in optimizer_tensors(self.optimizer).items()}
        return {**group_tensors({"critic": self.parameters}), **moments}

    def restore(self, saved: Checkpoint, path: Path) -> None:
        """Go on as saved."""
        load_groups({"critic": self.parameters}, {f"critic.{k}": v for k, v in saved.take("critic").items()}, path)
        load_optimizer(self.optimizer, saved.take("critic_optimizer"), path)


def depth_picture(depth: Tensor, alpha: Tensor) -> Tensor:
    """Depths (B, s, s, 1) with coverage -> (B, s, s, 3): near is bright, each picture over its own range; white outside."""
    covered = alpha > 0.5
    near = depth.masked_fill(~covered, torch.inf).amin((1, 2, 3), keepdim=True)
    far = depth.masked_fill(~covered, -torch.inf).amax((1, 2, 3), keepdim=True)
    shade = 0.9 - 0.8 * (depth - near) / (far - near).clamp_min(1e-6)
    return torch.where(covered, shade, torch.ones_like(shade)).expand(*depth.shape[:3], 3)


def enlarged(images: Tensor, size: int) -> Tensor:
    """Small pictures (B, s, s, 3) with their pixels repeated where they divide the size."""
    factor = size // images.shape[1]
    if factor * images.shape[1] != size:
        return at_size(images, size)
    return images.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def saved_settings(saved: Checkpoint, path: Path) -> tuple[PortraitTraining, PortraitConfig]:
    """Settings and network sizes of a checkpoint of this training."""
    try:
        settings, network = saved.config["portrait"], PortraitConfig.from_dict(saved.config["network"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(path, "config", "a checkpoint of train-portrait", "one of another training") from error
    return check_settings(settings_from_dict(settings, str(path)), str(path)), network
