"""The losses of prior training on rendered heads: the mouth's mask, the thresholds, and what each weight switches."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from random_prior import random_prior
from toy_people import make_people, paint, toy_cameras

from avtool.head import PARTS, HeadModel, HeadParams, load_head_model
from avtool.losses import ssim
from avtool.prior.config import TrainConfig
from avtool.prior.dataset import load_training_set
from avtool.prior.gapnet import Geometry
from avtool.prior.objective import (
    REFERENCE_SPACING,
    LossWeights,
    mouth_mask,
    mouth_vertices,
    reconstruction,
    regularization,
)
from avtool.prior.train import Trainer, TrainOptions

SIZE = 64


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model()


def shown(head: HeadModel, params: HeadParams, parts: tuple[str, ...], viewmats: torch.Tensor, Ks: torch.Tensor) -> torch.Tensor:
    """Pixels (B, S, S) where one sees mostly the given parts, with everything else in front of them painted too."""
    colors = torch.zeros(len(PARTS), 3)
    colors[[PARTS.index(part) for part in parts]] = 1
    images, alphas = paint(head, params, colors, viewmats, Ks, SIZE)
    return (images - (1 - alphas))[..., 0] > 0.5


def test_the_mask_covers_the_mouth_of_a_rendered_head_and_little_else(head: HeadModel) -> None:
    """Shut and wide open, from the front and from both sides."""
    viewmats, Ks = toy_cameras([-0.6, 0.0, 0.6], SIZE)
    params = HeadParams.zeros(head, (3,))
    params.expression[:, head.expression_index("jawOpen")] = torch.tensor([0.0, 1.0, 0.5])
    mask = mouth_mask(head(params).vertices[:, mouth_vertices(head)], viewmats, Ks, SIZE, SIZE)
    assert mask.shape == (3, SIZE, SIZE, 1) and set(mask.unique().tolist()) == {0.0, 1.0}
    mask = mask[..., 0] > 0
    mouth, eyes = (shown(head, params, parts, viewmats, Ks) for parts in (("lip", "teeth"), ("eye",)))
    ears = shown(head, params, ("ear",), viewmats, Ks)
    assert (mouth.sum((1, 2)) > 10).all()
    assert ((mouth & mask).sum((1, 2)) / mouth.sum((1, 2))).min() > 0.97
    assert not (mask & eyes).any() and not (mask & ears).any()
    assert (mask.sum((1, 2)) < 6 * mouth.sum((1, 2))).all() and mask.float().mean() < 0.08
    assert mask[1].sum() > 1.3 * mask[0].sum(), "it opens with the mouth"


def test_the_mask_is_an_ellipse_at_the_place_in_pixels() -> None:
    """Centered where the points project to, also in pictures that are not square, and empty when out of sight."""
    points = torch.tensor([[[-0.02, 0.0, 0.0], [0.02, 0.0, 0.0], [0.0, 0.01, 0.0], [0.0, -0.01, 0.0]]])
    viewmats = torch.diag(torch.tensor((1.0, -1.0, -1.0, 1.0)))[None]
    viewmats[0, 2, 3] = 1.0
    K = torch.tensor([[[500.0, 0, 30], [0, 500.0, 20], [0, 0, 1]]])
    mask = mouth_mask(points, viewmats, K, 80, 40)[0, ..., 0]
    assert mask.shape == (40, 80)
    rows, columns = torch.nonzero(mask).float().add(0.5).unbind(1)
    assert columns.mean().item() == pytest.approx(30, abs=0.2) and rows.mean().item() == pytest.approx(20, abs=0.2)
    assert columns.max() - columns.min() > 1.7 * (rows.max() - rows.min())
    assert mask.sum().item() == pytest.approx(torch.pi * 13.5 * 6.75, rel=0.05)
    K[0, 0, 2] = -300
    assert mouth_mask(points, viewmats, K, 80, 40).sum() == 0


def geometry(scales: float, means: float) -> Geometry:
    """One identity of 6 points."""
    vector = torch.tensor((1.0, 0.0, 0.0))
    return Geometry(
        torch.zeros(6, 1, 11), means * vector.expand(1, 6, 3), torch.zeros(1, 6, 4), torch.full((1, 6, 3), scales), torch.ones(1, 6)
    )


def test_thresholds_cost_only_what_exceeds_them() -> None:
    """eps_s counts in the spacing of the points, eps_mu in the triangle's scale; both are lengths beyond the threshold."""
    weights = LossWeights(scale=2.0, position=3.0, eps_scale=0.6, eps_position=1.0)
    spacing = torch.full((6,), 2 * REFERENCE_SPACING)
    below = regularization(geometry(1.19, 0.99), spacing, weights)
    assert below["scale"] < 1e-5 and below["position"] == 0
    above = regularization(geometry(1.4, 1.5), spacing, weights)
    assert above["scale"].item() == pytest.approx(2.0 * 3**0.5 * 0.1, rel=1e-4)
    assert above["position"].item() == pytest.approx(3.0 * 0.5, rel=1e-4)
    dense = regularization(geometry(1.4, 1.5), spacing / 2, weights)
    assert dense["scale"] > above["scale"] and dense["position"] == above["position"]


