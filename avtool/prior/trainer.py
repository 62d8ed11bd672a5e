"""One step of prior learning (HeadGAP section 3.3), everything that moves in it, and the loop over all steps.

Shape legend: I identities and B = I * views pictures a step, K identities in all, F pictures in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from avtool.errors import AvtoolError, FormatError
from avtool.fit import Stage, make_optimizer
from avtool.head import HeadParams
from avtool.head.mesh import unique_edges
from avtool.losses import Arap, mse_to_psnr
from avtool.prior.checkpoint import Checkpoint, group_tensors, load_groups, load_optimizer, optimizer_tensors
from avtool.prior.config import TrainConfig
from avtool.prior.cost import StepCost
from avtool.prior.dataset import MOTION, TrainingSet, real_twins, require_real_pictures
from avtool.prior.distributed import World, no_reduction
from avtool.prior.loop import Log, Progress, RunningMean, run_training
from avtool.prior.objective import (
    Comparison,
    load_perceptual,
    mixed_terms,
    mouth_mask,
    mouth_vertices,
    real_terms,
    regularization,
)
from avtool.prior.preview import save_preview
from avtool.prior.prior import Prior
from avtool.prior.sampler import Batch, BatchSampler
from avtool.prior.storage import check_head_model
from avtool.prior.synthesis import finish, render_channels, synthesize


@dataclass(frozen=True)
class TrainOptions:
    """What is not part of the result's meaning: where and how long it runs, and what it writes beside the prior."""

    device: str = "cpu"
    render_backend: str = "auto"
    seed: int = 0
    time_limit: float | None = None  # seconds
    checkpoint: Path | None = None
    previews: Path | None = None  # directory
    resume: Path | None = None
    init: str | Path | None = None  # the prior whose networks to start from; "default" is the shipped one


