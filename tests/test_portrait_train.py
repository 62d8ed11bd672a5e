"""Portrait training on tiny painted people: whom it pairs, what it sees, that it learns, goes on and refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_stlpips import write_weights
from torch import Tensor
from toy_people import make_people

from avtool.__main__ import main
from avtool.artifacts.track import Track
from avtool.errors import AvtoolError, FormatError, Unavailable
from avtool.head import HeadModel, HeadParams, load_head_model
from avtool.portrait.augment import Augmentation
from avtool.portrait.config import PRESETS
from avtool.portrait.dataset import MotionSampler, PortraitSet, StaticSampler, load_portrait_set
from avtool.portrait.discriminator import PatchDiscriminator, discriminator_loss
from avtool.portrait.identity import IdentityLoss, alignment_grid
from avtool.portrait.motion import GAZE_UNIT, JAW_UNIT, load_motion, register
from avtool.portrait.network import Portrait, PortraitPicture
from avtool.portrait.objective import PortraitWeights, Target, load_perceptual, portrait_terms, structural
from avtool.portrait.settings import PortraitTraining, check_settings, load_settings
from avtool.portrait.train import PortraitOptions, started_from, train_portrait
from avtool.prior.checkpoint import Checkpoint

PEOPLE, VIEWS, MOMENTS, SIZE = 2, 6, 2, 32
TINY = PortraitTraining(
    preset="tiny", size=SIZE, steps=30, batch_size=4, learning_rate=3e-3, warmup=5, ema_decay=0.9, log_every=1, preview_every=30,
    checkpoint_every=1000,
)  # fmt: skip


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model()


@pytest.fixture(scope="module")
def people(head: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_people(tmp_path_factory.mktemp("portrait") / "people", head, PEOPLE, VIEWS, SIZE, MOMENTS)


@pytest.fixture(scope="module")
def clips(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same people; of every moment the first picture is real, the others are pseudo."""
    folder = tmp_path_factory.mktemp("clips") / "clips"
    shutil.copytree(people, folder)
    for file in sorted(folder.glob("*/track.json")):
        track = Track.load(file)
        frames = [f if i < MOMENTS else replace(f, pseudo=f"{i % MOMENTS}.png") for i, f in enumerate(track.frames)]
        replace(track, frames=frames).save(file, force=True)
    return folder


@pytest.fixture(scope="module")
def data(people: Path, head: HeadModel) -> PortraitSet:
    return load_portrait_set([people], head, SIZE)


@pytest.fixture(scope="module")
def mixed(clips: Path, head: HeadModel) -> PortraitSet:
    return load_portrait_set([clips], head, SIZE)


# Who shows what to whom.


def test_a_moment_is_what_one_person_does_in_several_pictures(data: PortraitSet) -> None:
    assert [moment.tolist() for moment in data.moments] == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]
    assert data.owners == [0, 0, 1, 1] and data.people.tolist() == [0] * 6 + [1] * 6
    assert torch.equal(data.params(torch.tensor([7]))[0].identity, data.data.params.identity[1])


def test_pairs_are_two_views_of_one_moment(data: PortraitSet) -> None:
    sampler = StaticSampler(data, 3, 0, source_angle=20.0)
    place = {int(i): k for k, moment in enumerate(data.moments) for i in moment}
    seen = set()
    for _ in range(40):
        batch = sampler.batch()
        for source, target in zip(batch.source.tolist(), batch.target.tolist()):
            assert place[source] == place[target] and source != target
            assert data.facing[source] <= np.radians(20.0)
            seen.add((source, target))
        assert len({place[i] for i in batch.source.tolist()}) == 3, "no moment twice in a batch"
        assert torch.equal(batch.source, batch.driver)
    assert len(seen) > 10
    # Cameras from -0.5 to 0.5 radians: with 20 degrees the outermost are no sources.
    assert data.facing[:6].tolist() == pytest.approx([0.5, 0.3, 0.1, 0.1, 0.3, 0.5], abs=0.03)