def test_reconstruction_is_a_weighted_sum_of_its_terms() -> None:
    generator = torch.Generator().manual_seed(0)
    image, target = (torch.rand(2, 24, 24, 3, generator=generator) for _ in range(2))
    mask = torch.zeros(2, 24, 24, 1)
    mask[:, 8:16, 8:16] = 1
    none = LossWeights(l1=0, ssim=0, lpips=0)
    perceptual = lambda a, b: (a - b).square().mean()  # noqa: E731
    l1, l1_mouth = reconstruction(image, target, replace(none, l1=0.8), mask)
    assert l1.item() == pytest.approx(0.8 * (image - target).abs().mean().item())
    assert l1_mouth.item() == pytest.approx(0.8 * ((image - target).abs() * mask).mean().item())
    structure, structure_mouth = reconstruction(image, target, replace(none, ssim=0.2), mask)
    assert structure.item() == pytest.approx(0.2 * (1 - ssim(image, target).item()), rel=1e-5)
    assert 0 < structure_mouth < structure
    distance, distance_mouth = reconstruction(image, target, replace(none, lpips=0.4), mask, perceptual)
    assert distance.item() == pytest.approx(0.4 * (image - target).square().mean().item())
    assert distance_mouth.item() == pytest.approx(0.4 * ((image - target).square() * mask).mean().item())
    whole, mouth = reconstruction(image, target, LossWeights(lpips=0.4), mask, perceptual)
    assert whole.item() == pytest.approx((l1 + structure + distance).item())
    assert mouth.item() == pytest.approx((l1_mouth + structure_mouth + distance_mouth).item())
    assert reconstruction(image, target, LossWeights())[1] == 0, "no mask, no mouth"
    assert reconstruction(target, target, LossWeights(), mask)[0].abs() < 1e-5


