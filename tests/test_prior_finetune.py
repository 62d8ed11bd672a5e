"""Fine-tuning and its three guards: learning rates, the mouth, reference views."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_prior import person_of, random_prior
from tiny_avatar import photo_track

from avtool.artifacts.track import Track
from avtool.cameras import project
from avtool.head import HeadModel, load_head_model
from avtool.prior import finetune as module
from avtool.prior.avatar import Avatar
from avtool.prior.finetune import Finetuning, FinetuneOptions, finetune
from avtool.prior.objective import LossWeights
from avtool.prior.prior import Prior
from avtool.prior.reference_views import make_reference_views, reference_cameras, reference_expressions

SIZE = 48
OPTIONS = FinetuneOptions(steps=2, size=SIZE, reference_views=4, reference_size=24)


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model()


@pytest.fixture
def avatar(head: HeadModel) -> Avatar:
    """Person 0 of a random prior, with the face of the photos."""
    return person_of(random_prior(head), 0, with_offsets=False)


@pytest.fixture(scope="module")
def track(head: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Track:
    """Three photos of person 1: the same face in other colors."""
    return photo_track(person_of(random_prior(head), 1, with_offsets=False), tmp_path_factory.mktemp("photos"), 3)


def tensors(avatar: Avatar) -> dict[str, torch.Tensor]:
    values = {f"gapnet.{k}": v for k, v in avatar.gapnet.state_dict().items()}
    values |= {} if avatar.refiner is None else {f"refiner.{k}": v for k, v in avatar.refiner.state_dict().items()}
    values |= {"code": avatar.code, "identity": avatar.identity}
    values |= {} if avatar.offsets is None else {"offsets": avatar.offsets}
    return {name: value.detach().clone() for name, value in values.items()}


def test_everything_moves_at_its_rate_and_the_given_avatar_stays(avatar: Avatar, track: Track) -> None:
    """Adam's first step is as long as the rate: f some hundred times the rest, the refiner in between."""
    before = tensors(avatar)
    tuned = tensors(finetune(avatar, track, replace(OPTIONS, steps=1)))
    assert all(torch.equal(value, before[name]) for name, value in tensors(avatar).items()) and avatar.offsets is None
    before["offsets"] = torch.zeros_like(tuned["offsets"])
    fixed = {"gapnet.base_scales"}
    for name, value in tuned.items():
        moved = (value - before[name]).abs().max().item()
        rate = OPTIONS.refiner_rate if name.startswith("refiner.") else OPTIONS.other_rate
        rate = 0.0 if name in fixed else OPTIONS.feature_rate if name == "gapnet.features" else rate
        assert moved == pytest.approx(rate, rel=0.05), name


def test_every_parameter_is_in_one_group(avatar: Avatar, track: Track) -> None:
    tuning = Finetuning(avatar, track, OPTIONS, "track")
    groups = tuning.groups()
    known = [id(p) for p in (*tuning.gapnet.parameters(), *tuning.refiner.parameters())]
    known += [id(t) for t in (tuning.code, tuning.identity, tuning.offsets, *tuning.motion.values(), *tuning.light.parameters())]
    listed = [id(p) for group in groups.values() for p in group]
    assert sorted(known) == sorted(listed) and len(set(listed)) == len(listed)
    assert groups["features"] == [tuning.gapnet.features] and set(groups) == {"features", "refiner", "other", "light"}
    assert groups["refiner"] == list(tuning.refiner.parameters())
    assert set(tuning.motion) == {"expression", "neck", "head", "jaw", "eyes"}
    rates = FinetuneOptions()
    assert rates.feature_rate >= 100 * rates.other_rate > 0 and rates.feature_rate > rates.refiner_rate > rates.other_rate