def test_draws_are_reproducible_and_go_on(mixed: PortraitSet) -> None:
    for make in (
        lambda seed: StaticSampler(replace(mixed, data=replace(mixed.data, pseudo=torch.zeros(12, dtype=torch.bool))), 3, seed, 60.0),
        lambda seed: MotionSampler(mixed, 3, seed, 60.0, 0.5, 0.5),
    ):
        first, again, other, late = make(3), make(3), make(4), make(9)
        draws = [first.batch() for _ in range(6)]
        repeated = [again.batch() for _ in range(3)]
        late.load_state({name: value.clone() for name, value in again.state().items()})
        repeated += [late.batch() for _ in range(3)]
        for a, b in zip(draws, repeated):
            assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("source", "driver", "target", "background"))
        assert any(not torch.equal(a.target, other.batch().target) for a in draws)


def test_cross_view_triples_follow_the_probabilities(mixed: PortraitSet) -> None:
    sampler, pseudo = MotionSampler(mixed, 4, 0, 60.0, real_target=0.8, real_driver=0.1), mixed.data.pseudo
    place = {int(i): k for k, moment in enumerate(mixed.moments) for i in moment}
    drawn = [sampler.batch() for _ in range(120)]
    source, driver, target = (torch.cat([getattr(batch, name) for batch in drawn]) for name in ("source", "driver", "target"))
    assert not pseudo[source].any(), "the source is a real picture"
    assert [place[i] for i in driver.tolist()] == [place[i] for i in target.tolist()]
    assert torch.equal(mixed.people[source], mixed.people[target])
    assert len({(place[a], place[b]) for a, b in zip(source.tolist(), target.tolist())}) == 8, "of any moment of the person"
    assert (~pseudo[target]).float().mean().item() == pytest.approx(0.8, abs=0.05)
    assert (~pseudo[driver]).float().mean().item() == pytest.approx(0.1, abs=0.04)


def test_moments_of_one_picture_are_not_enough(mixed: PortraitSet) -> None:
    """Pseudo pictures are no targets of the static stage: one real picture a moment is left."""
    with pytest.raises(AvtoolError, match="two real pictures.*synth-data"):
        StaticSampler(mixed, 4, 0, 60.0)


def test_a_track_keeps_its_pseudo_frames(clips: Path, people: Path, tmp_path: Path) -> None:
    track = Track.load(clips / "person00" / "track.json")
    assert [frame.pseudo for frame in track.frames] == [None, None, "0.png", "1.png", "0.png", "1.png"]
    assert [frame.pseudo for frame in track.select([1, 4]).frames] == [None, "0.png"]
    track.save(tmp_path / "moved.json")
    assert Path(Track.load(tmp_path / "moved.json").frames[3].pseudo).name == "1.png"
    assert (tmp_path / Track.load(tmp_path / "moved.json").frames[3].pseudo).is_file(), "as pictures, relative to the track"
    assert "pseudo" not in (people / "person00" / "track.json").read_text(), "as before where there is none"
    with pytest.raises(FormatError, match="pseudo"):
        text = (clips / "person00" / "track.json").read_text().replace('"pseudo": "0.png"', '"pseudo": 0')
        (tmp_path / "bad.json").write_text(text)
        Track.load(tmp_path / "bad.json")


# What the network is told.


