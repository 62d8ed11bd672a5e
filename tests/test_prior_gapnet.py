"""GAPNet's fast path against a slow twin, and what its settings mean."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avtool.gaussians.rig import point_frames
from avtool.head import HeadModel, HeadParams, load_head_model
from avtool.prior.gapnet import (
    LEAK,
    OPACITY_LOGIT,
    POSITION_UNIT,
    PRESETS,
    SKIN_LOGIT,
    GapNet,
    GapNetConfig,
    PartMlp,
    fourier_features,
)
from avtool.prior.prior import Prior
from avtool.prior.synthesis import base_scales, synthesize

SIZES = [3, 1, 0, 4]  # points of four parts, one of them without any
POINTS = sum(SIZES)
CONFIG = GapNetConfig(feature_channels=5, code_channels=6, hidden=7, latent_channels=2, num_parts=4)
PEOPLE, VIEWS = 2, 3


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model()


def random_gapnet(config: GapNetConfig = CONFIG, seed: int = 0) -> GapNet:
    """In double precision, and with last layers that are not zero."""
    torch.manual_seed(seed)
    gapnet = GapNet(config, SIZES, 0.1 + torch.rand(POINTS, 3)).double()
    with torch.no_grad():
        for mlp in (gapnet.geometry_mlp, gapnet.appearance_mlp):
            mlp.weights[-1].normal_(std=0.5)
            for bias in mlp.biases:
                bias.normal_(std=0.3)
    return gapnet


def random_inputs(config: GapNetConfig = CONFIG) -> tuple[Tensor, Tensor]:
    """Codes (I, P, C2) and signals (I * views, N, 3)."""
    generator = torch.Generator().manual_seed(1)
    code = torch.randn(PEOPLE, config.num_parts, config.code_channels, generator=generator, dtype=torch.float64)
    return code, torch.randn(PEOPLE * VIEWS, POINTS, 3, generator=generator, dtype=torch.float64)


def fast(gapnet: GapNet, code: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
    """A^g as M2 reads it (I, N, 11) and the channels (B, N, C)."""
    geometry = gapnet.geometry(code)
    return geometry.raw.transpose(0, 1), gapnet.appearance(gapnet.appearance_static(code, geometry.raw), signal)


def slow_mlp(mlp: PartMlp, part: int, row: Tensor) -> Tensor:
    for layer, (weight, bias) in enumerate(zip(mlp.weights, mlp.biases)):
        row = (row if layer == 0 else F.leaky_relu(row, LEAK)) @ weight[part] + bias[part]
    return row


def slow(gapnet: GapNet, code: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
    """The same by the definition: one point of one picture at a time, inputs side by side."""
    config = gapnet.config
    parts = [part for part, size in enumerate(SIZES) for _ in range(size)]
    raws, pictures = [], []
    for person in range(PEOPLE):
        inputs = [torch.cat((gapnet.features[n], code[person, part])) for n, part in enumerate(parts)]
        raw = [slow_mlp(gapnet.geometry_mlp, part, inputs[n]) for n, part in enumerate(parts)]
        raws.append(torch.stack(raw))
        for e in signal[VIEWS * person : VIEWS * (person + 1)]:
            rows = [
                slow_mlp(gapnet.appearance_mlp, part, torch.cat((inputs[n], e[n] if config.dynamics else 0 * e[n], raw[n])))
                for n, part in enumerate(parts)
            ]
            pictures.append(torch.stack([torch.cat((torch.sigmoid(h[:3] + gapnet.skin), h[3:])) for h in rows]))
    return torch.stack(raws), torch.stack(pictures)


@pytest.mark.parametrize("change", [{}, {"dynamics": False}, {"layers": 2}], ids=str)
def test_the_fast_path_is_the_plain_loop_forward_and_backward(change: dict) -> None:
    gapnet = random_gapnet(replace(CONFIG, **change))
    code, signal = (x.requires_grad_() for x in random_inputs())
    moving = {"code": code, "signal": signal, **dict(gapnet.named_parameters())}
    results, gradients = [], []
    for path in (fast, slow):
        raw, channels = path(gapnet, code, signal)
        weight = torch.linspace(-1, 1, channels.numel(), dtype=torch.float64).view_as(channels)
        total = (weight * channels).sum() + (raw**2).sum()
        gradients.append(torch.autograd.grad(total, list(moving.values()), allow_unused=True))
        results.append((raw, channels))
    for found, expected in zip(*results):
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
    for name, found, expected in zip(moving, *gradients):
        if name == "signal" and not gapnet.config.dynamics:
            assert found is None or found.abs().max() == 0
            continue
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-11), name
        assert expected.abs().max() > 0, name


def test_the_eleven_numbers_are_activated_as_documented() -> None:
    gapnet = random_gapnet()
    geometry = gapnet.geometry(random_inputs()[0])
    raw = geometry.raw.transpose(0, 1)
    assert torch.allclose(geometry.means, POSITION_UNIT * raw[..., :3])
    quats = raw[..., 3:7] + torch.tensor((1.0, 0, 0, 0), dtype=torch.float64)
    assert torch.allclose(geometry.quats, quats / quats.norm(dim=-1, keepdim=True))
    assert torch.allclose(geometry.scales, gapnet.base_scales * raw[..., 7:10].exp())
    assert torch.allclose(geometry.opacities, torch.sigmoid(raw[..., 10] + OPACITY_LOGIT))
    with torch.no_grad():
        gapnet.geometry_mlp.biases[-1].fill_(1e4)
    assert gapnet.geometry(random_inputs()[0]).scales.isfinite().all(), "a wild step stays finite"


def test_untrained_gaussians_are_those_of_the_seeding(head: HeadModel) -> None:
    """Whatever the code and the expression: on the mesh, in the orientation of the triangle, of the seeded size, skin."""
    prior = Prior.create(head, 2, preset="tiny", uv_size=16, refiner="none")
    generator = torch.Generator().manual_seed(0)
    code = torch.randn(2, prior.num_parts, prior.gapnet.config.code_channels, generator=generator)
    params = HeadParams.zeros(head, (2,))
    params = replace(params, expression=0.5 * torch.rand(params.expression.shape, generator=generator))
    with torch.no_grad():
        gaussians, geometry, vertices = synthesize(head, prior.binding, prior.gapnet, code, params)
        frames = point_frames(vertices, head.faces, prior.binding)
    assert geometry.means.abs().max() == 0
    assert torch.allclose(gaussians.means, frames.origins, atol=1e-6)
    assert torch.allclose(gaussians.quats, frames.quats, atol=1e-6)
    assert torch.allclose(gaussians.scales, frames.scales[..., None] * base_scales(head, prior.binding), rtol=1e-5)
    assert torch.allclose(gaussians.opacities, torch.sigmoid(torch.tensor(OPACITY_LOGIT)))
    skin = torch.sigmoid(torch.tensor(SKIN_LOGIT))
    assert torch.allclose(gaussians.colors[..., :3], skin.expand(2, prior.binding.num_points, 3))
    assert gaussians.colors[..., 3:].abs().max() == 0


def test_a_prior_is_the_same_for_the_same_seed(head: HeadModel) -> None:
    state = torch.get_rng_state()
    first, again, other = (
        Prior.create(head, 2, preset="tiny", uv_size=16, refiner="tiny", seed=seed).gapnet.state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["geometry_mlp.weights.0"], other["geometry_mlp.weights.0"])
    assert torch.equal(state, torch.get_rng_state()), "the caller's random numbers are left alone"


@pytest.mark.parametrize("dynamics", [True, False])
def test_the_signal_acts_on_its_point_or_not_at_all(dynamics: bool) -> None:
    gapnet = random_gapnet(replace(CONFIG, dynamics=dynamics))
    code, signal = random_inputs()
    _, before = fast(gapnet, code, signal)
    signal[1, 2] += 1
    change = (fast(gapnet, code, signal)[1] - before).abs().amax(-1)
    if dynamics:
        assert change[1, 2] > 1e-3
        change[1, 2] = 0
    assert change.max() == 0


def test_a_code_acts_on_its_person_and_part() -> None:
    gapnet = random_gapnet()
    code, signal = random_inputs()
    raw, channels = fast(gapnet, code, signal)
    code[1, 3] += 1
    other_raw, other_channels = fast(gapnet, code, signal)
    touched = torch.zeros(POINTS, dtype=torch.bool)
    touched[-SIZES[3] :] = True
    for before, after, per_person in ((raw, other_raw, 1), (channels, other_channels, VIEWS)):
        change = (after - before).abs().amax(-1)
        assert change[:per_person].max() == 0 and change[per_person:, ~touched].max() == 0
        assert change[per_person:, touched].min() > 1e-4


def test_a_single_part_shares_one_network_and_one_code(head: HeadModel) -> None:
    """The ablation "without parts": points with equal features get equal Gaussians, whatever their part is otherwise."""
    kinds = {}
    for single in (False, True):
        prior = Prior.create(head, 2, preset="tiny", uv_size=16, refiner="none", single_part=single)
        gapnet = prior.gapnet
        with torch.no_grad():
            gapnet.features.copy_(gapnet.features[:1].expand_as(gapnet.features))
            torch.nn.init.normal_(gapnet.geometry_mlp.weights[-1], generator=torch.Generator().manual_seed(0))
            kinds[single] = len(gapnet.geometry(prior.codebook.codes[:1]).raw[:, 0].round(decimals=3).unique(dim=0))
        parts = 1 if single else 11
        assert prior.codebook.codes.shape[1] == parts and len(gapnet.geometry_mlp.weights[0]) == parts
        assert gapnet.part_sizes == ([prior.binding.num_points] if single else prior.binding.part_sizes(11))
    assert kinds == {False: 11, True: 1}


def test_features_start_as_a_code_of_the_place(head: HeadModel) -> None:
    encoded = fourier_features(head.template, 16)
    assert encoded.shape == (head.num_vertices, 15) and encoded.abs().max() <= 1
    assert fourier_features(head.template, 2).shape[1] == 2
    distance = torch.cdist(head.template[:400], head.template[:400])
    near, far = distance < 0.01, distance > 0.1
    apart = torch.cdist(encoded[:400], encoded[:400])
    assert apart[near].mean() < 0.4 * apart[far].mean()
    assert torch.allclose(fourier_features(head.template + 3.0, 3), fourier_features(head.template, 3), atol=1e-4)


def test_presets_grow_and_fit_one_pass_of_the_rasterizer() -> None:
    widths = [PRESETS[name].hidden for name in ("tiny", "default", "large", "paper")]
    assert widths == sorted(set(widths))
    paper = PRESETS["paper"]
    assert (paper.feature_channels, paper.code_channels, paper.layers) == (48, 128, 4)
    assert all(config.appearance_channels == 32 for config in PRESETS.values())
