"""Prior training on a tiny painted data set: it learns, stops, goes on bit for bit, and says what it cannot use."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_stlpips import write_weights
from toy_people import make_people

from avtool.__main__ import main
from avtool.artifacts.track import Track
from avtool.errors import AvtoolError, FormatError, Unavailable
from avtool.head import HeadModel, load_head_model
from avtool.prior.checkpoint import Checkpoint
from avtool.prior.config import TrainConfig, check_config, config_from_dict, load_config
from avtool.prior.cost import StepCost
from avtool.prior.dataset import chosen_tracks, find_tracks, load_training_set, split_weight
from avtool.prior.prior import Prior
from avtool.prior.train import Trainer, TrainOptions, resumed_settings, train_prior, training_metadata

PEOPLE, VIEWS, SIZE = 3, 3, 32
TINY = TrainConfig(
    preset="tiny", uv_size=16, refiner="tiny", image_size=SIZE, steps=20, batch_size=4, views_per_identity=2, learning_rate=5e-3,
    track_rate=0.0, offset_rate=0.0, warmup=0, ema_decay=0.9, log_every=1, preview_every=10, checkpoint_every=1000,
)  # fmt: skip


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model()


@pytest.fixture(scope="module")
def people(head: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_people(tmp_path_factory.mktemp("training") / "people", head, count=PEOPLE, views=VIEWS, size=40)


@pytest.fixture(scope="module")
def trained(people: Path, head: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Prior, list[dict], Path]:
    """A prior after 20 steps with exact parameters, its log, and where its checkpoint and previews are."""
    folder, log = tmp_path_factory.mktemp("run"), []
    options = TrainOptions(checkpoint=folder / "last.safetensors", previews=folder / "previews")
    prior = train_prior([people], head, TINY, options, log=lambda step, figures: log.append({"step": step, **figures}))
    return prior, log, folder


def test_training_learns_the_people(trained: tuple[Prior, list[dict], Path]) -> None:
    prior, log, _ = trained
    assert [entry["step"] for entry in log] == list(range(1, 21))
    first, last = log[:5], log[-5:]
    mean = lambda entries, key: sum(entry[key] for entry in entries) / len(entries)  # noqa: E731
    assert mean(last, "loss") < 0.8 * mean(first, "loss")
    assert mean(last, "psnr") > mean(first, "psnr") + 1.5 and mean(last, "psnr_plain") > mean(first, "psnr_plain") + 1.5
    codes = prior.codebook.codes
    assert (codes[0] - codes[1]).norm() > 1e-3, "the codes tell people apart"
    assert {"rec", "plain", "mouth", "alpha", "scale", "position", "seconds", "ms"} < set(log[0])
    terms = ("rec", "plain", "mouth", "alpha", "scale", "position")
    assert log[6]["loss"] == pytest.approx(sum(log[6][name] for name in terms)), "of this very step"
    assert 1 < log[6]["ms"] < 60_000 and log[19]["seconds"] >= 0.001 * sum(entry["ms"] for entry in log[1:]) > 0
    assert 0.05 < log[6].get("memory_gb", 1.0) < 100


def test_previews_show_real_splatted_and_refined(trained: tuple[Prior, list[dict], Path], people: Path) -> None:
    _, _, folder = trained
    assert [path.name for path in sorted((folder / "previews").iterdir())] == ["000010.png", "000020.png"]
    sheet = np.asarray(Image.open(folder / "previews" / "000020.png"), float)
    assert sheet.shape == (3 * SIZE, PEOPLE * SIZE, 3)
    real, plain, refined = sheet.reshape(3, SIZE, -1, 3)
    shown, matte = (
        np.asarray(Image.open(people / "person01" / name).resize((SIZE, SIZE), Image.Resampling.BOX), float)
        for name in ("1.png", "1_matte.png")
    )
    real_head = real[:, SIZE : 2 * SIZE]
    assert np.abs(real_head - shown)[matte == 255].max() < 3 and (matte == 255).mean() > 0.1
    assert (real_head[matte == 0] == 255).all()
    early = np.asarray(Image.open(folder / "previews" / "000010.png"), float).reshape(3, SIZE, -1, 3)
    for late, before in ((plain, early[1]), (refined, early[2])):
        assert np.abs(late - real).mean() < min(40, np.abs(before - real).mean())


def test_exact_parameters_stay_exact_when_their_rates_are_zero(trained: tuple, people: Path) -> None:
    saved = Checkpoint.load(trained[2] / "last.safetensors").take("params")
    tracks = [Track.load(path) for path in find_tracks([people])]
    assert np.array_equal(saved["tracking.0"].numpy(), np.stack([track.identity for track in tracks]).astype(np.float32))
    expression = np.stack([frame.expression for track in tracks for frame in track.frames]).astype(np.float32)
    assert np.array_equal(saved["tracking.1"].numpy(), expression)
    assert not [name for name in saved if name.startswith("offsets")]


def test_the_prior_carries_the_running_mean(trained: tuple[Prior, list[dict], Path]) -> None:
    prior, _, folder = trained
    saved = Checkpoint.load(folder / "last.safetensors")
    live, average = saved.take("params"), saved.take("average")
    features = prior.gapnet.features.detach()
    assert torch.equal(features, average["0"]) and not torch.equal(features, live["features.0"])


def test_training_starts_from_a_known_prior(trained: tuple, people: Path, head: HeadModel, tmp_path: Path) -> None:
    """Its networks and sizes, everybody at its mean code; other settings stay, and a checkpoint needs the file no longer."""
    known = trained[0]
    file, checkpoint, losses = tmp_path / "known.safetensors", tmp_path / "part.safetensors", []
    known.save(file)  # in half precision
    config = replace(TINY, preset="default", uv_size=128, refiner="none", steps=2, learning_rate=1e-9, max_identities=2)
    options = TrainOptions(init=file, checkpoint=checkpoint)
    settings, _ = resumed_settings(config, options, None)
    assert settings == replace(TINY, steps=2, learning_rate=1e-9, max_identities=2)
    prior = train_prior([people], head, config, options, log=lambda step, figures: losses.append(figures["loss"]))
    assert prior.num_identities == 2 < known.num_identities
    assert torch.allclose(prior.codebook.codes, known.codebook.codes.detach().mean(0).expand(2, -1, -1), atol=1e-3)
    assert torch.allclose(prior.gapnet.features, known.gapnet.features, atol=1e-3)
    fresh: list[float] = []
    train_prior([people], head, settings, log=lambda step, figures: fresh.append(figures["loss"]))
    assert losses[0] < 0.9 * fresh[0]
    assert training_metadata(settings, options, [people])["init"] == "known.safetensors"
    file.unlink()
    again = train_prior([people], head, replace(settings, steps=3), replace(options, resume=checkpoint))
    assert torch.allclose(again.gapnet.features, known.gapnet.features, atol=1e-3)


def test_sizes_of_a_prior_are_those_it_was_made_with(head: HeadModel) -> None:
    for wanted in (
        {"preset": "tiny", "refiner": "none", "uv_size": 16, "single_part": True, "dynamics": True},
        {"preset": "tiny", "refiner": "default", "uv_size": 24, "single_part": False, "dynamics": False},
    ):
        assert Prior.create(head, 2, **wanted).sizes() == wanted
    odd = Prior.create(head, 2, preset="tiny", refiner="none", uv_size=16)
    odd.gapnet.config = replace(odd.gapnet.config, hidden=17)
    with pytest.raises(AvtoolError, match="sizes of its own"):
        odd.sizes()


@pytest.fixture(scope="module")
def joint(people: Path, head: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path]:
    """Six steps in one go with everything moving, checkpointed every three steps."""
    config = replace(TINY, steps=6, track_rate=1e-4, offset_rate=1e-5, warmup=4, checkpoint_every=3)
    file = tmp_path_factory.mktemp("joint") / "whole.safetensors"
    train_prior([people], head, config, TrainOptions(checkpoint=file, seed=5)).save(file.with_name("prior.safetensors"))
    return config, file


def test_an_interrupted_run_goes_on_bit_for_bit(joint: tuple[TrainConfig, Path], people: Path, head: HeadModel, tmp_path: Path) -> None:
    """Stopped two steps after a checkpoint; settings and seed come from it, whatever the caller says, except the steps."""
    config, whole = joint
    file = tmp_path / "part.safetensors"

    def interrupt(done: int, total: int, message: str) -> None:
        if "loss" in message and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_prior([people], head, config, TrainOptions(checkpoint=file, seed=5), interrupt)
    assert Checkpoint.load(file).step == 3
    torch.rand(7)  # other random numbers before it goes on
    other = replace(config, learning_rate=0.5)
    prior = train_prior([people], head, other, TrainOptions(checkpoint=file, resume=file, seed=99))
    found, expected = Checkpoint.load(file), Checkpoint.load(whole)
    assert (found.step, found.config, found.seed) == (expected.step, expected.config, 5) == (6, config.to_dict(), 5)
    settings, options = resumed_settings(other, TrainOptions(resume=file, seed=99), found)
    assert settings == config and options.seed == 5, "what the prior's file says of it"
    kinds = {name.split(".")[0] for name in expected.tensors}
    assert kinds == {"params", "average", "optimizer", "sampler", "torch_rng"}
    assert found.tensors.keys() == expected.tensors.keys()
    different = [name for name in expected.tensors if not torch.equal(found.tensors[name], expected.tensors[name])]
    assert not different
    prior.save(tmp_path / "prior.safetensors")
    assert (tmp_path / "prior.safetensors").read_bytes() == whole.with_name("prior.safetensors").read_bytes()


def test_tracked_parameters_and_offsets_move_at_their_rates(joint: tuple[TrainConfig, Path], people: Path, head: HeadModel) -> None:
    config, file = joint
    saved = Checkpoint.load(file)
    params = load_training_set([people], head, SIZE).params
    names = ("identity", "expression", "neck", "head", "jaw", "eyes")
    limit = config.steps * 1.01
    for k, name in enumerate(names):
        moved = (saved.tensors[f"params.tracking.{k}"] - getattr(params, name)).abs().max().item()
        assert 0.5 * config.track_rate < moved < limit * config.track_rate, name
    offsets = saved.tensors["params.offsets.0"].abs()
    assert offsets.shape == (PEOPLE, head.num_vertices, 3)
    assert 0.5 * config.offset_rate < offsets.max() < limit * config.offset_rate
    assert {f"optimizer.tracking.{k}.exp_avg" for k in range(6)} < set(saved.tensors)


def one_line(error: pytest.ExceptionInfo, *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


def test_a_checkpoint_of_other_data_or_another_head_is_refused(
    joint: tuple[TrainConfig, Path], people: Path, head: HeadModel, tmp_path: Path
) -> None:
    config, file = joint
    options = TrainOptions(resume=file)
    with pytest.raises(FormatError) as error:
        train_prior([people / "person00", people / "person02"], head, config, options)
    one_line(error, str(file), "data")
    with pytest.raises(FormatError) as error:
        saved = Checkpoint.load(file)
        replace(saved, head_model="flame-2023").save(tmp_path / "flame.safetensors")
        train_prior([people], head, config, replace(options, resume=tmp_path / "flame.safetensors"))
    one_line(error, "flame.safetensors", "flame-2023", head.model_id)


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("params.features.0", "features.0"), ("params.offsets.0", "offsets.0"), ("average.3", "average.3"),
        ("optimizer.codes.0.exp_avg", "codes.0"),
    ],
)  # fmt: skip
def test_a_checkpoint_with_a_hole_is_refused(joint: tuple, people: Path, head: HeadModel, tmp_path: Path, key: str, named: str) -> None:
    config, file = joint
    saved = Checkpoint.load(file)
    assert key in saved.tensors
    trainer = Trainer(
        Prior.create(head, PEOPLE, preset="tiny", uv_size=16, refiner="tiny"), load_training_set([people], head, SIZE), config,
        TrainOptions(),
    )  # fmt: skip
    broken = replace(saved, tensors={k: v for k, v in saved.tensors.items() if k != key})
    with pytest.raises(FormatError) as error:
        trainer.restore(broken, tmp_path / "hole.safetensors")
    one_line(error, "hole.safetensors", named)


def test_a_prior_is_no_checkpoint(joint: tuple[TrainConfig, Path], people: Path, head: HeadModel) -> None:
    file = joint[1].with_name("prior.safetensors")
    with pytest.raises(FormatError, match="checkpoint/1"):
        train_prior([people], head, TINY, TrainOptions(resume=file))


def test_a_time_limit_ends_training_and_saves(people: Path, head: HeadModel, tmp_path: Path) -> None:
    file = tmp_path / "timed.safetensors"
    config = replace(TINY, steps=10**6)
    seconds: list[float] = []
    began = time.monotonic()
    prior = train_prior([people], head, config, TrainOptions(time_limit=1.5, checkpoint=file), log=lambda _, figures: seconds.append(figures["seconds"]))
    assert time.monotonic() - began < 30
    saved = Checkpoint.load(file)
    assert 1 <= saved.step == len(seconds) < 10**4 and 0.5 < saved.elapsed < 20
    assert max(seconds[:-1], default=0.0) < 1.5, "no step begins after the limit"
    assert torch.equal(prior.gapnet.features.detach(), saved.tensors["average.0"])
    again = train_prior([people], head, config, TrainOptions(time_limit=1.5, checkpoint=file, resume=file))
    after = Checkpoint.load(file)
    assert after.step <= saved.step + 1, "the time before the interruption counts"
    assert again.num_identities == PEOPLE


@pytest.mark.parametrize("speed", [5.0, 0.0])
def test_codes_move_at_their_own_speed(people: Path, head: HeadModel, speed: float) -> None:
    """Adam's first step is as long as the rate: those of who was drawn move code_speed times as far as the features."""
    config = replace(TINY, steps=1, warmup=0, ema_decay=0.0, code_speed=speed)
    start = Prior.create(head, PEOPLE, preset="tiny", uv_size=16, refiner="tiny")
    data = load_training_set([people], head, SIZE)
    with torch.no_grad():  # the last layers are zero at the start, and no code would have a gradient
        for mlp in (start.gapnet.geometry_mlp, start.gapnet.appearance_mlp):
            mlp.weights[-1].normal_(std=0.05)
    trainer = Trainer(start, data, config, TrainOptions())
    before = start.gapnet.features.detach().clone()
    trainer.run(None, None)
    moved = start.codebook.codes.detach().abs().flatten(1).amax(1)
    drawn = moved > 0
    assert bool(drawn.any()) == (speed > 0)
    assert (start.gapnet.features.detach() - before).abs().max() == pytest.approx(config.learning_rate, rel=0.01)
    assert moved[drawn].numpy() == pytest.approx(speed * config.learning_rate, rel=0.01)