def test_the_embedding_keeps_expressions_and_drops_pose_and_identity(head: HeadModel) -> None:
    encoder, rng = load_motion("tracker", head), torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=rng)  # noqa: E731
    base = replace(HeadParams.zeros(head, (3,)), expression=draw(3, head.num_expression).abs(), eyes=0.2 * draw(3, 2, 3), jaw=0.1 * draw(3, 3))
    found = encoder.embed(base)
    assert found.shape == (3, encoder.size) == (3, head.num_expression + 7) and encoder.name == "tracker"
    other = replace(base, identity=draw(3, head.num_identity), neck=draw(3, 3), head=draw(3, 3), offsets=draw(head.num_vertices, 3))
    assert torch.equal(encoder.embed(other), found)
    assert torch.equal(found[:, : head.num_expression], base.expression)
    assert torch.allclose(found[:, -3:], base.jaw / JAW_UNIT)
    left = replace(HeadParams.zeros(head, (1,)), eyes=torch.tensor([[[0.0, 0.3, 0.0], [-0.2, 0.0, 0.0]]]))
    gaze = encoder.embed(left)[0, head.num_expression :][:4] * GAZE_UNIT
    assert gaze.tolist() == pytest.approx([0.3, 0.0, 0.0, 0.2], abs=1e-5), "yaw to the person's left, pitch upward"


def test_an_embedding_is_never_trained(head: HeadModel) -> None:
    moving = replace(HeadParams.zeros(head, (2,)), expression=torch.rand(2, head.num_expression, requires_grad=True))
    assert not load_motion("tracker", head).embed(moving).requires_grad


