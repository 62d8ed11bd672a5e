"""The portrait network: shapes, the static network inside the moving one, the volume renderer, the rig, the file."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avtool.artifacts.tensors import load_tensors, save_tensors
from avtool.cameras import intrinsics, orbit_viewmats, project
from avtool.errors import FormatError
from avtool.head import HeadModel, HeadParams, load_head_model
from avtool.portrait import PRESETS, Portrait, PortraitConfig
from avtool.portrait.encoders import DetailEncoder, GlobalEncoder
from avtool.portrait.frontal import SOURCE_BACKGROUND, Frontalizer, SourceView, front_surface
from avtool.portrait.lookup import DepthMap, SourceLookup
from avtool.portrait.rig import Rig, posed_box
from avtool.portrait.triplane import BOX_CENTER, BOX_HALF, PlaneDecoder, sample_planes
from avtool.portrait.vit import Transformer
from avtool.portrait.volume import Rays, Rendered, pixel_rays, render_rays

TINY = PRESETS["tiny"]
SIZE = TINY.size
DEGREE = math.pi / 180


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model("anny")


@pytest.fixture
def network(head: HeadModel) -> Portrait:
    return Portrait.create(TINY, head, seed=1)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def cameras(count: int, size: int = SIZE, focal: float = 1.9) -> tuple[Tensor, Tensor]:
    yaws = torch.linspace(-0.6, 0.6, count) if count > 1 else torch.zeros(1)
    viewmats = orbit_viewmats(yaws, 0.3 * yaws, 0.9)
    return viewmats, intrinsics(focal * size, size, size).expand(count, 3, 3)


def source_views(head: HeadModel, seed: int, count: int, size: int = SIZE) -> SourceView:
    """Random pictures at the cameras above."""
    return SourceView(numbers(seed, count, size, size, 3), HeadParams.zeros(head, (count,)), *cameras(count, size))


def with_moving_layers(network: Portrait) -> Portrait:
    """As after some training: the outputs of the cross-attentions are no longer zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".cross.out." in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def test_shapes_of_all_entry_points(network: Portrait, head: HeadModel) -> None:
    encoded = network.encode(source_views(head, 0, 2))
    assert encoded.front.shape == (2, 6, SIZE, SIZE)
    assert encoded.tokens.shape == (2, TINY.token_size**2, TINY.dim)
    assert encoded.detail.shape == (2, TINY.detail_channels, TINY.detail_size, TINY.detail_size)
    planes = network.planes(encoded, numbers(1, 2, TINY.motion_size), None)
    assert planes.shape == (2, 3, TINY.plane_channels, TINY.plane_size, TINY.plane_size)
    params, (viewmats, Ks) = HeadParams.zeros(head, (2,)), cameras(2)
    low = TINY.low_size
    for scale in (1, 2):
        with torch.no_grad():
            picture = network.eval().render(planes, encoded.source, params, viewmats, cameras(2, scale * SIZE)[1], scale * SIZE)
        side, small = scale * SIZE, scale * low
        assert picture.image.shape == (2, side, side, 3) and picture.alpha.shape == (2, side, side, 1)
        assert picture.low.shape == (2, small, small, 3)
        assert picture.low_alpha.shape == picture.depth.shape == (2, small, small, 1)
        assert 0 <= float(picture.image.min()) and float(picture.image.max()) <= 1
    with pytest.raises(ValueError, match="source pictures"):
        network.encode(source_views(head, 0, 2, SIZE + 1))
    with pytest.raises(ValueError, match="motion must be"):
        network.planes(encoded, numbers(1, 2, TINY.motion_size + 1), None)
    with pytest.raises(ValueError, match="multiple of 4"):
        network.render(planes, encoded.source, params, viewmats, Ks, SIZE + 1)


def test_without_frontalization_the_picture_is_seen_as_it_is(head: HeadModel) -> None:
    network, source = Portrait.create(replace(TINY, frontalize=False), head, seed=1), source_views(head, 0, 2)
    encoded = network.encode(source)
    assert encoded.front is None
    other = network.encode(replace(source, viewmats=source.viewmats.flip(0)))
    assert torch.equal(encoded.tokens, other.tokens) and torch.equal(encoded.detail, other.detail), "cameras are not looked at"
    planes = network.planes(encoded, None, None)
    assert planes.shape == (2, 3, TINY.plane_channels, TINY.plane_size, TINY.plane_size)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_have_the_sizes_they_state(name: str) -> None:
    config = PRESETS[name]
    with torch.device("meta"):  # shapes alone: the paper's network is not computed here
        images = torch.zeros(1, 8 if config.frontalize else 5, config.size, config.size)
        tokens, detail = GlobalEncoder(config)(images), DetailEncoder(config)(images)
        front = torch.zeros(1, 6, config.size, config.size) if config.frontalize else None
        motion = torch.zeros(1, config.motion_size)
        planes = PlaneDecoder(config)(Transformer(config)(tokens, motion, motion), detail, front)
    assert tokens.shape == (1, config.token_size**2, config.dim)
    assert detail.shape[1:] == (config.detail_channels, config.detail_size, config.detail_size)
    assert planes.shape == (1, 3, config.plane_channels, config.plane_size, config.plane_size)


