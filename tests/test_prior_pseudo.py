"""Pseudo pictures in prior training and fine-tuning: structure and coverage at low weight, real pictures in their place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from random_prior import person_of, random_prior
from tiny_avatar import photo_track
from torch import Tensor
from toy_people import make_people, paint, toy_cameras, toy_colors

from avtool.artifacts.track import Track
from avtool.errors import AvtoolError, FormatError
from avtool.head import HeadModel, HeadParams, load_head_model
from avtool.losses import structure_distance
from avtool.prior.avatar import Avatar
from avtool.prior.checkpoint import Checkpoint
from avtool.prior.config import TrainConfig, check_config
from avtool.prior.dataset import TrainingSet, load_training_set, real_twins
from avtool.prior.finetune import Finetuning, FinetuneOptions, finetune
from avtool.prior.objective import Comparison, LossWeights, mixed_terms, pseudo_distance, pseudo_term, real_terms
from avtool.prior.photos import load_photos
from avtool.prior.prior import Prior
from avtool.prior.pseudo_views import MAX_PSEUDO, load_pseudo, load_pseudo_track
from avtool.prior.sampler import BatchSampler
from avtool.prior.train import Trainer, TrainOptions, train_prior

PEOPLE, VIEWS, MOMENTS, SIZE = 2, 6, 2, 32
TINY = TrainConfig(
    preset="tiny", uv_size=16, refiner="tiny", image_size=SIZE, steps=4, batch_size=4, views_per_identity=2, learning_rate=5e-3,
    track_rate=1e-4, offset_rate=0.0, warmup=0, ema_decay=0.9, log_every=1, preview_every=1000, checkpoint_every=1000,
)  # fmt: skip
OPTIONS = FinetuneOptions(steps=2, size=48, reference_weight=0.0, pseudo_size=48)


def mark_pseudo(file: Path, real: int) -> Path:
    """All but the first `real` frames of a track become pseudo, in its file."""
    track = Track.load(file)
    frames = [f if i < real else replace(f, pseudo=track.frames[i % real].image) for i, f in enumerate(track.frames)]
    replace(track, frames=frames).save(file, force=True)
    return file


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model()


@pytest.fixture(scope="module")
def people(head: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_people(tmp_path_factory.mktemp("real") / "people", head, PEOPLE, VIEWS, 40, MOMENTS)


@pytest.fixture(scope="module")
def clips(head: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same people; of every moment the first picture is real, the others are pseudo."""
    folder = make_people(tmp_path_factory.mktemp("clips") / "clips", head, PEOPLE, VIEWS, 40, MOMENTS)
    for file in folder.glob("*/track.json"):
        mark_pseudo(file, MOMENTS)
    return folder


@pytest.fixture(scope="module")
def heads(head: HeadModel) -> tuple[Tensor, Tensor]:
    """A painted head from the front and from the side: (2, 64, 64, 3) on black, coverage (2, 64, 64, 1)."""
    images, alphas = paint(head, HeadParams.zeros(head, (2,)), toy_colors(0), *toy_cameras([0.0, 0.3], 64), 64)
    return images - (1 - alphas), alphas


TINTS = (torch.tensor((1.0, 0.8, 0.6)), torch.tensor((0.5, 0.5, 0.5)))


# Structure.


def test_structure_is_what_a_tint_does_not_change(heads: tuple[Tensor, Tensor]) -> None:
    images, alphas = heads
    front, side, mask = images[:1], images[1:], alphas[:1]
    assert structure_distance(front, front, mask) < 1e-5
    moved = structure_distance(torch.roll(front, 3, 2), front, mask)
    assert moved > 0.1 and structure_distance(side, front, mask) > 0.1
    for tint in TINTS:
        tinted = front * tint + 0.1
        assert structure_distance(front, tinted, mask) < 0.15 * moved
        assert ((front - tinted).abs() * mask).sum() > ((front - torch.roll(front, 1, 2)).abs() * mask).sum(), "no small tint"
    exposed = structure_distance(front, front * 0.6 + 0.2, mask)
    assert exposed < 1e-4, "the exposure of the whole picture is no difference at all"


def test_neither_loss_nor_gradient_follow_the_colors_of_a_pseudo_target(heads: tuple[Tensor, Tensor]) -> None:
    images, mask = heads[0], heads[1][:1]
    found = []
    for target in (images[:1], *(images[:1] * tint for tint in TINTS)):
        shown = images[1:].clone().requires_grad_()
        loss = structure_distance(shown, target, mask)
        found.append((loss.item(), torch.autograd.grad(loss, shown)[0]))
    (loss, gradient), *others = found
    assert gradient.norm() > 1e-4 and (gradient * (1 - mask.ceil())).abs().max() == 0, "on the foreground alone"
    for other_loss, other in others:
        assert other_loss == pytest.approx(loss, rel=0.05)
        assert torch.cosine_similarity(other.flatten(), gradient.flatten(), dim=0) > 0.9
    assert torch.cosine_similarity(others[1][1].flatten(), gradient.flatten(), dim=0) > 0.999, "half as bright"


