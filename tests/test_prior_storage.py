"""Priors and avatars on disk: the same renders come back, nothing else is needed, and a wrong file is one clear error."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from random_prior import person_of, random_prior
from safetensors.torch import load_file
from toy_people import toy_cameras

from avtool.artifacts.tensors import load_tensors, save_tensors
from avtool.errors import FormatError
from avtool.head import HeadModel, HeadParams, load_head_model
from avtool.prior.avatar import Avatar
from avtool.prior.prior import DEFAULT_PRIOR, Prior

SIZE = 48


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model()


@pytest.fixture(scope="module")
def prior(head: HeadModel) -> Prior:
    return random_prior(head)


@pytest.fixture(scope="module")
def folder(prior: Prior, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """prior.safetensors and avatar.safetensors, valid."""
    directory = tmp_path_factory.mktemp("artifacts")
    prior.save(directory / "prior.safetensors", {"note": "kept"})
    person_of(prior, 1).save(directory / "avatar.safetensors", {"photos": "3"})
    return directory


def picture(avatar: Avatar) -> torch.Tensor:
    """Both modes, turned, with an open mouth."""
    params = HeadParams.zeros(avatar.head, (1,))
    params.expression[0, avatar.head.expression_index("jawOpen")] = 0.7
    params = avatar.params_for(params.expression, params.neck + 0.1, params.head, params.jaw, params.eyes)
    viewmats, Ks = toy_cameras([0.3], SIZE)
    with torch.no_grad():
        return torch.cat([avatar.render(params, viewmats, Ks, SIZE, SIZE, refine=refine)[0] for refine in (True, False)])


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """But for single pixels where two Gaussians changed their order."""
    difference = (a - b).abs()
    return bool(difference.mean() < 5e-4 and difference.max() < 0.1)


@pytest.mark.parametrize("refiner", ["tiny", "none"])
def test_an_avatar_comes_back_as_it_was(head: HeadModel, tmp_path: Path, refiner: str) -> None:
    avatar = person_of(random_prior(head, refiner=refiner), 1)
    file = tmp_path / "avatar.safetensors"
    avatar.save(file, {"photos": "3"})
    once = Avatar.load(file)
    once.save(file)
    twice = Avatar.load(file)
    assert close(picture(once), picture(avatar)), "weights are kept in 16 bits"
    assert torch.equal(picture(once), picture(twice))
    assert torch.equal(once.identity, avatar.identity) and torch.equal(once.offsets, avatar.offsets)
    assert torch.equal(once.gapnet.base_scales, avatar.gapnet.base_scales), "sizes of points keep their precision"
    assert once.metadata == {"made_by": "test", "photos": "3"} == twice.metadata
    assert (once.refiner is None) == (refiner == "none")


def test_an_avatar_without_offsets_stays_without(prior: Prior, tmp_path: Path) -> None:
    avatar = person_of(prior, 0)
    bare = Avatar(avatar.head, avatar.binding, avatar.gapnet, avatar.refiner, avatar.code, avatar.identity)
    bare.save(tmp_path / "bare.safetensors")
    loaded = Avatar.load(tmp_path / "bare.safetensors")
    assert loaded.offsets is None and close(picture(loaded), picture(bare))
    assert (picture(bare) - picture(avatar)).abs().max() > 0.05, "offsets are part of the person"


def test_an_avatar_needs_nothing_but_itself(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone in a directory, and no prior can be opened."""
    alone = tmp_path / "a.safetensors"
    alone.write_bytes((folder / "avatar.safetensors").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Prior, "load", lambda *_: pytest.fail("an avatar asked for a prior"))
    assert picture(Avatar.load("a.safetensors")).isfinite().all()
    assert not [name for name in load_file(alone) if "codebook" in name or "light" in name]


@pytest.mark.parametrize("settings", [{}, {"refiner": "none"}, {"single_part": True}, {"dynamics": False}], ids=str)
def test_a_prior_comes_back_as_it_was(head: HeadModel, tmp_path: Path, settings: dict) -> None:
    prior = random_prior(head, **settings)
    file = tmp_path / "prior.safetensors"
    prior.save(file)
    once = Prior.load(file)
    once.save(file)
    twice = Prior.load(file)
    assert once.gapnet.config == prior.gapnet.config and once.num_identities == 3
    assert (once.refiner is None) == ("refiner" in settings)
    assert close(picture(person_of(once, 2)), picture(person_of(prior, 2)))
    assert torch.equal(picture(person_of(once, 2)), picture(person_of(twice, 2)))