class Trainer:
    """Everything that moves during training, and one step of it."""

    def __init__(
        self, prior: Prior, data: TrainingSet, config: TrainConfig, options: TrainOptions, world: World = World()
    ) -> None:
        self.prior, self.data, self.config, self.options, self.world = prior, data, config, options, world
        self.coarse = data.halved() if config.coarse_share > 0 else data
        identities = max(1, config.batch_size // config.views_per_identity)
        require_real_pictures(data)
        self.mixed = bool(data.pseudo.any())
        self.sampler = BatchSampler(
            data.frames, identities, config.views_per_identity, options.seed, data.weights, real_twins(data), config.real_target
        )
        check_division(self.sampler.num_identities, world.size, config.accumulate)
        self.perceptual = load_perceptual(
            config.perceptual, config.weights.lpips, prior.device, config.perceptual_weights
        )
        self.arap = Arap(prior.head.template, unique_edges(prior.head.faces))
        self.mouth = mouth_vertices(prior.head)
        self.tracked = self._tracked_groups()
        self.stage = self._stage()
        self.optimizer = make_optimizer(self.stage, self.groups)
        averaged = [p for group in prior.parameter_groups().values() for p in group]
        self.average = RunningMean(averaged, config.ema_decay)
        self.step, self.elapsed = 0, 0.0
        self.cost = StepCost(prior.device)
        self.step_loss = world.wrapped(self._moved(), self.batch_loss)

    def _stage(self) -> Stage:
        config = self.config
        return Stage(
            name="prior",
            steps=config.steps,
            learning_rates={
                **{name: config.learning_rate for name in self.prior.parameter_groups()},
                "codes": config.code_speed * config.learning_rate,
                "tracking": config.track_rate,
                "offsets": config.offset_rate,
            },
            warmup=config.warmup,
        )

    def _moved(self) -> list[nn.Parameter]:
        """Every tensor that has a gradient, marked as such."""
        moved = []
        for name, group in self.groups.items():
            for tensor in group:
                tensor.requires_grad_(self.stage.learning_rates[name] > 0)
                moved += [tensor] if tensor.requires_grad else []
        return moved

    @property
    def groups(self) -> dict[str, list[Tensor]]:
        """Every parameter by the name of its learning rate."""
        return {**self.prior.parameter_groups(), **self.tracked}

    def _tracked_groups(self) -> dict[str, list[Tensor]]:
        params = self.data.params
        motion = [getattr(params, name).clone() for name in ("identity", *MOTION)]
        offsets = params.offsets
        if offsets is None and self.config.offset_rate > 0:
            offsets = torch.zeros(self.data.num_identities, self.prior.head.num_vertices, 3, device=self.prior.device)
        groups = {"tracking": motion, "offsets": [] if offsets is None else [offsets.clone()]}
        return {name: [nn.Parameter(x, requires_grad=False) for x in group] for name, group in groups.items()}

    def batch_params(self, identities: Tensor, pictures: Tensor) -> HeadParams:
        """Tracked parameters M of a batch: B pictures grouped by I identities."""
        identity, *motion = self.tracked["tracking"]
        views = len(pictures) // len(identities)
        offsets = self.tracked["offsets"]
        return HeadParams(
            identity=identity[identities].repeat_interleave(views, dim=0),
            offsets=offsets[0][identities].repeat_interleave(views, dim=0) if offsets else None,
            **{name: tensor[pictures] for name, tensor in zip(MOTION, motion)},
        )

    def data_at(self, step: int) -> TrainingSet:
        """Pictures of half the size early on, whole ones later; by steps or by time, whichever is further along."""
        done = step / self.config.steps
        if self.options.time_limit is not None:
            done = max(done, self.elapsed / self.options.time_limit)
        return self.coarse if done < self.config.coarse_share else self.data

    def render(self, data: TrainingSet, identities: Tensor, pictures: Tensor, background: Tensor) -> tuple[Tensor, ...]:
        """Refined and plain pictures (B, S, S, 3), coverage (B, S, S, 1), local geometry, vertices (B, V, 3)."""
        prior, size = self.prior, data.size
        code = prior.codebook(identities)
        params = self.batch_params(identities, pictures)
        precision = self.config.precision
        gaussians, geometry, vertices = synthesize(prior.head, prior.binding, prior.gapnet, code, params, precision)
        colors, alphas = render_channels(
            gaussians, data.viewmats[pictures], data.Ks[pictures], size, size, self.options.render_backend
        )
        refined, plain = finish(colors, alphas, prior.refiner, background, precision)
        return refined, plain, alphas, geometry, vertices

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Equation 5 on this process's slice of the next batch; all parts of it but the last have left their gradients."""
        data, count = self.data_at(step), self.config.accumulate
        mine = self.sampler.batch().part(self.world.rank, self.world.size)
        before, sums = 0.0, {}
        for i in range(count - 1):
            with no_reduction(self.step_loss):
                loss, parts = self.step_loss(data, mine.part(i, count).to(self.prior.device))
                (loss / count).backward()
            before = before + loss.detach() / count
            sums = {name: sums.get(name, 0.0) + value / count for name, value in parts.items()}
        loss, parts = self.step_loss(data, mine.part(count - 1, count).to(self.prior.device))
        if count == 1:
            return loss, parts
        return before + loss / count, {name: sums[name] + value / count for name, value in parts.items()}

    def batch_loss(self, data: TrainingSet, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Equation 5 on a batch; every term is a mean over its people."""
        weights = self.config.weights
        identities, pictures, background = batch.identities, batch.pictures, batch.background
        refined, plain, alphas, geometry, vertices = self.render(data, identities, pictures, background)
        target, mattes = data.targets(pictures, background)
        mask = mouth_mask(vertices[:, self.mouth], data.viewmats[pictures], data.Ks[pictures], data.size, data.size)
        shown = Comparison(refined, None if self.prior.refiner is None else plain, alphas, target, mattes, mask)
        if self.mixed:
            pseudo = data.pseudo[pictures]
            parts = mixed_terms(shown, pseudo, self.config.pseudo_weight, weights, self.perceptual)
        else:
            parts = real_terms(shown, weights, self.perceptual)
        parts |= regularization(geometry, self.prior.binding.spacing, weights)
        if self.tracked["offsets"] and self.config.offset_rate > 0:
            offsets = self.tracked["offsets"][0][identities]
            parts["arap"] = weights.arap * self.arap(offsets)
        total = torch.stack(list(parts.values())).sum()
        parts = {name: value.detach() for name, value in parts.items()}
        parts["mse"] = (refined.detach().clamp(0, 1) - target).square().mean()
        parts["mse_plain"] = (plain.detach().clamp(0, 1) - target).square().mean()
        return total, parts

    def after_step(self) -> None:
        """What follows the optimizer's step."""
        self.average.update(self.step)

    def checkpoint(self) -> Checkpoint:
        """All state between two steps."""
        tensors = {f"params.{k}": v for k, v in group_tensors(self.groups).items()}
        tensors |= {f"average.{i}": v for i, v in enumerate(self.average.tensors)}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(self.optimizer).items()}
        tensors |= {f"sampler.{k}": v for k, v in self.sampler.state().items()}
        tensors["torch_rng"] = torch.get_rng_state()
        return Checkpoint(
            self.step, self.elapsed, tensors, self.config.to_dict(), self.prior.head.model_id,
            self.data.fingerprint(), self.options.seed,
        )  # fmt: skip

    def restore(self, saved: Checkpoint, path: Path) -> None:
        """Go on where a checkpoint stopped; the data must be the same."""
        check_head_model(path, saved.head_model, self.prior.head.model_id)
        if saved.data != self.data.fingerprint():
            raise FormatError(path, "data", "the data set that this checkpoint was trained on", "another one")
        load_groups(self.groups, saved.take("params"), path)
        load_groups({"average": self.average.tensors}, {f"average.{k}": v for k, v in saved.take("average").items()}, path)
        load_optimizer(self.optimizer, saved.take("optimizer"), path)
        self.sampler.load_state(saved.take("sampler"))
        torch.set_rng_state(saved.tensors["torch_rng"].cpu())
        self.step, self.elapsed = saved.step, saved.elapsed

    def preview(self, path: Path) -> None:
        """Write real, splatted and refined pictures of up to six people side by side."""
        count = min(6, self.data.num_identities)
        chosen = [round(i * (self.data.num_identities - 1) / max(1, count - 1)) for i in range(count)]
        identities = torch.tensor(chosen, device=self.prior.device)
        real = [self.data.real_frames(k) for k in chosen]
        pictures = torch.stack([frames[i % len(frames)] for i, frames in enumerate(real)])
        white = torch.ones(1, 1, 1, 3, device=self.prior.device)
        with torch.no_grad(), self.average.inside():
            refined, plain, *_ = self.render(self.data, identities, pictures.to(self.prior.device), white)
        target, _ = self.data.targets(pictures.to(self.data.images.device), white)
        save_preview(path, [target, plain, refined])

    def run(self, progress: Progress | None, log: Log | None) -> None:
        """All steps, with checkpoints, previews and log lines."""
        run_training(self, progress, log)

    def summary(self, parts: dict[str, Tensor]) -> dict[str, float]:
        """Figures of a log line: the loss, its terms and PSNR."""
        values = {name: float(value) for name, value in parts.items() if not name.startswith("mse")}
        quality = {"psnr": mse_to_psnr(parts["mse"]), "psnr_plain": mse_to_psnr(parts["mse_plain"])}
        return {"loss": sum(values.values()), **quality, **values}


def check_division(people: int, processes: int, parts: int) -> None:
    """AvtoolError unless the people of a batch divide evenly into processes and parts."""
    if people % (processes * parts):
        raise AvtoolError(
            f"the {people} people of a batch do not divide evenly among {processes} processes, {parts} parts each",
            f"choose batch_size / views_per_identity as a multiple of {processes * parts}, and a data set with as many people",
        )