def test_structure_of_a_batch_is_the_mean_and_little_is_asked_of_odd_input(heads: tuple[Tensor, Tensor]) -> None:
    images, alphas = heads
    targets = torch.roll(images, 2, 1)
    halves = [structure_distance(images[k : k + 1], targets[k : k + 1], alphas[k : k + 1]) for k in range(2)]
    assert structure_distance(images, targets, alphas) == pytest.approx(float(sum(halves)) / 2, rel=1e-5)
    assert structure_distance(images, targets, torch.zeros_like(alphas)) == 0
    small = images[:, :16, :16].clone().requires_grad_()
    flat = torch.full_like(images, 0.5).requires_grad_()
    loss = structure_distance(small, targets[:, :16, :16], alphas[:, :16, :16] * 0 + 1) + structure_distance(flat, targets, alphas)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, (small, flat)))


def test_a_perceptual_network_takes_the_place_of_structure(heads: tuple[Tensor, Tensor]) -> None:
    images, alphas = heads
    seen: list[Tensor] = []

    def network(a: Tensor, b: Tensor) -> Tensor:
        seen.extend((a, b))
        return (a - b).square().mean()

    found = pseudo_distance(images, torch.roll(images, 2, 1), alphas, network)
    assert found > 0 and all((picture * (alphas == 0)).abs().max() == 0 for picture in seen), "on the foreground"
    weights = LossWeights(lpips=0.4, alpha=0.0)
    term = pseudo_term([images, images], alphas, torch.roll(images, 2, 1), alphas, weights, network)
    assert term == pytest.approx(2 * 0.4 * float(found))


def test_coverage_counts_where_the_target_is_known(heads: tuple[Tensor, Tensor]) -> None:
    images, alphas = heads
    known = torch.ones_like(alphas, dtype=torch.bool)
    known[:, 40:] = False
    shown, covered = torch.rand(images.shape).requires_grad_(), torch.rand(alphas.shape).requires_grad_()
    compared = torch.ones_like(known)
    compared[:, :, :30] = False
    term = pseudo_term([shown], covered, images, alphas, LossWeights(), known=known, compared=compared)
    color, coverage = torch.autograd.grad(term, (shown, covered))
    assert (coverage[known] != 0).all() and (coverage[~known] == 0).all()
    inside = (known & compared & (alphas > 0.9)).expand_as(color)
    assert (color[inside] != 0).float().mean() > 0.9 and (color[~(known & compared).expand_as(color)] == 0).all()


# Batches of both kinds.


def comparison(count: int = 4) -> Comparison:
    generator = torch.Generator().manual_seed(0)
    colors = [torch.rand(count, SIZE, SIZE, 3, generator=generator) for _ in range(3)]
    refined, plain, alphas = (x.requires_grad_() for x in (*colors[:2], torch.rand(count, SIZE, SIZE, 1, generator=generator)))
    mattes, mouths = (torch.rand(2, count, SIZE, SIZE, 1, generator=generator) > 0.5).float()
    return Comparison(refined, plain, alphas, colors[2], mattes, mouths)