def test_photos_are_approached_and_reference_views_hold_the_rest(avatar: Avatar, track: Track) -> None:
    """Without the third guard the neutral face drifts more; with it the photos are still learned."""
    drift, error = {}, {}
    start = Finetuning(avatar, track, OPTIONS, "track")
    pictures = start.references.pictures
    with torch.no_grad():
        error["start"] = photo_error(start)
    for name, weight in (("free", 0.0), ("guarded", 0.05)):
        options = replace(OPTIONS, steps=12, feature_rate=1e-2, reference_weight=weight, reference_views=16)
        tuned = finetune(avatar, track, options)
        assert ("without" in tuned.metadata["tuned"]) == (name == "free") and tuned.metadata["made_by"] == "test"
        after = Finetuning(tuned, track, OPTIONS, "track")
        drift[name] = (after.references.pictures - pictures).abs().mean().item()
        with torch.no_grad():
            error[name] = photo_error(after)
    assert 0.001 < drift["guarded"] < 0.85 * drift["free"]
    assert error["free"] < 0.9 * error["start"] and error["guarded"] < error["start"]


def photo_error(tuning: Finetuning) -> float:
    total = 0.0
    for k in range(len(tuning.photos)):
        gaussians, _ = tuning.posed(k)
        total += float(tuning.photo_loss(gaussians, tuning.photos, k)["photo"])
    return total