def test_equal_seeds_train_equal_priors_and_others_do_not(people: Path, head: HeadModel) -> None:
    config = replace(TINY, steps=2, refiner="none", max_identities=2)
    features = [
        train_prior([people], head, config, TrainOptions(seed=seed)).gapnet.features.detach() for seed in (1, 1, 2)
    ]
    assert torch.equal(features[0], features[1]) and not torch.equal(features[0], features[2])


def test_halved_pictures_are_means_and_project_to_half_the_pixels(people: Path, head: HeadModel) -> None:
    data = load_training_set([people], head, SIZE)
    small = data.halved()
    assert small.size == SIZE // 2 and small.num_identities == PEOPLE
    block = data.images[4, 10:12, 20:22].float().mean((0, 1))
    assert (small.images[4, 5, 10].float() - block).abs().max() <= 0.5
    assert torch.allclose(small.Ks[:, :2], data.Ks[:, :2] / 2) and torch.equal(small.Ks[:, 2], data.Ks[:, 2])
    assert small.params is data.params


def test_coarse_pictures_come_first(people: Path, head: HeadModel) -> None:
    config = replace(TINY, steps=10, coarse_share=0.5, preset="tiny")
    trainer = Trainer(
        Prior.create(head, PEOPLE, preset="tiny", uv_size=16, refiner="none"), load_training_set([people], head, SIZE), config,
        TrainOptions(),
    )  # fmt: skip
    assert [trainer.data_at(step).size for step in (0, 4, 5, 9)] == [SIZE // 2, SIZE // 2, SIZE, SIZE]
    with torch.no_grad():
        assert trainer.loss(0)[0].isfinite() and trainer.loss(9)[0].isfinite()


def test_memory_is_left_out_where_nobody_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = StepCost(torch.device("cpu"))
    cost.step_done()
    assert cost.figures().keys() >= {"ms"}
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert cost.figures() == {"ms": 0.0}, "and a new count begins with every line"


def test_bfloat16_networks_train_nearly_the_same(trained: tuple[Prior, list[dict], Path], people: Path, head: HeadModel) -> None:
    log: list[dict] = []
    config = replace(TINY, precision="bf16", steps=6)
    prior = train_prior([people], head, config, TrainOptions(), log=lambda step, figures: log.append(figures))
    assert all(parameter.dtype == torch.float32 for parameter in prior.gapnet.parameters())
    exact = trained[1]
    assert log[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.01)
    assert log[1]["loss"] != exact[1]["loss"] and log[5]["loss"] < 0.95 * log[0]["loss"]


def test_the_perceptual_loss_is_the_one_that_is_named(
    people: Path, head: HeadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AVTOOL_STLPIPS", raising=False)
    weights = replace(TINY.weights, lpips=0.4)
    config = replace(TINY, steps=1, perceptual="st-lpips", weights=weights, perceptual_weights=str(tmp_path / "none.pth"))
    with pytest.raises(Unavailable) as error:
        train_prior([people], head, config)
    one_line(error, "ST-LPIPS loss", "none.pth", "stlpips-pytorch")
    log: dict[str, list[dict]] = {"none": [], "st-lpips": []}
    file = str(write_weights(tmp_path / "alex_shift_tolerant.pth", "alex"))
    for name, entries in log.items():
        config = replace(config, perceptual=name, perceptual_weights=file)
        train_prior([people], head, config, log=lambda step, figures: entries.append(figures))
    assert log["st-lpips"][0]["rec"] > log["none"][0]["rec"] > 0


# Whom it is trained on.


def with_light(source: Path, target: Path, light: str | None) -> Path:
    """A copy of a person, whose track says how it is lit."""
    shutil.copytree(source, target)
    track = json.loads((target / "track.json").read_text())
    track["metadata"] = {} if light is None else {"light": light}
    (target / "track.json").write_text(json.dumps(track))
    return target


def test_light_chooses_people(people: Path, head: HeadModel, tmp_path: Path) -> None:
    lights = {"a": "varied", "b": "even", "c": None, "d": "even"}
    for name, light in lights.items():
        with_light(people / "person00", tmp_path / "set" / name, light)
    names = lambda **how: [path.parent.name for path, _ in chosen_tracks([tmp_path / "set"], **how)]  # noqa: E731
    assert names() == list("abcd") and names(light="even") == list("bcd") and names(light="even", max_identities=2) == list("bc")
    assert load_training_set([tmp_path / "set"], head, SIZE, light="even").names == list("bcd")
    with pytest.raises(AvtoolError, match="nobody is lit with even light.*--light any"):
        chosen_tracks([tmp_path / "set" / "a"], light="even")


def test_a_data_set_may_have_a_weight(people: Path, head: HeadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_weight("heads/=0.5") == (Path("heads"), 0.5) and split_weight("heads=2") == (Path("heads"), 2.0)
    assert split_weight("heads") == (Path("heads"), 1.0) == split_weight(Path("heads/"))
    assert split_weight("a=b") == (Path("a=b"), 1.0), "a name that is not there: said by who looks for it"
    for bad in ("0", "-1", "nan", "inf"):
        with pytest.raises(AvtoolError, match="above 0"):
            split_weight(f"heads={bad}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heads=3").mkdir()
    assert split_weight("heads=3") == (Path("heads=3"), 1.0), "what exists by that name"
    plain, equal, mixed = (
        load_training_set(sources, head, SIZE)
        for sources in ([people], [f"{people}=2"], [f"{people / 'person00'}/=0.5", people / "person01", people / "person02"])
    )
    assert plain.fingerprint() == equal.fingerprint() != mixed.fingerprint()
    assert mixed.weights == [0.5, 1.0, 1.0] and mixed.names == plain.names and equal.weights == [2.0] * 3
    file = tmp_path / "mixed.safetensors"
    sources = [f"{people / 'person00'}=0.5", people / "person01", people / "person02"]
    config = replace(TINY, steps=2)
    train_prior(sources, head, config, TrainOptions(checkpoint=file))
    train_prior(sources, head, replace(config, steps=3), TrainOptions(checkpoint=file, resume=file))
    assert "sampler.credit" in Checkpoint.load(file).tensors
    with pytest.raises(FormatError, match="data"):
        train_prior([people], head, config, TrainOptions(resume=file))
    metadata = training_metadata(config, TrainOptions(), sources)
    assert metadata["data"] == "person00,person01,person02" and metadata["data_weights"] == "0.5,1,1"
    assert "data_weights" not in training_metadata(config, TrainOptions(), [people])


# Settings.


def test_settings_come_back_from_their_file(tmp_path: Path) -> None:
    config = replace(TINY, max_identities=7, dynamics=False, weights=replace(TINY.weights, mouth=3.0))
    file = tmp_path / "prior.yaml"
    file.write_text(config.to_yaml())
    assert load_config(file) == config
    file.write_text("")
    assert load_config(file) == TrainConfig() == load_config(None)
    file.write_text("learning_rate: 1e-4\nweights: {lpips: 1}\nmax_identities: null\n")
    found = load_config(file)
    assert found.learning_rate == 1e-4 and found.weights.lpips == 1.0 and found.weights.l1 == 0.8
    assert config_from_dict(training_config(config), "file") == config


def training_config(config: TrainConfig) -> dict:
    """The settings as a prior's file keeps them."""
    return json.loads(training_metadata(config, TrainOptions(), ["a/heads"])["config"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz: 3", ("stepz", "steps")),
        ("steps: many", ("steps", "int", "many")),
        ("steps: 0", ("steps", "at least 1")),
        ("steps: true", ("steps", "int")),
        ("learning_rate: fast", ("learning_rate", "float")),
        ("learning_rate: 2.0", ("learning_rate", "[0, 1)")),
        ("code_speed: -1", ("code_speed", "at least 0")),
        ("ema_decay: 1.0", ("ema_decay",)),
        ("preset: huge", ("preset", "tiny or default")),
        ("refiner: huge", ("refiner", "none or tiny")),
        ("image_size: 8", ("image_size", "16")),
        ("batch_size: 5", ("batch_size", "views_per_identity")),
        ("weights: 3", ("weights", "mapping")),
        ("weights: {smile: 1}", ("weights.smile", "weights.l1")),
        ("weights: {l1: bright}", ("weights.l1", "float")),
        ("dynamics: 1", ("dynamics", "bool")),
        ("accumulate: 0", ("accumulate", "at least 1")),
        ("accumulate: 3", ("accumulate", "8 people")),
        ("precision: fp16", ("precision", "fp32 or bf16")),
        ("light: odd", ("light", "any or even")),
        ("perceptual: psnr", ("perceptual", "st-lpips")),
        ("perceptual: st-lpips", ("perceptual", "weights.lpips")),
        ("perceptual_weights: 3", ("perceptual_weights", "str")),
        ("- a list", ("mapping",)),
        ("a: [", ("YAML",)),
        ("\x80", ("YAML",)),
    ],
)  # fmt: skip
def test_bad_settings_are_named_in_one_line(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    file = tmp_path / "bad settings.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(AvtoolError) as error:
        load_config(file)
    one_line(error, "bad settings.yaml", *words)


def test_absent_settings_say_how_to_get_some(tmp_path: Path) -> None:
    with pytest.raises(AvtoolError, match="--print-config"):
        load_config(tmp_path / "absent.yaml")
    assert check_config(TrainConfig()) == TrainConfig()


def test_print_config_is_what_config_reads(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *args: None)
    file = tmp_path / "some.yaml"
    file.write_text("preset: large\nsteps: 5\n")
    more = ["--perceptual", "st-lpips", "--light", "even", "--precision", "bf16", "--accumulate", "2"]
    try:
        main(["train-prior", "--config", str(file), "--steps", "9", "--lpips", "0.4", *more, "--print-config"])
    except SystemExit as stop:
        assert not stop.code
    file.write_text(capsys.readouterr().out)
    weights = replace(TrainConfig().weights, lpips=0.4)
    chosen = {"perceptual": "st-lpips", "light": "even", "precision": "bf16", "accumulate": 2}
    assert load_config(file) == replace(TrainConfig(), preset="large", steps=9, weights=weights, **chosen), "options override the file"