def total(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum()


def test_real_pictures_alone_count_as_ever() -> None:
    for shown in (comparison(), replace(comparison(), plain=None)):
        before = real_terms(shown, LossWeights(), None)
        found = mixed_terms(shown, torch.zeros(4, dtype=torch.bool), 0.25, LossWeights(), None)
        assert found.pop("pseudo") == 0 and list(found) == list(before)
        assert all(torch.equal(found[name], before[name]) for name in before)
        assert ("plain" in found) == (shown.plain is not None)


def test_pseudo_pictures_get_structure_and_coverage_and_no_color_term() -> None:
    shown, pseudo, weights = comparison(), torch.tensor([False, True, False, True]), LossWeights()
    parts = mixed_terms(shown, pseudo, 0.25, weights, None)
    pictures = (shown.refined, shown.plain, shown.alphas)
    real = torch.autograd.grad(total({k: v for k, v in parts.items() if k != "pseudo"}), pictures, retain_graph=True)
    made = torch.autograd.grad(parts["pseudo"], pictures, retain_graph=True)
    for gradient, other in zip(real, made):
        assert (gradient[pseudo] == 0).all() and (other[~pseudo] == 0).all()
        assert gradient[~pseudo].abs().sum() > 0 < other[pseudo].abs().sum()
    halves = [
        total(mixed_terms(shown.at(index), pseudo[index], 0.25, weights, None)).item()
        for index in (torch.tensor([0, 1]), torch.tensor([2, 3]))
    ]
    assert total(parts).item() == pytest.approx(sum(halves) / 2, rel=1e-5), "a batch is the mean of its halves"
    doubled = mixed_terms(shown, pseudo, 0.5, weights, None)
    assert doubled["pseudo"].item() == pytest.approx(2 * parts["pseudo"].item()) and torch.equal(doubled["rec"], parts["rec"])
    only = mixed_terms(shown, torch.ones(4, dtype=torch.bool), 0.25, weights, None)
    assert set(only) == set(parts) and only["rec"] == only["mouth"] == only["plain"] == only["alpha"] == 0 < only["pseudo"]


# Whose picture is drawn.


def test_a_data_set_knows_which_of_its_pictures_are_pseudo(clips: Path, head: HeadModel) -> None:
    """So that a checkpoint does not go on with another marking."""
    data = load_training_set([clips], head, 32)
    assert bool(data.pseudo.any())
    assert len({data.fingerprint(), replace(data, pseudo=~data.pseudo).fingerprint(), replace(data, pseudo=data.pseudo & False).fingerprint()}) == 3


def test_a_pseudo_picture_gives_way_to_a_real_one_of_its_moment(clips: Path, head: HeadModel) -> None:
    data = load_training_set([clips], head, SIZE)
    twins = real_twins(data)
    assert {k: v.tolist() for k, v in twins.items()} == {2: [0], 3: [1], 4: [0], 5: [1], 8: [6], 9: [7], 10: [6], 11: [7]}
    counts = {}
    for chance in (0.0, 0.8, 1.0):
        sampler = BatchSampler(data.frames, 2, 3, 0, data.weights, twins, chance)
        drawn = torch.cat([sampler.draw()[1] for _ in range(400)])
        counts[chance] = data.pseudo[drawn].float().mean().item()
    assert counts[0.0] == pytest.approx(4 / 6, abs=0.03) and counts[1.0] == 0
    assert counts[0.8] == pytest.approx(4 / 6 * 0.2, abs=0.02)
    alone = replace(data, pseudo=torch.ones_like(data.pseudo))
    assert real_twins(alone) == {} and real_twins(replace(data, pseudo=torch.zeros_like(data.pseudo))) == {}


def test_draws_with_replacement_go_on_from_their_state(clips: Path, head: HeadModel) -> None:
    data = load_training_set([clips], head, SIZE)
    first, other = (BatchSampler(data.frames, 1, 3, seed, None, real_twins(data), 0.5) for seed in (0, 9))
    first.batch()
    other.load_state({name: value.clone() for name, value in first.state().items()})
    assert set(first.state()) == {"generator", "queue"}, "as before"
    for _ in range(5):
        a, b = first.batch(), other.batch()
        assert torch.equal(a.pictures, b.pictures) and torch.equal(a.background, b.background)


# Training.


def trainer_on(data: TrainingSet, config: TrainConfig = TINY) -> Trainer:
    torch.manual_seed(0)
    return Trainer(random_prior(load_head_model(), people=data.num_identities), data, config, TrainOptions())


def test_without_pseudo_pictures_nothing_changes(people: Path, head: HeadModel) -> None:
    data = load_training_set([people], head, SIZE)
    plain, other = trainer_on(data), trainer_on(data, replace(TINY, pseudo_weight=9.0, real_target=0.1))
    other.mixed = True  # the terms of a batch without pseudo pictures, computed as those of one with
    for step in range(2):
        (loss, parts), (again, found) = plain.loss(step), other.loss(step)
        assert "pseudo" not in parts and found.pop("pseudo") == 0
        assert torch.equal(loss, again) and all(torch.equal(parts[name], found[name]) for name in parts)
    bare = BatchSampler(data.frames, 2, 2, 0, data.weights)
    bare.batch(), bare.batch()
    assert torch.equal(plain.sampler.generator.get_state(), bare.generator.get_state())


def test_a_checkpoint_from_before_goes_on(people: Path, head: HeadModel, tmp_path: Path) -> None:
    """One whose settings know nothing of pseudo pictures."""
    config = replace(TINY, checkpoint_every=2)

    def stop(done: int, total: int, message: str) -> None:
        if "loss" in message and done == 3:
            raise KeyboardInterrupt

    file = tmp_path / "old.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train_prior([people], head, config, TrainOptions(checkpoint=file), stop)
    saved = Checkpoint.load(file)
    for key in ("pseudo_weight", "real_target"):
        del saved.config[key]
    saved.save(file)
    resumed = train_prior([people], head, config, TrainOptions(resume=file))
    whole = train_prior([people], head, config)
    assert saved.step == 2 and all(torch.equal(a, b) for a, b in zip(resumed.gapnet.parameters(), whole.gapnet.parameters()))


def test_pseudo_pictures_take_part_in_training(clips: Path, head: HeadModel) -> None:
    data = load_training_set([clips], head, SIZE)
    trainer = trainer_on(data, replace(TINY, real_target=0.0, accumulate=2))
    whole = trainer_on(data, replace(TINY, real_target=0.0))
    loss, parts = whole.loss(0)
    assert parts["pseudo"] > 0 and trainer.loss(0)[0].item() == pytest.approx(loss.item(), rel=1e-4), "in parts as in one"
    always = trainer_on(data, replace(TINY, real_target=1.0))
    assert always.loss(0)[1]["pseudo"] == 0
    silent = trainer_on(data, replace(TINY, real_target=0.0, pseudo_weight=0.0)).loss(0)[1]
    assert silent["pseudo"] == 0 and silent["rec"] == pytest.approx(float(parts["rec"]), rel=1e-5)
    assert data.real_frames(1).tolist() == [6, 7], "which a preview shows"


def test_somebody_without_a_real_picture_is_named(clips: Path, head: HeadModel, tmp_path: Path) -> None:
    track = Track.load(clips / "person01" / "track.json")
    track.select([2, 3, 4]).save(tmp_path / "track.json")
    with pytest.raises(AvtoolError, match="real picture beside the 3 pseudo pictures"):
        trainer_on(load_training_set([tmp_path], head, SIZE))
    for key, value in (("pseudo_weight", -1.0), ("real_target", 1.5)):
        with pytest.raises(FormatError, match=key):
            check_config(replace(TINY, **{key: value}))


# Fine-tuning.


@pytest.fixture(scope="module")
def avatar(head: HeadModel) -> Avatar:
    return person_of(random_prior(head), 0, with_offsets=False)


@pytest.fixture(scope="module")
def views(head: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of another person with the same face: a photo, and three pseudo pictures."""
    folder = tmp_path_factory.mktemp("mv")
    photo_track(person_of(random_prior(head), 1, with_offsets=False), folder, 4).save(folder / "track.json")
    return mark_pseudo(folder / "track.json", 1).parent


@pytest.fixture(scope="module")
def photos(views: Path) -> Track:
    return Track.load(views / "track.json").select([0])


def tensors(avatar: Avatar) -> dict[str, Tensor]:
    return {**avatar.gapnet.state_dict(), "code": avatar.code, "offsets": avatar.offsets}


def test_pseudo_pictures_move_the_person_the_same_way_each_time(avatar: Avatar, photos: Track, views: Path) -> None:
    made, options = Track.load(views / "track.json"), replace(OPTIONS, steps=4)
    without = finetune(avatar, photos, options)
    first, again = (finetune(avatar, photos, options, pseudo=made) for _ in range(2))
    assert all(torch.equal(tensors(first)[name], value) for name, value in tensors(again).items())
    assert not torch.equal(first.gapnet.features, without.gapnet.features)
    with torch.no_grad():
        means = [one.gapnet.geometry(one.code).means for one in (first, without)]
    assert not torch.equal(*means), "geometry, too"
    assert "3 pseudo pictures" in first.metadata["tuned"] and "pseudo" not in without.metadata["tuned"]
    other = finetune(avatar, photos, replace(options, seed=3), pseudo=made)
    assert not torch.equal(other.gapnet.features, first.gapnet.features)


def test_the_real_pictures_of_the_pseudo_data_are_not_looked_at(views: Path, head: HeadModel, tmp_path: Path) -> None:
    track = Track.load(views / "track.json")
    frames = [replace(f, image="gone.png", matte="gone.png") if f.pseudo is None else f for f in track.frames]
    made = load_pseudo(replace(track, frames=frames), head, 48, 0, "mv")
    assert len(made) == 3 and torch.equal(made.viewmats, track.viewmats([1, 2, 3])), "their own cameras"
    assert torch.equal(made.params.expression, track.params([1, 2, 3]).expression), "and their own motion"
    assert len(load_photos(track, head, 48)) == 1, "and pseudo pictures are no photos"
    with pytest.raises(AvtoolError, match="expected photos, found 3 pseudo pictures only"):
        load_photos(track.select([1, 2, 3]), head, 48)
    many = replace(track, frames=[track.frames[1 + k % 3] for k in range(MAX_PSEUDO + 20)])
    assert len(load_pseudo(many, head, 16, 0, "mv")) == MAX_PSEUDO


def test_pseudo_pictures_come_in_rounds_with_the_weight_of_the_steps_between(
    avatar: Avatar, photos: Track, views: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load_pseudo(Track.load(views / "track.json"), avatar.head, 48, 0, "mv")
    tuning = Finetuning(avatar, photos, replace(OPTIONS, pseudo_every=3), "track", made)
    drawn = [tuning.next_pseudo(step) for step in range(18)]
    assert [k is not None for k in drawn] == [False, False, True] * 6
    rounds = [k for k in drawn if k is not None]
    assert sorted(rounds[:3]) == sorted(rounds[3:]) == [0, 1, 2]
    monkeypatch.setattr(tuning, "pseudo_loss", lambda gaussians, k: torch.tensor(2.0))
    with torch.no_grad():
        assert "pseudo" not in tuning.loss(0)[1] and tuning.loss(2)[1]["pseudo"] == pytest.approx(2.0 * 3 * OPTIONS.pseudo_weight)


def test_colors_and_mouths_of_pseudo_pictures_do_not_count(avatar: Avatar, photos: Track, views: Path) -> None:
    made = load_pseudo(Track.load(views / "track.json"), avatar.head, 48, 0, "mv")
    painted = torch.where(made.mouths > 0, torch.rand(3), made.targets)
    tinted = made.targets * torch.tensor((0.9, 0.7, 0.8))
    found = {}
    for name, targets in (("as is", made.targets), ("painted", painted), ("tinted", tinted)):
        tuning = Finetuning(avatar, photos, OPTIONS, "track", replace(made, targets=targets))
        tuning.gapnet.features.requires_grad_()
        gaussians, _ = tuning.posed(0, None, 1)
        loss = tuning.pseudo_loss(gaussians[1:2], 1)
        found[name] = loss.item(), torch.autograd.grad(loss, tuning.gapnet.features)[0]
    (loss, gradient), (same, equal), (near, alike) = found.values()
    assert same == pytest.approx(loss, rel=1e-5) and torch.allclose(equal, gradient, atol=1e-7), "the mouth is left out"
    assert near == pytest.approx(loss, rel=0.05) and torch.cosine_similarity(alike.flatten(), gradient.flatten(), dim=0) > 0.9


def test_what_is_no_pseudo_data_is_said(views: Path, people: Path, tmp_path: Path) -> None:
    assert len(load_pseudo_track(views).frames) == len(load_pseudo_track(views / "track.json").frames) == 4
    for path, words in (
        (tmp_path / "nowhere", "nowhere: expected a data set with pseudo pictures, found nothing"),
        (tmp_path, "found a directory without track.json"),
        (people / "person00", "expected pseudo pictures, found 6 real ones only"),
    ):
        with pytest.raises(AvtoolError, match=words):
            load_pseudo_track(path)


# The program.


def run(folder: Path, *args: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COVERAGE": "", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    words = [sys.executable, "-m", "avtool", *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=folder, env=environment)


def test_train_prior_takes_them_from_the_command_line(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text("pseudo_weight: 0.1\nreal_target: 0.5\n")
    sizes = ["--preset", "tiny", "--refiner", "none", "--uv-size", 16, "--image-size", SIZE, "--batch-size", 4, "--views-per-identity", 2]
    done = run(tmp_path, "train-prior", clips, "-o", "prior.safetensors", *sizes, "--steps", 2, "--config", "low.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pseudo"] >= 0 and "pseudo" in done.stderr
    assert Prior.load(tmp_path / "prior.safetensors").num_identities == PEOPLE
    assert Checkpoint.load(tmp_path / "prior.checkpoint.safetensors").config["real_target"] == 0.5


def test_finetune_takes_them_from_the_command_line(avatar: Avatar, views: Path, photos: Track, tmp_path: Path) -> None:
    avatar.save(tmp_path / "inverted.safetensors")
    photos.save(tmp_path / "track.json")
    call = ["finetune", "inverted.safetensors", "track.json", "--steps", 2, "--size", 48, "--reference-weight", 0, "--json"]
    done = run(tmp_path, *call, "-o", "avatar.safetensors", "--pseudo", views, "--pseudo-weight", 0.2)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["photos"], report["pseudo"]) == (1, 3)
    assert "3 pseudo pictures of weight 0.2" in Avatar.load(tmp_path / "avatar.safetensors").metadata["tuned"]