def test_sizes_that_do_not_fit_are_refused() -> None:
    for wrong in ({"size": 100}, {"dim": 33}, {"low_size": 0}, {"encoder_blocks": (1,)}, {"feature_channels": 2}):
        with pytest.raises(ValueError):
            replace(TINY, **wrong)
    assert PortraitConfig.from_dict(json.loads(json.dumps(TINY.to_dict()))) == TINY


def test_new_motion_layers_change_nothing(network: Portrait, head: HeadModel) -> None:
    encoded = network.encode(source_views(head, 0, 2))
    static = network.planes(encoded, None, None)
    moved = network.planes(encoded, numbers(1, 2, TINY.motion_size), numbers(2, 2, TINY.motion_size))
    assert torch.equal(static, moved)


def test_without_motion_the_network_is_the_static_one(network: Portrait, head: HeadModel) -> None:
    source = source_views(head, 0, 1)
    before = network.planes(network.encode(source), None, None)
    with_moving_layers(network)
    encoded = network.encode(source)
    assert torch.equal(before, network.planes(encoded, None, None))
    motions = numbers(1, 2, TINY.motion_size)
    results = [network.planes(encoded, a, b) for a, b in ((motions[:1], None), (None, motions[:1]), (None, motions[1:]))]
    for result in results:
        assert float((result - before).detach().abs().max()) > 1e-4
    assert float((results[1] - results[2]).detach().abs().max()) > 1e-5, "another driver gives other planes"


def test_motion_and_static_parameters_are_all_and_apart(network: Portrait) -> None:
    motion, static = {id(p) for p in network.motion_parameters()}, {id(p) for p in network.static_parameters()}
    assert motion and static and not motion & static
    assert motion | static == {id(p) for p in network.parameters()}


def test_gradients_reach_every_parameter(network: Portrait, head: HeadModel) -> None:
    with_moving_layers(network).train()
    motion = numbers(1, 2, TINY.motion_size)
    picture = network(source_views(head, 0, 2), motion, motion.flip(0), HeadParams.zeros(head, (2,)), *cameras(2))
    loss = (picture.image - numbers(3, *picture.image.shape)).abs().mean() + picture.alpha.square().mean()
    loss.backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().max() > 0)]
    assert not without
    assert all(bool(torch.isfinite(p.grad).all()) for p in network.parameters())


def test_training_steps_bring_the_picture_closer(network: Portrait, head: HeadModel) -> None:
    source, params, (viewmats, Ks) = source_views(head, 0, 1), HeadParams.zeros(head, (1,)), cameras(1)
    inside = torch.zeros(1, SIZE, SIZE, 1)
    inside[:, 16:48, 20:44] = 1.0
    target = inside * torch.tensor([0.8, 0.3, 0.1])
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    network.train()
    losses = []
    for _ in range(12):
        picture = network(source, None, None, params, viewmats, Ks)
        loss = (picture.image - target).abs().mean() + (picture.alpha - inside).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_one_source_for_many_drivers_equals_the_batch(network: Portrait, head: HeadModel) -> None:
    with_moving_layers(network).eval()
    source, (viewmats, Ks) = source_views(head, 0, 1), cameras(3)
    mine, drivers = numbers(1, 1, TINY.motion_size), numbers(2, 3, TINY.motion_size)
    turns = replace(HeadParams.zeros(head), neck=torch.tensor([[0.0, a, 0.0] for a in (-0.2, 0.0, 0.2)]))
    with torch.no_grad():
        once = network.planes(network.encode(source), mine, drivers)
        batch = network.planes(network.encode(source[torch.zeros(3, dtype=torch.long)]), mine.expand(3, -1), drivers)
        torch.testing.assert_close(once, batch, rtol=1e-4, atol=1e-5)
        together = network.render(once, source, turns, viewmats, Ks)
        for idx in range(3):
            alone = network.render(once[idx : idx + 1], source, turns[idx : idx + 1], viewmats[idx : idx + 1], Ks[idx : idx + 1])
            torch.testing.assert_close(alone.image[0], together.image[idx], rtol=1e-4, atol=1e-4)


