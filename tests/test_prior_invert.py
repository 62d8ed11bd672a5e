"""Inversion on photos of people whom the prior knows: only the mix moves, and it finds them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_prior import person_of, random_prior
from tiny_avatar import photo_track

from avtool.artifacts.track import Track
from avtool.head import HeadModel, load_head_model
from avtool.prior.invert import Inversion, InvertOptions, invert, is_flat
from avtool.prior.objective import LossWeights
from avtool.prior.photos import MAX_PHOTOS, PhotoLight, beyond_photo, hide, load_photos
from avtool.prior.prior import Prior

SIZE, KNOWN = 48, 2
OPTIONS = InvertOptions(steps=30, size=SIZE, free_steps=0)


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model()


@pytest.fixture
def prior(head: HeadModel) -> Prior:
    return random_prior(head)


@pytest.fixture(scope="module")
def track(head: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Track:
    """Four photos of person 2 of the prior."""
    person = person_of(random_prior(head), KNOWN, with_offsets=False)
    return photo_track(person, tmp_path_factory.mktemp("photos"), 4)


def state(prior: Prior) -> dict[str, torch.Tensor]:
    modules = {"gapnet": prior.gapnet, "codebook": prior.codebook, "refiner": prior.refiner}
    return {f"{m}.{k}": v.clone() for m, module in modules.items() for k, v in module.state_dict().items()}


@pytest.mark.parametrize("scan", [True, False])
def test_a_person_of_the_prior_is_found_again(prior: Prior, track: Track, scan: bool) -> None:
    """From the mean as well as from a scan: the mix leans to the person in every part that photos show."""
    inversion = Inversion(prior, load_photos(track, prior.head, SIZE), OPTIONS)
    everyone = torch.arange(len(track.frames))
    with torch.no_grad():
        mean = inversion.error(prior.codebook.mix(inversion.logits), everyone, inversion.photos)
        own = inversion.error(prior.codebook.codes[KNOWN : KNOWN + 1], everyone, inversion.photos)
        if scan:
            inversion.scan(inversion.photos, None)
            assert (inversion.logits.argmax(0) == KNOWN).all()
    inversion.run(None)
    with torch.no_grad():
        found = inversion.error(prior.codebook.mix(inversion.logits), everyone, inversion.photos)
    weights = torch.softmax(inversion.logits, 0)
    assert torch.allclose(weights.sum(0), torch.ones(prior.num_parts))
    sizes = torch.tensor(prior.gapnet.part_sizes, dtype=torch.float32)
    share = (weights[KNOWN] * sizes).sum() / sizes.sum()
    assert share > (0.8 if scan else 0.5)
    assert mean > 1.5 * own and found - own < 0.35 * (mean - own)


def test_only_the_mix_moves(prior: Prior, track: Track) -> None:
    before = state(prior)
    messages: list[str] = []
    avatar = invert(prior, track, replace(OPTIONS, steps=6), lambda done, total, text: messages.append(text))
    after = state(prior)
    assert all(torch.equal(before[name], after[name]) for name in before)
    mine = {f"gapnet.{k}": v for k, v in avatar.gapnet.state_dict().items()}
    mine |= {f"refiner.{k}": v for k, v in avatar.refiner.state_dict().items()}
    assert all(torch.equal(mine[name], before[name]) for name in mine)
    with torch.no_grad():
        avatar.gapnet.features.add_(1.0)
    assert torch.equal(prior.gapnet.features, before["gapnet.features"]), "the avatar's networks are its own"
    assert np.array_equal(avatar.identity.numpy(), track.identity.astype(np.float32)) and avatar.offsets is None
    assert messages[:3] == ["comparing with known people"] * 3 and messages[-1].startswith("loss")


def test_the_code_is_a_convex_mix_of_known_codes(prior: Prior, track: Track) -> None:
    """The weights are recovered from the result, part by part: none below zero, in all one."""
    code = invert(prior, track, replace(OPTIONS, steps=6)).code[0].double().numpy()
    codes = prior.codebook.codes.detach().double().numpy()
    mixes = []
    for part in range(prior.num_parts):
        weights, *_ = np.linalg.lstsq(codes[:, part].T, code[part], rcond=None)
        assert np.allclose(codes[:, part].T @ weights, code[part], atol=1e-5)
        assert (weights > 0).all() and weights.sum() == pytest.approx(1, abs=1e-4)
        mixes.append(weights)
    assert np.std(mixes, axis=0).max() > 1e-3, "each part has a mix of its own"


@pytest.mark.parametrize("weight", [0.0, 0.02, 10.0])
def test_a_code_that_no_mix_makes_is_found_beyond_it(prior: Prior, track: Track, weight: float) -> None:
    """The person's own code is left out of the prior: the mix of the others is far off, the free code comes nearer, a dear one stays."""
    others = replace(prior, codebook=copy.deepcopy(prior.codebook))
    others.codebook.codes = torch.nn.Parameter(prior.codebook.codes.detach()[[k for k in range(prior.num_identities) if k != KNOWN]])
    options = replace(OPTIONS, free_steps=40, free_rate=0.1, free_weight=weight)
    inversion = Inversion(others, load_photos(track, prior.head, SIZE), options)
    everyone = torch.arange(len(track.frames))
    inversion.run(None)
    with torch.no_grad():
        mixed = inversion.error(inversion.code(), everyone, inversion.photos)
        assert torch.equal(inversion.code(), others.codebook.mix(inversion.logits))
    logits = inversion.logits.clone()
    inversion.leave_mix(None)
    with torch.no_grad():
        free = inversion.error(inversion.code(), everyone, inversion.photos)
    assert torch.equal(logits, inversion.logits) and not inversion.distance.requires_grad
    far = inversion.distance.square().mean().sqrt()
    assert (free < 0.8 * mixed and far > 0.1) if weight < 1 else (free > 0.9 * mixed and far < 0.1)