def test_reference_views_start_at_no_loss_and_count_as_their_sum(avatar: Avatar, track: Track, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come every second step with the weight of all views and of the steps without."""
    tuning = Finetuning(avatar, track, OPTIONS, "track")
    assert tuning.references.pictures.shape == (4, 24, 24, 3)
    with torch.no_grad():
        assert tuning.loss(0)[1]["reference"] < 1e-4
        assert "reference" not in tuning.loss(1)[1]
        monkeypatch.setattr(tuning, "reference_loss", lambda gaussians, view: torch.tensor(2.0))
        assert tuning.loss(2)[1]["reference"].item() == pytest.approx(2.0 * 0.01 * 4 * 2)
    off = Finetuning(avatar, track, replace(OPTIONS, reference_weight=0.0), "track")
    assert off.references is None and "reference" not in off.loss(0)[1]


def test_reference_cameras_stand_around_the_head() -> None:
    center = torch.tensor((0.01, 0.06, 0.02))
    viewmats, Ks = reference_cameras(center, 0.24, 16, 128)
    assert viewmats.shape == (16, 4, 4) and Ks.shape == (16, 3, 3)
    uv, depth = project(center.expand(16, 1, 3), viewmats, Ks)
    assert torch.allclose(uv, torch.tensor(64.0), atol=1e-2) and torch.allclose(depth, torch.tensor(1.0), atol=1e-4)
    top, _ = project((center + torch.tensor((0.0, 0.12, 0.0))).expand(16, 1, 3), viewmats, Ks)
    assert ((64 - top[..., 1]) / 128).sub(0.3).abs().max() < 0.03, "the head fills 60 %"
    places = -(viewmats[:, :3, :3].mT @ viewmats[:, :3, 3:])[..., 0] - center
    assert len(places.round(decimals=3).unique(dim=0)) == 16
    yaws = torch.atan2(places[:, 0], places[:, 2])
    assert yaws.min() < -1.3 and yaws.max() > 1.3 and places[:, 1].min() < -0.1 and places[:, 1].max() > 0.2
    assert len(reference_cameras(center, 0.24, 1, 32)[0]) == 1


def test_reference_views_wear_expressions(avatar: Avatar) -> None:
    """Half of them are neutral, the others show shut eyes or an open mouth; every picture is the avatar's own."""
    head = avatar.head
    expression = reference_expressions(head, 16)
    blink, jaw = (expression[:, head.expression_index(name)] for name in ("eyeBlinkLeft", "jawOpen"))
    assert ((expression == 0).all(1)).sum() == 8 and (blink == 1).sum() == 4 and (jaw > 0.5).sum() == 4
    assert not ((blink > 0) & (jaw > 0)).any() and (expression[:8] != expression[8:]).any(1).sum() == 4
    views = make_reference_views(person_of(Prior.load("default"), 0, with_offsets=False), 16, 48)
    neutral, shut, open_mouth = (views.changed[chosen].mean() for chosen in ((expression == 0).all(1), blink > 0, jaw > 0))
    assert views.changed.shape == (16, 48, 48, 1) and neutral == 0, "nothing changes in a neutral view"
    assert 0.001 < shut < 0.2 and 0.005 < open_mouth < 0.5
    views = make_reference_views(avatar, 4, 48)
    for k in range(4):
        params = avatar.params_for(views.expression[k : k + 1], *torch.zeros(3, 1, 3), torch.zeros(1, 2, 3))
        image, _ = avatar.render(params, views.viewmats[k : k + 1], views.Ks[k : k + 1], 48, 48, background=torch.ones(3))
        assert torch.allclose(views.pictures[k], image[0], atol=1e-4)


def test_a_head_without_named_shapes_stays_neutral(head: HeadModel) -> None:
    nameless = replace(head, expression_names=tuple(f"expression{k}" for k in range(head.num_expression)))
    assert reference_expressions(nameless, 16).abs().max() == 0


def painted_mouth(track: Track, tuning: Finetuning, folder: Path) -> Track:
    """The photos with a green mouth, exactly where the mask of the smaller training pictures lies."""
    frames = []
    for k, frame in enumerate(track.frames):
        with Image.open(track.resolve(frame.image)) as image:
            pixels = np.array(image.convert("RGB"))
        mask = np.kron(tuning.photos.mouths[k, ..., 0].numpy(), np.ones((2, 2))) > 0
        assert pixels.shape[:2] == mask.shape and mask.sum() > 40
        pixels[mask] = (0, 255, 0)
        Image.fromarray(pixels).save(folder / f"green{k}.png")
        frames.append(replace(frame, image=str(folder / f"green{k}.png")))
    return replace(track, frames=frames)


@pytest.mark.parametrize("excluded", [True, False])
def test_what_the_mouth_of_a_photo_shows_does_not_matter(avatar: Avatar, track: Track, tmp_path: Path, excluded: bool) -> None:
    """Bit for bit, but for SSIM, whose windows at the border reach into the mouth of both pictures."""
    options = replace(OPTIONS, exclude_mouth=excluded, weights=replace(LossWeights(), ssim=0.0))
    green = painted_mouth(track, Finetuning(avatar, track, options, "track"), tmp_path)
    first, second = (tensors(finetune(avatar, t, options)) for t in (track, green))
    assert all(torch.equal(first[name], second[name]) for name in first) == excluded


@pytest.mark.parametrize("excluded", [True, False])
def test_the_mouth_gets_no_gradient(avatar: Avatar, track: Track, monkeypatch: pytest.MonkeyPatch, excluded: bool) -> None:
    """In the pictures that the photo loss compares, with SSIM; nor do pixels beyond the photo, in coverage either."""
    seen: dict[str, torch.Tensor] = {}
    real_images, real_channels = module.lit_images, module.render_channels

    def lit_images(colors: torch.Tensor, alphas: torch.Tensor, *rest: object) -> tuple[torch.Tensor, torch.Tensor]:
        seen["refined"], seen["plain"] = real_images(colors, alphas.detach(), *rest)
        for picture in seen.values():
            picture.retain_grad()
        return seen["refined"], seen["plain"]

    tuning = Finetuning(avatar, track, replace(OPTIONS, exclude_mouth=excluded), "track")
    beyond = torch.zeros(3, SIZE, SIZE, 1, dtype=torch.bool)
    beyond[:, SIZE // 2 + 8 :] = True
    tuning.photos = replace(tuning.photos, outside=beyond)
    monkeypatch.setattr(module, "lit_images", lit_images)

    def render_channels(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
        colors, alphas = real_channels(*args)
        seen_alphas.append(alphas.requires_grad_() if not alphas.requires_grad else alphas)
        alphas.retain_grad()
        return colors, alphas

    seen_alphas: list[torch.Tensor] = []
    monkeypatch.setattr(module, "render_channels", render_channels)
    for parameter in tuning.groups()["features"]:
        parameter.requires_grad_()
    gaussians, _ = tuning.posed(1)
    torch.stack(list(tuning.photo_loss(gaussians, tuning.photos, 1).values())).sum().backward()
    mouth = tuning.photos.mouths[1, ..., 0] > 0
    skin = (tuning.photos.mattes[1, ..., 0] > 0.99) & ~mouth & ~beyond[1, ..., 0]
    assert mouth.sum() > 20 and skin.sum() > 100
    for name, picture in seen.items():
        gradient = picture.grad[0].abs().amax(-1)
        assert (gradient[mouth & ~beyond[1, ..., 0]].max() == 0) == excluded, name
        assert gradient[beyond[1, ..., 0]].max() == 0, name
        assert (gradient[skin] > 0).float().mean() > 0.95, name
    coverage = seen_alphas[0].grad[0].abs().amax(-1)
    assert coverage[beyond[1, ..., 0]].max() == 0 and coverage.max() > 0


def test_one_photo_is_enough_and_seeds_repeat(avatar: Avatar, track: Track) -> None:
    one = track.select([1])
    first, again = (tensors(finetune(avatar, one, OPTIONS)) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    several = [tensors(finetune(avatar, track, replace(OPTIONS, seed=seed)))["gapnet.features"] for seed in (0, 0, 3)]
    assert torch.equal(several[0], several[1]) and not torch.equal(several[0], several[2])


def test_photos_come_in_shuffled_rounds(avatar: Avatar, track: Track) -> None:
    tuning = Finetuning(avatar, track, OPTIONS, "track")
    order = [tuning.next_photo() for _ in range(30)]
    rounds = [tuple(order[i : i + 3]) for i in range(0, 30, 3)]
    assert all(sorted(one) == [0, 1, 2] for one in rounds) and len(set(rounds)) > 2


def test_the_light_of_a_photo_is_not_in_the_avatar(avatar: Avatar, track: Track, tmp_path: Path) -> None:
    """However large the light of single photos: the avatar's pictures and its file know nothing of it."""
    tuning = Finetuning(avatar, track, OPTIONS, "track")
    before = tuning.references.pictures
    with torch.no_grad():
        tuning.light.log_gains[0] += 3.0
        tuning.light.biases[2] -= 0.5
    result = tuning.avatar({})
    assert torch.equal(Finetuning(result, track, OPTIONS, "track").references.pictures, before)
    result.save(tmp_path / "tuned.safetensors")
    avatar.save(tmp_path / "given.safetensors")
    names = [set(tensors(Avatar.load(tmp_path / f"{name}.safetensors"))) for name in ("tuned", "given")]
    assert names[0] - names[1] == {"offsets"}


def test_without_a_refiner_there_is_one_picture(head: HeadModel, track: Track) -> None:
    plain = person_of(random_prior(head, refiner="none"), 0, with_offsets=False)
    tuning = Finetuning(plain, track, OPTIONS, "track")
    with torch.no_grad():
        _, parts = tuning.loss(0)
    assert set(parts) == {"photo", "alpha", "scale", "position", "arap", "reference"}
    assert finetune(plain, track, OPTIONS).refiner is None


def test_the_first_half_sees_photos_of_half_the_size(avatar: Avatar, track: Track, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = Finetuning.photo_loss

    def watched(self: Finetuning, gaussians: object, photos: object, photo: int) -> dict[str, torch.Tensor]:
        seen.append(photos.size)
        return original(self, gaussians, photos, photo)

    monkeypatch.setattr(Finetuning, "photo_loss", watched)
    finetune(avatar, track, replace(OPTIONS, steps=4, size=64))
    assert seen == [32, 32, 64, 64]
    seen.clear()
    finetune(avatar, track, replace(OPTIONS, steps=2, size=48))
    assert seen == [48, 48]