def test_equal_priors_are_equal_files(prior: Prior, tmp_path: Path) -> None:
    for name in ("a", "b"):
        prior.save(tmp_path / name, {"seed": "1", "config": "{}"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_shipped_prior_fits_and_its_avatars_are_small(tmp_path: Path) -> None:
    assert DEFAULT_PRIOR.stat().st_size <= 20e6
    prior = Prior.load("default")
    assert prior.num_identities >= 8 and prior.refiner is not None and prior.num_parts == 11
    person_of(prior, 0).save(tmp_path / "avatar.safetensors")
    assert (tmp_path / "avatar.safetensors").stat().st_size < 8e6


def damaged(folder: Path, kind: str, tmp_path: Path, change) -> Path:
    """A copy whose tensors and metadata went through `change`."""
    tensors, metadata = load_tensors(folder / f"{kind}.safetensors", kind)
    metadata = {k: v for k, v in metadata.items() if not k.startswith("avtool.")}
    change(tensors, metadata)
    save_tensors(tmp_path / "damaged.safetensors", tensors, f"{kind}/1", metadata)
    return tmp_path / "damaged.safetensors"


def load(kind: str, path: Path) -> Prior | Avatar:
    return Prior.load(path) if kind == "prior" else Avatar.load(path)


@pytest.mark.parametrize("kind", ["prior", "avatar"])
def test_a_missing_or_misshapen_tensor_is_named(folder: Path, tmp_path: Path, kind: str) -> None:
    names = list(load_file(folder / f"{kind}.safetensors"))
    assert len(names) > 30
    for name in names:
        if name.split(".")[-2 if "refiner" in name else -1] in ("1", "2", "4", "6", "8"):
            continue  # inner layers, as their neighbors
        if name != "offsets":
            path = damaged(folder, kind, tmp_path, lambda tensors, _: tensors.pop(name))
            with pytest.raises(FormatError) as caught:
                load(kind, path)
            assert str(path) in str(caught.value) and name.split(".")[0] in caught.value.key, name
        if name == "codebook.codes":
            continue  # a prior of one person less is one too
        path = damaged(folder, kind, tmp_path, lambda tensors, _: tensors.update({name: tensors[name][:-1].contiguous()}))
        with pytest.raises(FormatError) as caught:
            load(kind, path)
        assert str(path) in str(caught.value), name


def set_first(name: str, value: float):
    def change(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        tensors[name][0] = value

    return change


def set_entry(key: str, value: str | None):
    def change(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        metadata.pop(key)
        if value is not None:
            metadata[key] = value

    return change


@pytest.mark.parametrize("kind", ["prior", "avatar"])
@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("binding.face_idx", set_first("binding.face_idx", 10**6)),
        ("binding.face_idx", set_first("binding.face_idx", -1)),
        ("binding.part", set_first("binding.part", 11)),
        ("binding.part", set_first("binding.part", -1)),
        ("binding.part", set_first("binding.part", 5)),
        ("gapnet", set_entry("gapnet", None)),
        ("gapnet", set_entry("gapnet", "{")),
        ("gapnet", set_entry("gapnet", "[1, 2]")),
        ("gapnet", set_entry("gapnet", json.dumps({"hidden": 16, "wings": 2}))),
        ("gapnet", set_entry("gapnet", json.dumps({"hidden": "wide"}))),
        ("gapnet", set_entry("gapnet", json.dumps({"hidden": -4}))),
        ("gapnet", set_entry("refiner_width", None)),
        ("gapnet", set_entry("refiner_width", "-8")),
        ("refiner.net.0.weight", set_entry("refiner_width", "9")),
        ("uv_size", set_entry("uv_size", "many")),
        ("head_model", set_entry("head_model", "anny-00000000")),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_named(folder: Path, tmp_path: Path, kind: str, key: str, change) -> None:
    path = damaged(folder, kind, tmp_path, change)
    with pytest.raises(FormatError) as caught:
        load(kind, path)
    assert caught.value.key == key and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_avatars_notes_must_be_notes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="avatar"):
        Avatar.load(damaged(folder, "avatar", tmp_path, set_entry("avatar", "{")))


def test_a_flame_prior_asks_for_the_users_file(folder: Path, tmp_path: Path, head: HeadModel) -> None:
    from avtool.errors import AvtoolError

    path = damaged(folder, "prior", tmp_path, set_entry("head_model", "flame-2023-12345678"))
    with pytest.raises(AvtoolError, match="--head-model flame --head-model-path"):
        Prior.load(path)
    given = Prior.load(path, head=replace(head, model_id="flame-2023-12345678"))
    assert given.head.model_id == "flame-2023-12345678"
    with pytest.raises(FormatError, match="head_model"):
        Prior.load(path, head=head)