def test_free_steps_move_the_code_and_nothing_else(prior: Prior, track: Track) -> None:
    before, messages = state(prior), []
    kept = invert(prior, track, replace(OPTIONS, steps=4))
    freed = invert(prior, track, replace(OPTIONS, steps=4, free_steps=3), lambda done, total, text: messages.append((done, total, text)))
    assert all(torch.equal(value, before[name]) for name, value in state(prior).items())
    assert [entry[:2] for entry in messages[-3:]] == [(1, 3), (2, 3), (3, 3)] and messages[-1][2].startswith("beyond known people")
    spread = prior.codebook.codes.detach().std(0, correction=0)
    moved = ((freed.code - kept.code).abs() / spread)[0][spread > 1e-6]
    assert 0 < moved.max() < 3 * OPTIONS.free_rate * 1.01, "in deviations of the known codes"
    one = replace(prior, codebook=copy.deepcopy(prior.codebook))
    one.codebook.codes = torch.nn.Parameter(prior.codebook.codes.detach()[:1])
    alone = invert(one, track, replace(OPTIONS, steps=2, free_steps=2))
    assert torch.equal(alone.code, one.codebook.codes.detach()), "one person says nothing of how people differ"


def test_inverting_twice_gives_the_same_and_the_seed_decides(prior: Prior, track: Track) -> None:
    options = replace(OPTIONS, steps=5, photos_per_step=1)
    first, again, other = (invert(prior, track, replace(options, seed=seed)).code for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_offsets_of_the_track_belong_to_the_person(prior: Prior, track: Track) -> None:
    offsets = np.full((prior.head.num_vertices, 3), 1e-3, np.float32)
    avatar = invert(prior, replace(track, offsets=offsets).select([0]), replace(OPTIONS, steps=1))
    assert np.allclose(avatar.offsets.numpy(), offsets), "and one photo is enough"


def test_a_photo_in_other_light_changes_the_light_and_not_the_person(prior: Prior, track: Track, tmp_path: Path) -> None:
    """One of four photos at 60 % of the brightness: its light says so, and the mix still finds the person."""
    with Image.open(track.resolve(track.frames[1].image)) as image:
        Image.fromarray((0.6 * np.asarray(image.convert("RGB"), float)).astype(np.uint8)).save(tmp_path / "dim.png")
    frames = list(track.frames)
    frames[1] = replace(frames[1], image=str(tmp_path / "dim.png"))
    inversion = Inversion(prior, load_photos(replace(track, frames=frames), prior.head, SIZE), replace(OPTIONS, steps=15, light_rate=0.05, photos_per_step=4))
    inversion.scan(inversion.photos, None)
    inversion.run(None)
    for value in (inversion.light.log_gains.mean(1), inversion.light.biases.mean(1)):
        assert value[1] < value[[0, 2, 3]].min() - 0.04, "both make it darker"
    assert (inversion.logits.argmax(0) == KNOWN).float().mean() > 0.7


def test_light_is_relative_and_absent_for_one_photo() -> None:
    light = PhotoLight(3, torch.device("cpu"))
    colors, alphas = torch.rand(2, 4, 4, 3), torch.rand(2, 4, 4, 1)
    index = torch.tensor([2, 0])
    assert torch.allclose(light(colors, alphas, index), colors)
    light.log_gains += 0.7
    light.biases -= 0.2
    assert torch.allclose(light(colors, alphas, index), colors), "what all photos share is the avatar's"
    light.log_gains[2] += 0.3
    light.biases[0] += 0.3
    lit = light(colors, alphas, index)
    assert torch.allclose(lit[0], colors[0] * np.exp(0.2) - 0.1 * alphas[0], atol=1e-6)
    assert torch.allclose(lit[1], colors[1] * np.exp(-0.1) + 0.2 * alphas[1], atol=1e-6)
    assert PhotoLight(1, torch.device("cpu")).parameters() == [] and len(light.parameters()) == 2


def test_nothing_is_asked_beyond_the_photo(prior: Prior, track: Track) -> None:
    """Whatever stands there in target and matte, error and gradient are the same; one column further in, they are not."""
    photos = load_photos(track, prior.head, SIZE)
    outside = photos.outside.clone()
    outside[:, :, SIZE // 2 :] = True
    options = replace(OPTIONS, weights=replace(LossWeights(), ssim=0.0))  # SSIM's windows reach over the border

    def gradient(first_column: int) -> tuple[torch.Tensor, torch.Tensor]:
        targets, mattes = photos.targets.clone(), photos.mattes.clone()
        targets[:, :, first_column:] = 0.25
        mattes[:, :, first_column:] = 0.5
        inversion = Inversion(prior, replace(photos, targets=targets, mattes=mattes, outside=outside), options)
        logits = inversion.logits.requires_grad_()
        error = inversion.error(prior.codebook.mix(logits), torch.arange(2), inversion.photos)
        return error.detach(), torch.autograd.grad(error, logits)[0]

    plain, same, other = gradient(SIZE), gradient(SIZE // 2), gradient(SIZE // 2 - 4)
    assert torch.equal(plain[0], same[0]) and torch.equal(plain[1], same[1]) and plain[1].abs().max() > 0
    assert not torch.equal(plain[0], other[0])


def test_hidden_pixels_get_no_gradient() -> None:
    hole = torch.zeros(1, 8, 8, 1, dtype=torch.bool)
    hole[:, 2:5, 3:6] = True
    picture, target = torch.rand(1, 8, 8, 3, requires_grad=True), torch.rand(1, 8, 8, 3)
    (hidden,) = hide(hole, target, (picture,))
    hidden.square().sum().backward()
    seen = ~hole[..., 0]
    assert (picture.grad[hole[..., 0]] == 0).all() and (picture.grad[seen] != 0).all()
    assert torch.equal(hidden[hole[..., 0]], target[hole[..., 0]]) and torch.equal(hidden[seen], picture[seen])


def test_pixels_beyond_the_photo_are_known_from_the_crop(track: Track) -> None:
    """A photo of 96 x 96, a crop of 120 that begins 12 to the left of it and 12 below its top."""
    frames = [replace(track.frames[0], crop=(-12.0, 12.0, 120.0)), track.frames[1]]
    outside = beyond_photo(replace(track, frames=frames), [0, 1], 10)
    columns, rows = outside[0, 0, :, 0], outside[0, :, 5, 0]
    assert columns.tolist() == [True] + [False] * 8 + [True]
    assert rows.tolist() == [False] * 7 + [True] * 3
    assert not outside[1].any()


def test_of_many_frames_an_even_choice_is_taken(track: Track, prior: Prior) -> None:
    frames = [replace(track.frames[k % 4], expression=np.full_like(track.frames[0].expression, k / 100)) for k in range(60)]
    photos = load_photos(replace(track, frames=frames), prior.head, 16)
    taken = (photos.params.expression[:, 0] * 100).round().int().tolist()
    assert len(photos) == MAX_PHOTOS == len(set(taken)) and (taken[0], taken[-1]) == (0, 59)
    assert set(np.diff(taken)) <= {2, 3}
    few = load_photos(track, prior.head, 16)
    assert len(few) == 4 and few.size == 16
    assert (few.targets[few.mattes[..., 0] == 0] == 1).all(), "white behind the head"
    assert (few.mouths.sum((1, 2, 3)) > 0).all()


def test_a_flat_loss_ends_inversion(prior: Prior, track: Track) -> None:
    assert not is_flat([1.0] * 29, 10, 0.01) and is_flat([1.0] * 30, 10, 0.01)
    falling = [0.99**k for k in range(60)]
    assert not is_flat(falling, 10, 0.01) and is_flat(falling, 10, 0.2)
    assert not is_flat([1.0] * 100, 10, 0.0), "zero switches it off"
    steps: list[int] = []
    options = replace(OPTIONS, steps=50, learning_rate=0.0, light_rate=1e-9, flat_window=2, scan=False, photos_per_step=4)
    invert(prior, track, options, lambda done, total, text: steps.append(done))
    assert steps[-1] == 6
