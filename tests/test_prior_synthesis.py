"""From codes and meshes to pictures: the dynamic signal, the codebook's mix, the refiner, compositing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from random_prior import person_of, random_prior
from toy_people import toy_cameras

from avtool.head import PARTS, HeadModel, HeadParams, load_head_model
from avtool.prior.codebook import Codebook
from avtool.prior.prior import Prior
from avtool.prior.refiner import Refiner
from avtool.prior.synthesis import (
    SIGNAL_UNIT,
    dynamic_signal,
    finish,
    render_channels,
    synthesize,
)

SIZE = 48


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model()


@pytest.fixture(scope="module")
def prior(head: HeadModel) -> Prior:
    return random_prior(head)


def moving(head: HeadModel, batch: int, seed: int = 0) -> HeadParams:
    """Random people with random expressions, every joint turned."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float) -> torch.Tensor:
        return scale * torch.randn(batch, *shape, generator=generator)

    expression = torch.rand(batch, head.num_expression, generator=generator) * 0.5
    return HeadParams(
        normal(head.num_identity, scale=0.5), expression, normal(3, scale=0.2), normal(3, scale=0.2), normal(3, scale=0.1),
        normal(2, 3, scale=0.2),
    )  # fmt: skip


def channels_of(prior: Prior, params: HeadParams) -> torch.Tensor:
    with torch.no_grad():
        gaussians, _, _ = synthesize(prior.head, prior.binding, prior.gapnet, prior.codebook.codes[:1], params)
    return gaussians.colors


def test_a_turned_head_looks_neutral_to_the_network(prior: Prior, head: HeadModel) -> None:
    """The signal is the expression's: neck and head turns leave the appearance as it is, and move the points."""
    rest = HeadParams.zeros(head, (2,))
    turned = replace(rest, neck=torch.tensor([[0, 0.4, 0], [0.2, 0, 0.1]]), head=torch.tensor([[0.1, 0, 0], [0, -0.3, 0]]))
    neutral = channels_of(prior, rest)
    assert torch.equal(channels_of(prior, turned), neutral)
    mute = random_prior(head, dynamics=False)
    assert torch.allclose(neutral, channels_of(mute, rest), atol=1e-5), "the signal of the neutral face is zero"
    with torch.no_grad():
        means = [synthesize(head, prior.binding, prior.gapnet, prior.codebook.codes[:1], p)[0].means for p in (rest, turned)]
    assert (means[0] - means[1]).norm(dim=-1).amax(1).min() > 0.02


@pytest.mark.parametrize(
    ("field", "change", "parts"),
    [("jaw", (0.2, 0.0, 0.0), ("teeth", "lip")), ("eyes", ((0.0, 0.3, 0.0), (0.0, 0.3, 0.0)), ("eye",)), ("expression", None, ("lip",))],
)
def test_jaw_eyes_and_expressions_reach_the_network(prior: Prior, head: HeadModel, field: str, change: tuple, parts: tuple) -> None:
    rest = HeadParams.zeros(head, (1,))
    value = torch.zeros_like(getattr(rest, field))
    if field == "expression":
        value[0, head.expression_index("jawOpen")] = 1.0
    else:
        value[0] = torch.tensor(change)
    moved = replace(rest, **{field: value})
    change_of = (channels_of(prior, moved) - channels_of(prior, rest)).abs().amax((0, 2))
    for part in parts:
        assert change_of[prior.binding.part == PARTS.index(part)].max() > 0.01, part
    assert change_of[prior.binding.part == PARTS.index("hair")].median() == 0, "the scalp stays"


def test_the_signal_is_the_displacement_in_centimetres() -> None:
    expressed, neutral = torch.rand(2, 5, 3), torch.rand(1, 5, 3)
    assert torch.allclose(dynamic_signal(expressed, neutral), 100 * (expressed - neutral))
    assert SIGNAL_UNIT == 0.01


def test_people_in_a_batch_are_the_people_alone(prior: Prior, head: HeadModel) -> None:
    params = moving(head, 4)
    params = replace(params, identity=params.identity[[0, 0, 2, 2]])
    codes = prior.codebook(torch.tensor([2, 0]))
    with torch.no_grad():
        together = synthesize(head, prior.binding, prior.gapnet, codes, params)[0]
        for person in (0, 1):
            pair = slice(2 * person, 2 * person + 2)
            alone = synthesize(head, prior.binding, prior.gapnet, codes[person : person + 1], params[pair])[0]
            for name in ("means", "quats", "scales", "opacities", "colors"):
                assert torch.allclose(getattr(together, name)[pair], getattr(alone, name), atol=1e-5), name
    assert (together.colors[0] - together.colors[2]).abs().max() > 0.1


def test_an_avatars_prepared_path_is_the_trained_one(prior: Prior, head: HeadModel) -> None:
    """What is computed once per person gives what training computes each step."""
    avatar, p = person_of(prior, 1), moving(head, 3)
    params = avatar.params_for(p.expression, p.neck, p.head, p.jaw, p.eyes)
    with torch.no_grad():
        expected, *_ = synthesize(head, avatar.binding, avatar.gapnet, avatar.code, params)
        for _ in range(2):
            found = avatar.gaussians(params)
            for name in ("means", "quats", "scales", "opacities", "colors"):
                assert torch.allclose(getattr(found, name), getattr(expected, name), atol=1e-5), name