@pytest.fixture(scope="module")
def trainer(head: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Two painted people and a random prior whose Gaussians exceed both thresholds, with offsets that bend the mesh."""
    people = make_people(tmp_path_factory.mktemp("objective") / "people", head, count=2, views=2, size=32)
    config = TrainConfig(preset="tiny", uv_size=24, refiner="tiny", image_size=32, batch_size=4, views_per_identity=2, steps=10)
    prior = random_prior(head, people=2)
    trainer = Trainer(prior, load_training_set([people], head, 32), config, TrainOptions())
    with torch.no_grad():
        prior.gapnet.geometry_mlp.weights[-1].mul_(10)
        trainer.tracked["offsets"][0].normal_(std=1e-4, generator=torch.Generator().manual_seed(0))
    return trainer


def loss_with(trainer: Trainer, weights: LossWeights) -> tuple[float, dict[str, float]]:
    """The same batch under other weights."""
    state = trainer.sampler.state()
    trainer.config = replace(trainer.config, weights=weights)
    with torch.no_grad():
        total, parts = trainer.loss(0)
    trainer.sampler.load_state(state)
    return float(total), {name: float(value) for name, value in parts.items()}


def test_the_paper_weighs_the_terms_like_this() -> None:
    """method.md 1.2; LPIPS is off by default because its backbone is not part of any package."""
    values = {field.name: field.default for field in fields(LossWeights)}
    assert values == {
        "l1": 0.8, "ssim": 0.2, "lpips": 0.0, "mouth": 10.0, "alpha": 1.0, "scale": 1.0, "position": 0.01, "arap": 1.0,
        "eps_scale": 0.6, "eps_position": 1.0,
    }  # fmt: skip


def test_each_weight_scales_its_term_and_no_other(trainer: Trainer) -> None:
    """Zero switches a term off; twice the weight is twice the term; the total is the sum of the terms."""
    base_total, base = loss_with(trainer, LossWeights())
    terms = {"rec", "plain", "mouth", "alpha", "scale", "position", "arap"}
    assert terms | {"mse", "mse_plain"} == set(base)
    assert base_total == pytest.approx(sum(base[name] for name in terms), rel=1e-5)
    assert all(base[name] > 1e-4 for name in terms), base
    for name in ("mouth", "alpha", "scale", "position", "arap"):
        default = getattr(LossWeights(), name)
        for factor in (0.0, 2.0):
            total, parts = loss_with(trainer, replace(LossWeights(), **{name: factor * default}))
            assert parts[name] == pytest.approx(factor * base[name], rel=1e-5), name
            assert {k: parts[k] for k in terms - {name}} == pytest.approx({k: base[k] for k in terms - {name}}), name
            assert total == pytest.approx(base_total + (factor - 1) * base[name], rel=1e-4)
    _, parts = loss_with(trainer, replace(LossWeights(), l1=0.0, ssim=0.0))
    assert parts["rec"] == parts["plain"] == parts["mouth"] == 0


def test_without_refiner_or_offsets_their_terms_are_gone(trainer: Trainer, head: HeadModel) -> None:
    config = replace(trainer.config, refiner="none", offset_rate=0.0, weights=LossWeights())
    plain = Trainer(random_prior(head, people=2, refiner="none"), trainer.data, config, TrainOptions())
    with torch.no_grad():
        _, parts = plain.loss(0)
    assert "plain" not in parts and "arap" not in parts and parts["rec"] > 0


def test_coverage_is_learned_on_random_backgrounds(trainer: Trainer) -> None:
    """A target's background is the color the render gets too, so a hole in the head is seen whatever the color."""
    index, colors = torch.tensor([0, 3]), torch.tensor([[0.9, 0.1, 0.2], [0.0, 1.0, 0.5]]).view(2, 1, 1, 3)
    images, alphas = trainer.data.targets(index, colors)
    empty = alphas[..., 0] == 0
    assert 0.1 < empty.float().mean() < 0.9
    for k in range(2):
        assert torch.allclose(images[k][empty[k]], colors[k, 0, 0])
    draws = trainer.sampler.colors(100)
    assert draws.shape == (100, 1, 1, 3) and draws.std(0).min() > 0.2 and not torch.equal(draws, trainer.sampler.colors(100))


def test_a_data_set_keeps_bytes_and_one_identity_a_person(trainer: Trainer) -> None:
    data = trainer.data
    assert data.images.dtype == torch.uint8 and data.images.shape == (4, 32, 32, 3) and data.size == 32
    assert [frames.tolist() for frames in data.frames] == [[0, 1], [2, 3]] and data.names == ["person00", "person01"]
    assert data.params.identity.shape[0] == 2 and data.params.expression.shape[0] == 4
    assert not torch.equal(data.params.identity[0], data.params.identity[1])