def test_a_generator_jitters_and_its_absence_repeats(network: Portrait, head: HeadModel) -> None:
    planes = numbers(0, 1, 3, TINY.plane_channels, TINY.plane_size, TINY.plane_size) * 4 - 2
    arguments = (planes, source_views(head, 0, 1), HeadParams.zeros(head, (1,)), *cameras(1), SIZE)
    with torch.no_grad():
        plain, again = network.render(*arguments), network.render(*arguments)
        jittered = [network.render(*arguments, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(plain.image, again.image)
    assert torch.equal(jittered[0].image, jittered[1].image)
    assert not torch.equal(jittered[0].image, jittered[2].image)


# --- the volume -----------------------------------------------------------------------------------------------------

BOX = (torch.tensor(BOX_CENTER), torch.tensor(BOX_HALF))


def ball(center: Tensor, radius: float, sharpness: float = 8000.0):
    """A dense ball whose features are the position, as a field."""

    def field(points: Tensor) -> tuple[Tensor, Tensor]:
        inside = torch.sigmoid((radius - (points - center).norm(dim=-1)) * sharpness)
        return 2000.0 * inside, points.mT

    return field


def blobs(points: Tensor) -> tuple[Tensor, Tensor]:
    """Three soft clouds, colored by position, that let some light through."""
    centers = torch.tensor([[0.05, 0.0, 0.03], [-0.08, 0.08, -0.05], [0.02, -0.15, 0.05]])
    squared = (points[:, :, None] - centers).square().sum(-1)
    density = (30 * torch.exp(-squared / (2 * 0.05**2))).sum(-1)
    return density, torch.stack((points[..., 0] * 4, torch.cos(20 * points[..., 1]), points[..., 2] * 3), dim=1)


def dense_twin(field, rays: Rays, count: int) -> Rendered:
    """The emission-absorption integral by `count` equal steps, one after the other, as it is written in textbooks."""
    lengths = (rays.far - rays.near) / count
    through = torch.ones_like(lengths)
    features, depth = 0.0, torch.zeros_like(lengths)
    for step in range(count):
        at = rays.near + (step + 0.5) * lengths
        density, color = field(rays.origins + rays.directions * at[..., None])
        opacity = 1 - torch.exp(-density * lengths * rays.directions.norm(dim=-1))
        features = features + (through * opacity)[:, None] * color
        depth = depth + through * opacity * at
        through = through * (1 - opacity)
    return Rendered(features, 1 - through, depth / (1 - through).clamp_min(1e-6))


def test_a_ball_lands_where_project_says() -> None:
    center, radius, size, low = torch.tensor([0.06, 0.04, 0.05]), 0.05, 256, 128
    viewmats, Ks = cameras(4, size)
    uv, depth = project(center[None].expand(4, 1, 3), viewmats, Ks)
    found = render_rays(ball(center, radius), pixel_rays(viewmats, Ks, size, low, *BOX), 32, 32)
    alpha = found.alpha.unflatten(-1, (low, low))
    pixel = (torch.arange(low) + 0.5) * (size / low)
    total = alpha.sum((1, 2))
    middle = torch.stack(((alpha.sum(1) * pixel).sum(1) / total, (alpha.sum(2) * pixel).sum(1) / total), dim=-1)
    # A ball's outline is an ellipse whose center lies off the projected one by well under a pixel here.
    assert float((middle - uv[:, 0]).norm(dim=-1).max()) < 0.75
    outline = torch.pi * (Ks[:, 0, 0] * radius / depth[:, 0] * low / size) ** 2
    torch.testing.assert_close(total, outline, rtol=0.04, atol=0)
    for idx in range(4):
        u, v = (uv[idx, 0] * low / size).long().tolist()
        front = float(depth[idx, 0]) - radius
        assert abs(float(found.depth[idx].unflatten(-1, (low, low))[v, u]) - front) < 0.004
        seen = found.features[idx].unflatten(-1, (low, low))[:, v, u]
        camera = -viewmats[idx, :3, :3].T @ viewmats[idx, :3, 3]
        toward = torch.nn.functional.normalize(camera - center, dim=0)
        assert float((seen - (center + radius * toward)).norm()) < 0.006, "the side that faces the camera"


def test_scale_and_shift_follow_the_intrinsics() -> None:
    center, size = torch.tensor([0.0, 0.0, 0.0]), 128
    viewmats, Ks = cameras(1, size)
    closer, shifted = Ks.clone(), Ks.clone()
    closer[:, :2, :2] *= 2
    shifted[:, 0, 2] += 8
    pictures = [
        render_rays(ball(center, 0.05), pixel_rays(viewmats, K, size, 64, *BOX), 32, 32).alpha.unflatten(-1, (64, 64))
        for K in (Ks, closer, shifted)
    ]
    assert float(pictures[1].sum() / pictures[0].sum()) == pytest.approx(4, rel=0.03)
    torch.testing.assert_close(pictures[2][:, :, 4:], pictures[0][:, :, :-4], rtol=0, atol=2e-3)


@pytest.mark.parametrize("samples", [(16, 16), (48, 48)])
def test_coarse_and_importance_samples_agree_with_a_dense_twin(samples: tuple[int, int]) -> None:
    rays = pixel_rays(*cameras(2, 64), 64, 24, *BOX)
    exact, found = dense_twin(blobs, rays, 600), render_rays(blobs, rays, *samples)
    allowed = {16: 0.012, 48: 0.003}[samples[0]]
    assert float((found.alpha - exact.alpha).abs().max()) < allowed
    assert float((found.features - exact.features).abs().max()) < allowed
    solid = exact.alpha > 0.2
    assert float((found.depth - exact.depth)[solid].abs().max()) < 2 * allowed


def test_importance_samples_find_a_thin_surface() -> None:
    field = ball(torch.tensor([0.0, 0.0, 0.0]), 0.06)
    rays = pixel_rays(*cameras(1, 64), 64, 24, *BOX)
    exact = dense_twin(field, rays, 1500)
    solid = exact.alpha > 0.99
    errors = [(render_rays(field, rays, *s).depth - exact.depth)[solid].abs().mean() for s in ((24, 0), (12, 12))]
    assert float(errors[1]) < 0.6 * float(errors[0]), "as many samples, better placed"


def test_rays_that_miss_cost_nothing_and_stay_empty() -> None:
    size = 32
    viewmats, Ks = cameras(2, size, focal=0.7)  # the box fills a small part of the picture
    rays = pixel_rays(viewmats, Ks, size, size, *BOX)
    hit = rays.far > rays.near
    asked = 0

    def counting(points: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal asked
        asked += points.shape[1]
        return blobs(points)

    found = render_rays(counting, rays, 8, 8)
    assert asked == int(hit.sum(1).max()) * 16 < 0.5 * size * size * 16
    assert float(found.alpha[~hit].abs().max()) == 0 and float(found.depth[~hit].abs().max()) == 0
    for idx in range(2):  # the packed rays went back to their own pixels
        for ray in hit[idx].nonzero()[::40, 0].tolist():
            one = Rays(rays.origins[idx : idx + 1], *(x[idx : idx + 1, ray : ray + 1] for x in (rays.directions, rays.near, rays.far)))
            alone = render_rays(blobs, one, 8, 8)
            torch.testing.assert_close(alone.features[0, :, 0], found.features[idx, :, ray], rtol=1e-4, atol=1e-5)
    away = viewmats.clone()
    away[:, :3, 3] += torch.tensor([5.0, 0.0, 0.0])
    nothing = render_rays(blobs, pixel_rays(away, Ks, size, size, *BOX), 8, 8)
    assert float(nothing.alpha.abs().max()) == 0


def test_planes_are_read_where_their_axes_say() -> None:
    side = 16
    at = (torch.arange(side) + 0.5) * (2 / side) - 1
    column, row = at.expand(side, side), at[:, None].expand(side, side)
    planes = torch.stack((column, row)).expand(1, 3, 2, side, side)
    points = numbers(0, 1, 50, 3) * 1.6 - 0.8
    x, y, z = points.unbind(-1)
    found = sample_planes(planes, points)
    for plane, (first, second) in enumerate(((x, y), (z, y), (x, z))):
        torch.testing.assert_close(found[:, plane], torch.stack((first, second), dim=1), rtol=0, atol=1e-5)


# --- the rig --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neck, turn", [((0, 20, 0), (0, 0, 0)), ((0, 0, 0), (0, 20, 0)), ((10, 8, 0), (10, 0, 5)), ((-20, 0, 0), (0, 0, 0))])
def test_points_of_a_posed_mesh_return_to_rest(head: HeadModel, neck: tuple, turn: tuple) -> None:
    identity = 0.7 * torch.randn(2, head.num_identity, generator=torch.Generator().manual_seed(3))
    params = replace(
        HeadParams.zeros(head, (2,)), identity=identity, neck=DEGREE * torch.tensor(neck).float().expand(2, 3),
        head=DEGREE * torch.tensor(turn).float().expand(2, 3),
    )  # fmt: skip
    posed, (rest, _) = head(params).vertices, head.rest_shape(params)
    assert float((posed - rest).norm(dim=-1).max()) > 0.02
    rig = Rig(head)
    errors = (rig.to_rest(posed, rig.transforms(params)) - rest).norm(dim=-1)
    assert float(errors.mean()) < 0.001 and float(errors.quantile(0.95)) < 0.004


def test_a_rest_pose_moves_nothing(head: HeadModel) -> None:
    rig, points = Rig(head), numbers(0, 1, 200, 3) - 0.5
    params = HeadParams.zeros(head, (1,))
    torch.testing.assert_close(rig.to_rest(points, rig.transforms(params)), points, rtol=0, atol=1e-6)


def test_a_model_without_a_head_joint_turns_at_the_neck(head: HeadModel) -> None:
    idx = head.joint_names.index("head")
    merged = head.skin_weights.clone()
    merged[:, 1] += merged[:, idx]
    keep = [j for j in range(len(head.joint_names)) if j != idx]
    parents = {0: -1, 1: 0, **{j: 1 for j in keep[2:]}}
    flat = replace(
        head, joint_names=tuple(head.joint_names[j] for j in keep), joint_parents=tuple(min(parents[j], 1) for j in keep),
        joint_template=head.joint_template[keep], joint_basis=head.joint_basis[:, keep], skin_weights=merged[:, keep],
    )  # fmt: skip
    params = replace(HeadParams.zeros(flat, (1,)), head=torch.tensor([[0.0, 0.3, 0.0]]), neck=torch.tensor([[0.1, 0.0, 0.0]]))
    rig = Rig(flat)
    errors = (rig.to_rest(flat(params).vertices, rig.transforms(params)) - flat.template).norm(dim=-1)
    assert float(errors.mean()) < 0.001


def test_rays_reach_all_of_a_turned_head(head: HeadModel) -> None:
    angles = torch.tensor([[0.0, 0.0, 0.0], [0.6, 0.0, 0.0], [-0.5, 0.0, 0.3], [0.0, 0.9, 0.0]])
    params = replace(HeadParams.zeros(head, (4,)), neck=0.5 * angles, head=0.5 * angles)
    center, half = posed_box(Rig(head).transforms(params))
    assert bool(((head(params).vertices - center).abs() <= half).all())
    torch.testing.assert_close(half[0, 0], torch.tensor(BOX_HALF), rtol=0, atol=1e-6)


def test_an_untrained_portrait_is_the_mean_head_and_turns_with_it(network: Portrait, head: HeadModel) -> None:
    planes = torch.zeros(1, 3, TINY.plane_channels, TINY.plane_size, TINY.plane_size)
    viewmats, Ks = cameras(1)
    turned = replace(HeadParams.zeros(head, (1,)), neck=torch.tensor([[0.0, 0.0, 0.4]]))
    for params in (HeadParams.zeros(head, (1,)), turned):
        uv, _ = project(head(params).vertices[:, ::7], viewmats, Ks)
        with torch.no_grad():
            found = network.render_low(planes, params, viewmats, Ks, SIZE, SIZE)
        u, v = uv[0].long().clamp(0, SIZE - 1).unbind(-1)
        alpha = found.alpha[0].unflatten(-1, (SIZE, SIZE))
        assert float((alpha[v, u] > 0.7).float().mean()) > 0.9
        assert float(alpha[:4].mean()) < 0.4, "above the head there is thin fog"


def mapped_source(params: HeadParams, viewmats: Tensor, Ks: Tensor) -> SourceView:
    """Pictures whose red and green are the pixel's position, so that a fetched color tells where it came from."""
    at = (torch.arange(SIZE) + 0.5) / SIZE
    v, u = torch.meshgrid(at, at, indexing="ij")
    picture = torch.stack((u, v, torch.zeros_like(u)), dim=-1)
    return SourceView(picture.expand(len(viewmats), -1, -1, -1), params, viewmats, Ks)


def front_vertices(head: HeadModel) -> tuple[Tensor, Tensor, Tensor]:
    """Vertices of the face that plane 0 sees, and the row and column of their texels."""
    box = (head.template - torch.tensor(BOX_CENTER)) / torch.tensor(BOX_HALF)
    column, row = ((box[:, k] + 1) * SIZE / 2 - 0.5 for k in (0, 1))
    surface = front_surface(head, SIZE)[row.round().long().clamp(0, SIZE - 1), column.round().long().clamp(0, SIZE - 1), 2]
    seen = (head.template[:, 2] > surface - 0.004) & (head.template[:, 0].abs() < 0.06) & (head.template[:, 1].abs() < 0.1)
    idx = seen.nonzero()[:, 0]
    assert len(idx) > 200
    return idx, row[idx], column[idx]


def test_a_frontalized_source_fetches_what_the_posed_mesh_shows(head: HeadModel) -> None:
    turns = DEGREE * torch.tensor([[0.0, 0.0, 0.0], [0.0, 20.0, 0.0], [12.0, -8.0, 10.0]])
    params = replace(HeadParams.zeros(head, (3,)), neck=turns, head=0.5 * turns)
    viewmats, Ks = cameras(3)
    rig = Rig(head)
    frontal = Frontalizer(head, rig, SIZE)(mapped_source(params, viewmats, Ks), rig.transforms(params))
    idx, row, column = front_vertices(head)
    at = torch.stack(((column + 0.5) * 2 / SIZE - 1, (row + 0.5) * 2 / SIZE - 1), dim=-1)
    found = F.grid_sample(frontal[:, :2], at.expand(3, 1, -1, -1), align_corners=False)[:, :, 0].mT * SIZE
    expected, _ = project(head(params).vertices[:, idx], viewmats, Ks)
    errors = (found - expected).norm(dim=-1)
    assert float(errors.mean()) < 0.5 and float(errors.quantile(0.95)) < 1.5, "pixels of 64"
    away = (expected - expected.mean(1, keepdim=True)).norm(dim=-1).mean()
    assert float(away) > 6, "the face is large enough for the bound to mean something"


def test_a_frontalized_source_knows_where_the_camera_is(head: HeadModel) -> None:
    viewmats, Ks = cameras(3)
    params = replace(HeadParams.zeros(head, (3,)), neck=DEGREE * torch.tensor([[0.0, a, 0.0] for a in (0.0, 0.0, 25.0)]))
    rig = Rig(head)
    frontalizer = Frontalizer(head, rig, SIZE)
    toward = frontalizer(mapped_source(params, viewmats, Ks), rig.transforms(params))[:, 3:]
    torch.testing.assert_close(toward.norm(dim=1), torch.ones(3, SIZE, SIZE), rtol=0, atol=1e-5)
    eyes = -(viewmats[:, :3, :3].mT @ viewmats[:, :3, 3:])[..., 0]
    points = frontalizer.points.reshape(SIZE, SIZE, 3)
    for k in range(3):
        turn = rig.transforms(params)[k, 2]  # of the head: to posed space, where the camera is known
        expected = F.normalize(eyes[k] - (points @ turn[:, :3].mT + turn[:, 3]), dim=-1)
        torch.testing.assert_close(toward[k].movedim(0, -1) @ turn[:, :3].mT, expected, rtol=0, atol=1e-5)
    assert float((toward[0] - toward[1]).norm(dim=0).mean()) > 0.4, "cameras differ"
    assert float((toward[2] - toward[1]).norm(dim=0).mean()) < 0.3, "the head has turned toward its camera"


def test_outside_of_the_photo_a_frontalized_source_is_gray(head: HeadModel) -> None:
    rig, params = Rig(head), HeadParams.zeros(head, (1,))
    viewmats, _ = cameras(1)
    near = intrinsics(6.0 * SIZE, SIZE, SIZE)[None]  # shows the middle of the face only
    frontal = Frontalizer(head, rig, SIZE)(mapped_source(params, viewmats, near), rig.transforms(params))[0, :3]
    assert bool((frontal[:, :4] == SOURCE_BACKGROUND).all()) and bool((frontal[:, -4:] == SOURCE_BACKGROUND).all())
    assert float((frontal[:, SIZE // 2, SIZE // 2] - SOURCE_BACKGROUND).abs().max()) > 0.3, "no blue in the photo"


# --- the source's pixels --------------------------------------------------------------------------------------------


def smooth_pictures(count: int, size: int = SIZE) -> Tensor:
    """Random colors without detail, so that half a pixel changes little."""
    return F.interpolate(numbers(7, count, 3, 6, 6), (size, size), mode="bicubic").clamp(0, 1).movedim(1, -1)


def turned(model: HeadModel, count: int, **fields: Tensor) -> HeadParams:
    return replace(HeadParams.zeros(model, (count,)), **fields)


def test_the_source_s_own_view_looks_up_the_source(head: HeadModel) -> None:
    """Whatever the depth: the same camera, pose and expression lead back to the same pixel."""
    lookup, rig = SourceLookup(head), Rig(head)
    pose = turned(head, 2, neck=torch.tensor([[0.1, 0.2, 0.0], [0.0, -0.3, 0.1]]), expression=0.4 * numbers(1, 2, head.num_expression))
    viewmats, Ks = cameras(2)
    source = SourceView(smooth_pictures(2), pose, viewmats, Ks)
    seen = DepthMap(0.85 + 0.1 * numbers(2, 2, 16, 16), torch.ones(2, 16, 16))
    found = lookup(source, seen, rig, pose, viewmats, Ks, seen, SIZE)
    assert found.shape == (2, 12, SIZE, SIZE)
    error = (found[:, :3] - source.images.movedim(-1, 1))[..., 4:-4, 4:-4].abs()
    assert float(error.mean()) < 2e-3 and float(error.max()) < 0.1
    torch.testing.assert_close(found[:, 3:6], found[:, 6:9], atol=0.02, rtol=0)  # both cameras are one
    assert float(found[:, 10].max()) < 1e-3  # nothing has moved
    assert float(found[:, 11, 4:-4, 4:-4].abs().mean()) < 0.02  # nor is anything behind what the source sees


def test_a_lookup_agrees_with_its_pixel_by_pixel_twin(head: HeadModel) -> None:
    lookup, rig = SourceLookup(head), Rig(head)
    here = turned(head, 1, head=torch.tensor([[0.0, 0.25, 0.0]]), neck=torch.tensor([[0.1, 0.0, 0.0]]))
    there = turned(head, 1, neck=torch.tensor([[0.0, -0.2, 0.05]]))
    viewmats, Ks = cameras(2)
    source = SourceView(smooth_pictures(1), there, viewmats[:1], Ks[:1])
    depth = 0.9 + 0.02 * numbers(3, 1, SIZE, SIZE)
    own = DepthMap(0.88 + 0.04 * numbers(4, 1, 16, 16), torch.ones(1, 16, 16))
    found = lookup(source, own, rig, here, viewmats[1:], Ks[1:], DepthMap(depth, torch.ones(1, SIZE, SIZE)), SIZE)
    for row, column in ((20, 30), (32, 32), (40, 25)):
        pixel = torch.linalg.inv(Ks[1]) @ torch.tensor([column + 0.5, row + 0.5, 1.0]) * depth[0, row, column]
        world = torch.linalg.inv(viewmats[1]) @ torch.cat((pixel, torch.ones(1)))
        rest = rig.to_rest(world[None, None, :3], rig.transforms(here))
        blended = (rig.weights_at(rest) @ rig.transforms(there).flatten(-2)).reshape(3, 4)
        at, far = project((blended[:, :3] @ rest[0, 0] + blended[:, 3])[None], viewmats[0], Ks[0])
        torch.testing.assert_close(found[0, :3, row, column], between(source.images[0], at[0]), atol=1e-4, rtol=0)
        before = between(own.depth[0, ..., None], at[0] * (16 / SIZE))
        torch.testing.assert_close(found[0, 11, row, column], ((far - before) / 0.02).clamp(-1, 1)[0], atol=2e-3, rtol=0)


def between(picture: Tensor, at: Tensor) -> Tensor:
    """A picture (S, S, C) at a point (2,) between four pixel centers."""
    x, y = (at - 0.5).tolist()
    x0, y0 = int(x), int(y)
    corners = picture[y0 : y0 + 2, x0 : x0 + 2]
    return torch.lerp(torch.lerp(corners[0, 0], corners[0, 1], x - x0), torch.lerp(corners[1, 0], corners[1, 1], x - x0), y - y0)


def test_what_is_behind_a_surface_is_hidden_from_the_source() -> None:
    alpha = torch.ones(1, 8, 8)
    alpha[:, :, 6:] = 0.0
    seen = DepthMap(0.9 * alpha, alpha)
    at = torch.tensor([[[-0.5, 0.2, 0.89], [-0.5, 0.2, 0.9], [-0.5, 0.2, 0.91], [-0.5, 0.2, 1.1], [0.9, 0.2, 1.1], [1.5, 0.0, 1.1]]])
    torch.testing.assert_close(seen.behind(at), torch.tensor([[-0.5, 0.0, 0.5, 1.0, 0.0, 0.0]]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", ["browInnerUp", "mouthSmileLeft", "jawOpen"])
def test_places_are_found_in_another_expression(head: HeadModel, shape: str) -> None:
    lookup, weight = SourceLookup(head), torch.zeros(head.num_expression)
    weight[head.expression_index(shape)] = 1.0
    smiling, neutral = turned(head, 1, expression=weight[None]), turned(head, 1)
    skin = head.faces[head.region_mask("face", "lips")].unique()
    skin = skin[head.template[skin, 2] > head.template[skin, 2].max() - 0.07]  # what the front shows
    before, after = head(neutral).vertices[:, skin], head(smiling).vertices[:, skin]
    moved = (after - before).norm(dim=-1)
    found = lookup.in_expression_of(neutral, after, smiling)
    error = (found - before).norm(dim=-1)
    far = moved > 0.3 * moved.max()
    assert float(error[far].mean()) < 0.35 * float(moved[far].mean())
    back = lookup.in_expression_of(smiling, before, neutral)
    assert float((back - after).norm(dim=-1)[far].mean()) < 0.35 * float(moved[far].mean())


def test_places_near_the_face_are_put_on_it(head: HeadModel) -> None:
    """Along the line of sight, onto a person's own shape and expression; hair, neck and what is far from the face stay."""
    lookup, params = SourceLookup(head), turned(head, 1)
    params.expression[:, head.expression_index("jawOpen")] = 0.5
    params = replace(params, identity=0.7 * torch.randn(1, head.num_identity, generator=torch.Generator().manual_seed(3)))
    rest, _ = head.rest_shape(params)
    cheeks = head.landmarks(rest)[:, [list(head.landmark_ids).index(k) for k in (50, 280, 205, 425, 117, 346, 9, 151)]]
    eye = F.normalize(torch.tensor([0.25, 0.1, 1.0]), dim=0).expand_as(cheeks)
    for shift in (-0.01, 0.01):
        found = lookup.on_face(params, cheeks + shift * eye, eye)
        assert float((found - cheeks).norm(dim=-1).mean()) < 0.004
        assert float(torch.linalg.cross(found - cheeks, eye).norm(dim=-1).max()) < 1e-6, "along the line of sight"
    away = torch.cat((cheeks + 0.06 * eye, rest[:, head.faces[head.region_mask("torso")].unique()][:, :50]), dim=1)
    sight = torch.tensor([0.0, 0.0, 1.0]).expand_as(away)
    assert torch.equal(lookup.on_face(params, away, sight), away)
    behind = torch.tensor([0.0, 0.0, -1.0]).expand_as(cheeks)
    assert torch.equal(lookup.on_face(params, cheeks, behind), cheeks), "nor is anything moved that is seen from behind"


def test_the_back_of_the_head_is_deep_behind_the_front(head: HeadModel) -> None:
    lookup, rig, (viewmats, Ks) = SourceLookup(head), Rig(head), cameras(1)
    zero = turned(head, 1)
    source = SourceView(smooth_pictures(1), zero, viewmats, Ks)
    front = 0.9 - float(head.template[:, 2].max())
    for depth, low, high in ((front, 0.0, 0.3), (front + 0.16, 0.95, 1.0)):
        seen = DepthMap(torch.full((1, 16, 16), depth), torch.ones(1, 16, 16))
        found = lookup(source, seen, rig, zero, viewmats, Ks, seen, SIZE)
        assert low <= float(found[0, 9, 28:36, 28:36].mean()) <= high


def test_an_open_gate_shows_the_source(network: Portrait, head: HeadModel) -> None:
    source, params, (viewmats, Ks) = source_views(head, 3, 1), turned(head, 1), cameras(1)
    source = replace(source, images=smooth_pictures(1))
    with torch.no_grad():
        network.upsampler.blend.last.weight.zero_()
        network.upsampler.blend.last.bias.copy_(torch.tensor([20.0, 0.0, 0.0, 0.0]))
        picture = network.eval().render(network.planes(network.encode(source), None, None), source, params, viewmats, Ks)
    covered = picture.alpha[..., 0] > 0.5
    assert covered.float().mean() > 0.1
    torch.testing.assert_close((picture.image / picture.alpha.clamp_min(1e-3))[covered], source.images[covered], atol=0.03, rtol=0)


def test_a_network_without_lookup_is_its_own(head: HeadModel) -> None:
    config = replace(TINY, source_lookup=False)
    network, source, arguments = Portrait.create(config, head).eval(), source_views(head, 0, 1), (turned(head, 1), *cameras(1))
    assert network.lookup is None and network.upsampler.blend is None
    with torch.no_grad():
        planes = network.planes(network.encode(source), None, None)
        one, other = (network.render(planes, shown, *arguments).image for shown in (source, replace(source, images=1 - source.images)))
    assert torch.equal(one, other)


# --- the file -------------------------------------------------------------------------------------------------------


def test_a_portrait_survives_its_file(network: Portrait, head: HeadModel, tmp_path) -> None:
    path = tmp_path / "portrait.safetensors"
    with_moving_layers(network).save(path, {"seed": "7"})
    loaded = Portrait.load(path).eval()
    assert loaded.config == TINY and loaded.metadata["seed"] == "7" and loaded.head_model == head.model_id
    motion, params = numbers(1, 1, TINY.motion_size), HeadParams.zeros(head, (1,))
    source = source_views(head, 0, 1)
    with torch.no_grad():
        a, b = (n(source, motion, motion, params, *cameras(1)) for n in (network.eval(), loaded))
    torch.testing.assert_close(a.image, b.image, rtol=0, atol=5e-3)  # float16 weights
    again = tmp_path / "again.safetensors"
    loaded.save(again, {"seed": "7"})
    assert again.read_bytes() == path.read_bytes()


def test_damaged_and_foreign_files_say_what_is_wrong(network: Portrait, head: HeadModel, tmp_path) -> None:
    path, broken = tmp_path / "portrait.safetensors", tmp_path / "broken.safetensors"
    network.save(path)
    tensors, metadata = load_tensors(path, "portrait")
    entries = {k: v for k, v in metadata.items() if not k.startswith("avtool.")}

    def expect(match: str, **given: object) -> None:
        with pytest.raises(FormatError, match=match) as caught:
            Portrait.load(broken, **given)
        assert "\n" not in str(caught.value)

    broken.write_bytes(path.read_bytes()[:-100])
    expect("broken.safetensors")
    save_tensors(broken, tensors, "prior/1", entries)
    expect("portrait/1")
    save_tensors(broken, {k: v for k, v in tensors.items() if k != "portrait.decoder.planes.weight"}, "portrait/1", entries)
    expect("portrait.decoder.planes.weight")
    for change in ({"dim": 64}, {"dim": 32.5}, {"heads": 0}, {"dim": 32 * 10**9}, {"token_size": "8"}, {"unheard_of": 1}):
        network_entry = json.dumps({**TINY.to_dict(), **change})
        save_tensors(broken, tensors, "portrait/1", {**entries, "network": network_entry})
        expect("network|portrait")
    for text in ("[]", "{", "3"):
        save_tensors(broken, tensors, "portrait/1", {**entries, "network": text})
        expect("network")
    save_tensors(broken, tensors, "portrait/1", {**entries, "head_model": "another-123"})
    expect("head_model")
    expect("head_model", head=head)