def test_the_mix_is_convex_per_part() -> None:
    """Equation 9, one part at a time."""
    codebook = Codebook(4, 3, 5)
    assert codebook.codes.abs().max() == 0, "zero-initialized"
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        codebook.codes.normal_(generator=generator)
    logits = torch.randn(4, 3, generator=generator)
    mixed = codebook.mix(logits)
    for part in range(3):
        weights = logits[:, part].exp() / logits[:, part].exp().sum()
        expected = sum(weights[j] * codebook.codes[j, part] for j in range(4))
        assert torch.allclose(mixed[0, part], expected, atol=1e-6)
    low, high = codebook.codes.amin(0), codebook.codes.amax(0)
    assert ((mixed[0] >= low - 1e-6) & (mixed[0] <= high + 1e-6)).all()
    certain = torch.full((4, 3), -50.0)
    certain[[1, 0, 3], [0, 1, 2]] = 50.0
    assert torch.allclose(codebook.mix(certain)[0], codebook.codes[[1, 0, 3], [0, 1, 2]], atol=1e-6)
    assert torch.allclose(codebook.mix(torch.full((4, 3), 7.0))[0], codebook.codes.mean(0), atol=1e-6)


def rendered(prior: Prior, head: HeadModel) -> tuple[torch.Tensor, torch.Tensor]:
    viewmats, Ks = toy_cameras([-0.4, 0.4], SIZE)
    with torch.no_grad():
        gaussians, *_ = synthesize(head, prior.binding, prior.gapnet, prior.codebook.codes[:1], HeadParams.zeros(head, (2,)))
        return render_channels(gaussians, viewmats, Ks, SIZE, SIZE)


def test_the_refiner_starts_as_identity_and_paints_on_the_head_only(prior: Prior, head: HeadModel) -> None:
    colors, alphas = rendered(prior, head)
    outside = alphas[..., 0] == 0
    assert 0.2 < outside.float().mean() < 0.8
    torch.manual_seed(0)
    refiner = Refiner(colors.shape[-1], 8)
    with torch.no_grad():
        assert torch.equal(refiner(colors, alphas), colors[..., :3])
        torch.nn.init.normal_(refiner.net[-1].bias, std=5.0)
        painted = refiner(colors, alphas)
    change = (painted - colors[..., :3]).abs().amax(-1)
    coverage = alphas[..., 0]
    assert change[outside].max() == 0 and change[coverage > 0.9].min() > 0.1
    # On the outline, where the background shows through, the same residual counts a twentieth of what it does inside.
    full, outline = refiner.net[-1].bias.abs().amax().item(), (coverage > 0.3) & (coverage < 0.7)
    assert (change / coverage.pow(8))[coverage > 0.3] == pytest.approx(full, rel=0.02)
    assert bool(outline.any()) and change[outline].max() < 0.06 * full
    assert painted.shape == (2, SIZE, SIZE, 3), "the same resolution"


def test_compositing_puts_the_background_behind(prior: Prior, head: HeadModel) -> None:
    colors, alphas = rendered(prior, head)
    background = torch.tensor((0.1, 0.6, 0.3))
    with torch.no_grad():
        refined, plain = finish(colors, alphas, prior.refiner, background)
        alone, same = finish(colors, alphas, None, background.view(1, 1, 1, 3))
    outside = alphas[..., 0] == 0
    assert torch.allclose(refined[outside], background) and torch.allclose(plain[outside], background)
    assert torch.allclose(plain, colors[..., :3] + (1 - alphas) * background)
    assert torch.equal(alone, same) and torch.allclose(alone, plain)
    assert (refined - plain).abs().max() > 0.01
    black = finish(colors, alphas, prior.refiner, torch.zeros(3))[0]
    assert torch.allclose(refined - black, (1 - alphas) * background, atol=1e-6), "the background does not feed the refiner"


def test_an_avatar_renders_refined_or_plain_on_any_background(prior: Prior, head: HeadModel) -> None:
    avatar = person_of(prior, 0)
    viewmats, Ks = toy_cameras([0.0], SIZE)
    params = HeadParams.zeros(head, (1,))
    params = avatar.params_for(params.expression, params.neck, params.head, params.jaw, params.eyes)
    with torch.no_grad():
        white, alphas = avatar.render(params, viewmats, Ks, SIZE, SIZE)
        plain, same = avatar.render(params, viewmats, Ks, SIZE, SIZE, refine=False)
        dark, _ = avatar.render(params, viewmats, Ks, SIZE, SIZE, background=(0.0, 0.0, 0.0))
    outside = alphas[..., 0] == 0
    assert torch.equal(alphas, same) and (white[outside] == 1).all() and (dark[outside] == 0).all()
    assert (white - plain).abs().max() > 0.01 and 0 <= white.min() and white.max() <= 1


def test_a_head_without_some_part_gets_a_prior_too(head: HeadModel) -> None:
    """FLAME has no teeth: their network has no points, and nothing else notices."""
    toothless = head.face_part.clone()
    toothless[toothless == PARTS.index("teeth")] = PARTS.index("other")
    partial = replace(head, face_part=toothless)
    prior = random_prior(partial)
    assert prior.gapnet.part_sizes[PARTS.index("teeth")] == 0
    params = moving(partial, 2)
    gaussians, *_ = synthesize(partial, prior.binding, prior.gapnet, prior.codebook.codes[:2], params)
    gaussians.colors.sum().backward()
    gradient = prior.gapnet.appearance_mlp.weights[1].grad
    assert gradient[PARTS.index("teeth")].abs().max() == 0 and gradient[PARTS.index("lip")].abs().max() > 0