def test_a_trainable_embedding_would_leak(data: PortraitSet, head: HeadModel) -> None:
    """Why it is frozen: the driver shows the target, so an embedding of the driver that learns along carries the target itself.

    A decoder without any source: it can know the moment, and who it is only from the embedding.
    """
    torch.manual_seed(0)
    index = torch.arange(12)
    pictures = data.sources(index).reshape(12, 8, 4, 8, 4, 3).mean((2, 4)).flatten(1)
    known = load_motion("tracker", head).embed(data.params(index))
    learned = torch.nn.Linear(pictures.shape[1], known.shape[1])

    def error(embed, moved: list[Tensor]) -> float:
        decoder = torch.nn.Linear(known.shape[1], pictures.shape[1])
        optimizer = torch.optim.Adam([*decoder.parameters(), *moved], 1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            loss = (decoder(embed()) - pictures).square().mean()
            loss.backward()
            optimizer.step()
        return loss.item()

    frozen, leaking = error(lambda: known, []), error(lambda: learned(pictures), list(learned.parameters()))
    people = torch.stack([pictures[:6].mean(0), pictures[6:].mean(0)])
    assert leaking < 0.1 * frozen
    assert frozen > 0.8 * (people[0] - people[1]).square().mean().item() / 4, "it cannot tell the people apart"


class Means(torch.nn.Module):
    """Mean colors: the smallest embedding of a picture that has weights."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.full((3,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * self.gain


def script(network: torch.nn.Module, file: Path) -> Path:
    torch.jit.trace(network, torch.rand(2, 3, 224, 224)).save(str(file))
    return file


def test_other_embeddings_are_registered_or_read_from_a_file(head: HeadModel, tmp_path: Path) -> None:
    encoder = load_motion(f"torchscript:{script(Means(), tmp_path / 'means.pt')}", head)
    assert encoder.reads_images and encoder.size == 3 and encoder.name.startswith("torchscript-")
    found = encoder.embed_images(torch.full((2, 64, 64, 3), 0.25, requires_grad=True))
    assert torch.allclose(found, torch.full((2, 3), 0.5), atol=1e-4)
    assert not found.requires_grad
    own = load_motion("tracker", head)
    register("own", lambda rest, model: own)
    assert load_motion("own:x", head) is own
    with pytest.raises(AvtoolError, match="'pdfgc' is unknown.*own, torchscript, tracker"):
        load_motion("pdfgc", head)
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    for name, words in (("torchscript:absent.pt", "absent.pt"), (f"torchscript:{tmp_path / 'bad.pt'}", "TorchScript")):
        with pytest.raises(AvtoolError, match=words):
            load_motion(name, head)


def test_augmentation_is_seeded_and_keeps_its_range(data: PortraitSet) -> None:
    images = data.sources(torch.arange(6))
    run = lambda seed, change=Augmentation(): change(images, torch.Generator().manual_seed(seed))  # noqa: E731
    changed = run(1)
    assert changed.shape == images.shape and 0 <= changed.min() and changed.max() <= 1 and changed.isfinite().all()
    assert torch.equal(changed, run(1)) and not torch.equal(changed, run(2))
    still = Augmentation(**{name: 0.0 for name in Augmentation.__dataclass_fields__})
    assert torch.allclose(run(1, still), images, atol=1e-5), "all ranges 0 change nothing"
    for name in Augmentation.__dataclass_fields__:
        one = run(1, replace(still, **{name: getattr(Augmentation(), name)}))
        assert (one - images).abs().mean() > 2e-4, name
    assert (changed[0] - changed[2]).abs().mean() > 0.02


# Losses.


def picture(side: int = 32, count: int = 2, seed: int = 0) -> PortraitPicture:
    rng = torch.Generator().manual_seed(seed)
    image, low = (torch.rand(count, s, s, 3, generator=rng) for s in (side, side // 2))
    alpha, low_alpha = (torch.rand(count, s, s, 1, generator=rng) for s in (side, side // 2))
    return PortraitPicture((image * alpha).requires_grad_(), low * low_alpha, alpha, low_alpha, low_alpha)


def test_a_term_without_weight_is_not_computed() -> None:
    color = torch.rand(2, 1, 1, 3)
    target = Target(torch.rand(2, 32, 32, 3), torch.rand(2, 32, 32, 1), color, torch.zeros(2, dtype=torch.bool))
    found = picture()
    terms = portrait_terms(found, target, PortraitWeights(), structural)
    assert set(terms) == {"l1", "low", "mask", "perceptual"}
    shown = found.image + (1 - found.alpha) * color
    assert terms["l1"].item() == pytest.approx((shown - target.image).abs().mean().item(), rel=1e-5)
    assert set(portrait_terms(found, target, PortraitWeights(l1=0.0, mask=0.0), None)) == {"low"}
    assert load_perceptual("lpips", 0.0, torch.device("cpu")) is None


def test_pseudo_targets_get_the_perceptual_term_on_the_foreground_alone() -> None:
    matte = (torch.rand(2, 32, 32, 1) > 0.5).float()
    target = Target(torch.rand(2, 32, 32, 3), matte, torch.rand(2, 1, 1, 3), torch.tensor([False, True]))
    found = picture()
    terms = portrait_terms(found, target, PortraitWeights(), structural)
    (gradient,) = torch.autograd.grad(terms["l1"] + terms["low"] + terms["mask"], found.image, retain_graph=True)
    assert gradient[0].abs().sum() > 0 and gradient[1].abs().sum() == 0
    (gradient,) = torch.autograd.grad(terms["perceptual"], found.image, retain_graph=True)
    assert (gradient[1] * (1 - matte[1])).abs().sum() == 0 < (gradient[1] * matte[1]).abs().sum()
    halves = []
    for k in range(2):
        one = PortraitPicture(*(getattr(found, name)[k : k + 1] for name in ("image", "low", "alpha", "low_alpha", "depth")))
        part = Target(*(getattr(target, name)[k : k + 1] for name in ("image", "matte", "color", "pseudo")))
        halves.append(sum(value.item() for value in portrait_terms(one, part, PortraitWeights(), structural).values()))
    assert sum(value.item() for value in terms.values()) == pytest.approx(sum(halves) / 2, rel=1e-5), "a batch is the mean of its halves"


def test_r1_flattens_the_discriminator_and_it_learns_what_is_real() -> None:
    torch.manual_seed(0)
    network, real, fake = PatchDiscriminator(), torch.rand(4, 32, 32, 3) * 0.5 + 0.5, torch.rand(4, 32, 32, 3) * 0.5
    assert network(real).shape == (4, 4, 4)
    assert discriminator_loss(network, real, fake, 10.0) > discriminator_loss(network, real, fake, 0.0)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for step in range(15):
        optimizer.zero_grad()
        discriminator_loss(network, real, fake, 0.1 if step % 4 == 0 else 0.0).backward()
        optimizer.step()
    assert network(real).mean() > network(fake).mean() + 0.5


def test_the_identity_loss_sees_aligned_faces(head: HeadModel, data: PortraitSet, tmp_path: Path) -> None:
    from avtool.metrics import ARCFACE_POINTS

    # Points moved by a similarity: the grid leads from ArcFace's places to them.
    points = torch.tensor(ARCFACE_POINTS, dtype=torch.float32) + 0.5
    turn = torch.tensor([[0.3, -0.1], [0.1, 0.3]])
    grid = alignment_grid((points @ turn.T + torch.tensor([4.0, 6.0]))[None], 64)
    pixels = torch.stack(torch.meshgrid(torch.arange(112) + 0.5, torch.arange(112) + 0.5, indexing="xy"), -1)
    assert torch.allclose((grid[0] + 1) * 32, pixels @ turn.T + torch.tensor([4.0, 6.0]), atol=1e-3)

    network = torch.nn.Sequential(torch.nn.AvgPool2d(28), torch.nn.Flatten())
    torch.jit.trace(network, torch.rand(2, 3, 112, 112)).save(str(tmp_path / "recognizer.pt"))
    loss, index = IdentityLoss(tmp_path / "recognizer.pt", head), torch.tensor([2, 8])
    more = (data.params(index), data.data.viewmats[index], data.data.Ks[index], data.facing[index])
    real = data.sources(index)
    assert loss(real, real, *more).item() == pytest.approx(0, abs=1e-5)
    shown = data.sources(index.flip(0)).requires_grad_()
    distance = loss(shown, real, *more)
    distance.backward()
    assert distance > 1e-3 and shown.grad.abs().sum() > 0
    assert loss(shown, real, *more[:3], torch.full((2,), 2.0)).item() == 0, "turned away: not seen"
    with pytest.raises(Unavailable, match="TorchScript"):
        IdentityLoss(tmp_path / "recognizer.onnx", head)


# Training.


@pytest.fixture(scope="module")
def trained(people: Path, head: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Portrait, list[dict], Path]:
    """A static portrait after 30 steps, its log, and where its files are."""
    folder, log = tmp_path_factory.mktemp("run"), []
    options = PortraitOptions(checkpoint=folder / "last.safetensors", previews=folder / "previews")
    portrait = train_portrait([people], head, TINY, options, log=lambda step, figures: log.append({"step": step, **figures}))
    portrait.save(folder / "static.safetensors", portrait.metadata)
    return portrait, log, folder


def test_static_training_learns_the_people(trained: tuple[Portrait, list[dict], Path]) -> None:
    portrait, log, folder = trained
    mean = lambda part, key: sum(entry[key] for entry in part) / len(part)  # noqa: E731
    assert mean(log[-5:], "loss") < 0.75 * mean(log[:3], "loss")
    assert mean(log[-5:], "psnr") > mean(log[:3], "psnr") + 1.0
    assert {"l1", "low", "mask", "perceptual", "seconds", "ms"} < set(log[0]) and "adversarial" not in log[0]
    assert log[9]["loss"] == pytest.approx(sum(log[9][name] for name in ("l1", "low", "mask", "perceptual")))
    fresh = Portrait.create(TINY.network(portrait.config.motion_size), load_head_model())
    assert all(torch.equal(a, b) for a, b in zip(portrait.motion_parameters(), fresh.motion_parameters())), "the motion layers rest"
    assert not torch.equal(portrait.static_parameters()[-1], fresh.static_parameters()[-1])
    stored = Portrait.load(folder / "static.safetensors")
    assert (stored.metadata["stage"], stored.metadata["motion"], stored.metadata["motion_size"]) == ("static", "tracker", "59")
    assert json.loads(stored.metadata["config"])["size"] == SIZE and stored.metadata["data"] == "people"


def test_previews_show_source_target_results_and_depth(trained: tuple[Portrait, list[dict], Path]) -> None:
    sheet = np.asarray(Image.open(trained[2] / "previews" / "000030.png"), float)
    columns = PEOPLE * MOMENTS
    assert sheet.shape == (5 * SIZE, columns * SIZE, 3)
    source, target, shown, low, _ = sheet.reshape(5, SIZE, columns * SIZE, 3)
    assert abs(source[0, 0] - 127.5).max() < 1 and (target[0, 0] == 255).all()
    assert np.abs(shown - target).mean() < np.abs(255 - target).mean(), "closer than nothing"
    assert np.abs(low - shown).mean() < 40


def test_an_interrupted_training_goes_on_bit_for_bit(people: Path, head: HeadModel, tmp_path: Path) -> None:
    """With the discriminator at work, stopped one step after a checkpoint, resumed with other settings and another seed."""
    config = replace(TINY, steps=4, checkpoint_every=2, batch_size=2, weights=PortraitWeights(adversarial=0.1), adversarial_start=0.25, r1_every=2)
    whole, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    train_portrait([people], head, config, PortraitOptions(checkpoint=whole, seed=5))

    def interrupt(done: int, total: int, message: str) -> None:
        if "loss" in message and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_portrait([people], head, config, PortraitOptions(checkpoint=part, seed=5), interrupt)
    assert Checkpoint.load(part).step == 2
    torch.rand(5)
    other = replace(config, learning_rate=0.5, size=None)
    portrait = train_portrait([people], head, other, PortraitOptions(checkpoint=part, resume=part, seed=9))
    found, expected = Checkpoint.load(part), Checkpoint.load(whole)
    assert (found.step, found.config, found.seed) == (expected.step, expected.config, 5)
    assert found.tensors.keys() == expected.tensors.keys()
    kinds = {name.split(".")[0] for name in expected.tensors}
    assert kinds == {"params", "average", "optimizer", "sampler", "critic", "critic_optimizer"}
    assert not [name for name in expected.tensors if not torch.equal(found.tensors[name], expected.tensors[name])]
    assert json.loads(portrait.metadata["config"])["learning_rate"] == 3e-3 and portrait.metadata["seed"] == "5"
    with pytest.raises(FormatError, match="data"):
        train_portrait([people / "person00"], head, config, PortraitOptions(resume=part))
    with pytest.raises(FormatError, match="checkpoint of train-portrait"):
        replace(expected, config={"preset": "tiny"}).save(tmp_path / "prior.safetensors")
        train_portrait([people], head, config, PortraitOptions(resume=tmp_path / "prior.safetensors"))


def test_motion_training_starts_from_the_static_portrait(
    trained: tuple[Portrait, list[dict], Path], clips: Path, head: HeadModel, tmp_path: Path
) -> None:
    static, log = trained[2] / "static.safetensors", []
    config = replace(TINY, stage="motion", size=None, steps=4, learning_rate=1e-4, warmup=0, ema_decay=0.0)
    options = PortraitOptions(init=static, checkpoint=tmp_path / "last.safetensors")
    portrait = train_portrait([clips], head, config, options, log=lambda step, figures: log.append(figures))
    assert log[0]["loss"] < trained[1][0]["loss"], "it knows what the static portrait knew"
    start = Portrait.load(static)
    moved = [
        max((a - b).detach().abs().max().item() for a, b in zip(group(portrait), group(start)))
        for group in (Portrait.static_parameters, Portrait.motion_parameters)
    ]
    assert 0 < moved[0] < 4.04e-4 and moved[1] > 1.8 * moved[0], "the motion layers move 2.5 times as fast"
    assert (portrait.metadata["stage"], portrait.config.size) == ("motion", SIZE)
    again = train_portrait([clips], head, replace(config, steps=5), PortraitOptions(resume=options.checkpoint))
    assert again.config == portrait.config and not torch.equal(again.static_parameters()[0], portrait.static_parameters()[0])


def test_stage_motion_needs_a_static_portrait(people: Path, head: HeadModel, trained: tuple) -> None:
    with pytest.raises(AvtoolError, match="static portrait.*--init"):
        train_portrait([people], head, replace(TINY, stage="motion"))
    with pytest.raises(FormatError, match="expected 64 as --size says, found 32"):
        train_portrait([people], head, replace(TINY, stage="motion", size=64), PortraitOptions(init=trained[2] / "static.safetensors"))


def test_another_embedding_gets_motion_layers_of_its_own(trained: tuple, head: HeadModel, clips: Path, tmp_path: Path) -> None:
    name = f"torchscript:{script(Means(), tmp_path / 'means.pt')}"
    start = started_from(Portrait.load(trained[2] / "static.safetensors"), load_motion(name, head), head, 0)
    assert start.config.motion_size == 3
    assert all(torch.equal(a, b) for a, b in zip(start.static_parameters(), Portrait.load(trained[2] / "static.safetensors").static_parameters()))
    config = replace(TINY, stage="motion", size=None, steps=1, batch_size=2, motion=name)
    portrait = train_portrait([clips], head, config, PortraitOptions(init=trained[2] / "static.safetensors"))
    assert portrait.metadata["motion"].startswith("torchscript-") and portrait.metadata["motion_size"] == "3"


def test_a_perceptual_network_and_its_absence(people: Path, head: HeadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AVTOOL_STLPIPS", raising=False)
    config = replace(TINY, steps=1, batch_size=2, perceptual="st-lpips", perceptual_weights=str(tmp_path / "none.pth"))
    with pytest.raises(Unavailable, match="ST-LPIPS loss"):
        train_portrait([people], head, config)
    log: list[dict] = []
    config = replace(config, perceptual_weights=str(write_weights(tmp_path / "alex_shift_tolerant.pth", "alex")))
    train_portrait([people], head, config, log=lambda step, figures: log.append(figures))
    assert log[0]["perceptual"] > 0


def test_two_processes_share_a_batch(people: Path, tmp_path: Path) -> None:
    """Under torchrun: one speaks and writes, and a single process goes on from the checkpoint."""
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this build of torch has no gloo")
    (tmp_path / "often.yaml").write_text("log_every: 1\nweights: {perceptual: 0}\n")  # its kernels take seconds to compile
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "avtool", "train-portrait"]
    options = [people, "-o", "two.safetensors", "--preset", "tiny", "--size", SIZE, "--batch-size", 4, "--config", "often.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    words = [str(word) for word in (*command, *options, "--steps", 2)]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step 1: loss") == done.stderr.count("step 2: loss") == 1
    saved = Checkpoint.load(tmp_path / "two.checkpoint.safetensors")
    settings = replace(TINY, steps=3)
    one = train_portrait([people], load_head_model(), settings, PortraitOptions(resume=tmp_path / "two.checkpoint.safetensors"))
    assert saved.step == 2 and not torch.equal(one.static_parameters()[0], saved.tensors["average.0"])


# Settings and the command.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stage: both", ("stage", "static or motion", "both")),
        ("preset: huge", ("preset", "tiny")),
        ("size: 48", ("size", "48")),
        ("weights: {l2: 1}", ("weights.l2", "weights.l1")),
        ("weights: {identity: 1}", ("recognizer",)),
        ("stage: motion\nweights: {perceptual: 0}", ("weights.perceptual", "pseudo")),
        ("source_angle: 0", ("source_angle",)),
        ("batch_size: two", ("batch_size", "int")),
        ("real_target: 1.5", ("real_target",)),
        ("- 1", ("mapping",)),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    file = tmp_path / "bad settings.yaml"
    file.write_text(text)
    with pytest.raises(AvtoolError) as error:
        load_settings(file)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in ("bad settings.yaml", *words)), str(error.value)


def test_settings_are_written_as_they_are_read(tmp_path: Path) -> None:
    config = replace(TINY, learning_rate=1e-5, weights=PortraitWeights(adversarial=0.1))
    (tmp_path / "some.yaml").write_text(config.to_yaml())
    assert load_settings(tmp_path / "some.yaml") == config and check_settings(PortraitTraining()).network(9) == replace(PRESETS["small"], motion_size=9)


def run(capfd: pytest.CaptureFixture, *args: object) -> tuple[int, str, str]:
    capfd.readouterr()
    try:
        main([str(arg) for arg in args])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    return (code, *capfd.readouterr())


def test_the_command_trains_both_stages(people: Path, clips: Path, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *args: None)
    static, portrait = tmp_path / "static.safetensors", tmp_path / "portrait.safetensors"
    tiny = ["--preset", "tiny", "--size", SIZE, "--steps", 2, "--batch-size", 2]
    code, out, err = run(capfd, "train-portrait", people, "--stage", "static", "-o", static, *tiny, "--json")
    assert code == 0, err
    assert json.loads(out)["loss"] > 0 and "step 1: loss" in err
    assert {path.name for path in tmp_path.iterdir()} == {"static.safetensors", "static.checkpoint.safetensors", "static.previews"}
    code, _, err = run(capfd, "train-portrait", clips, "--stage", "motion", "--init", static, "-o", portrait, "--steps", 1, "--batch-size", 2)
    assert code == 0, err
    loaded = Portrait.load(portrait)
    assert (loaded.metadata["stage"], loaded.config.size) == ("motion", SIZE)
    code, _, err = run(
        capfd, "train-portrait", clips, "--resume", tmp_path / "portrait.checkpoint.safetensors", "-o", portrait, "--force", "--steps", 2
    )
    assert code == 0 and "step 2: loss" in err, err  # the stage is the checkpoint's
    code, out, _ = run(capfd, "train-portrait", "--stage", "motion", "--adversarial", "0.1", *tiny, "--print-config")
    (tmp_path / "printed.yaml").write_text(out)
    printed = load_settings(tmp_path / "printed.yaml")
    assert code == 0 and (printed.stage, printed.weights.adversarial, printed.steps) == ("motion", 0.1, 2)


def test_the_command_refuses_damaged_input_with_one_line(people: Path, trained: tuple, tmp_path: Path, capfd, monkeypatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *args: None)
    broken = tmp_path / "people"
    shutil.copytree(people, broken)
    (broken / "person01" / "track.json").write_text("{")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((trained[2] / "static.safetensors").read_bytes()[:3000])
    checkpoint = trained[2] / "last.safetensors"
    before = sorted(tmp_path.iterdir())
    tiny = ["-o", tmp_path / "out.safetensors", "--preset", "tiny", "--size", SIZE, "--steps", 2, "--batch-size", 2]
    for args, words in (
        ((broken,), "person01"),
        ((tmp_path / "nobody",), "nobody"),
        ((people, "--stage", "motion"), "--init"),
        ((people, "--stage", "motion", "--init", cut), "complete safetensors"),
        ((people, "--stage", "motion", "--init", checkpoint), "portrait/1"),
        ((people, "--stage", "motion", "--init", tmp_path / "absent"), "absent"),
        ((people, "--resume", trained[2] / "static.safetensors"), "checkpoint/1"),
        ((people, "--motion", "pdfgc"), "pdfgc"),
        ((people, "--stage", "motion", "--init", trained[2] / "static.safetensors", "--resume", checkpoint), "--init starts one"),
    ):
        code, out, err = run(capfd, "train-portrait", *args, *tiny)
        line = [line for line in err.splitlines() if line.strip()][-1]
        assert code == 1 and line.startswith("avtool: error: ") and words in line and "Traceback" not in err, err
        assert out == "" and sorted(tmp_path.iterdir()) == before
