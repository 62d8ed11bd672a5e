"""Training in several processes gives what one process gives: compared on the CPU with gloo, started by torchrun."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_people import make_people

from avtool.errors import AvtoolError
from avtool.head import HeadModel, load_head_model
from avtool.prior.checkpoint import Checkpoint
from avtool.prior.config import TrainConfig
from avtool.prior.distributed import World, no_reduction
from avtool.prior.train import TrainOptions, train_prior
from avtool.prior.trainer import check_division

if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("this build of torch has no gloo", allow_module_level=True)

PEOPLE, STEPS, HALF = 5, 6, 3
CONFIG = TrainConfig(
    preset="tiny", uv_size=16, refiner="tiny", image_size=32, steps=STEPS, batch_size=8, views_per_identity=2, learning_rate=5e-3,
    track_rate=1e-4, offset_rate=1e-5, warmup=2, ema_decay=0.9, log_every=1, checkpoint_every=HALF,
)  # fmt: skip

# A training in which every process leaves its final codes, and the first its curve and the checkpoint of half the steps.
WORKER = """
import json, os, shutil, sys
from pathlib import Path
import torch
from avtool import __main__ as program
from avtool.errors import AvtoolError
from avtool.head import load_head_model
from avtool.prior import trainer
from avtool.prior.config import config_from_dict
from avtool.prior.train import TrainOptions, train_prior

task = json.loads(Path(sys.argv[1]).read_text())
rank, folder, curve = os.environ["RANK"], Path(task["folder"]), []
spoiled = trainer.Trainer.batch_loss

def broken(self, data, batch):
    if rank == "1" and self.step == 2:
        raise AvtoolError("broken on purpose")
    return spoiled(self, data, batch)

def log(step, figures):
    curve.append(figures)
    if step == task["half"] + 1 and not task["resume"]:
        shutil.copy(folder / "last.safetensors", folder / "half.safetensors")

def train():
    if task["broken"]:
        trainer.Trainer.batch_loss = broken
    options = TrainOptions(
        checkpoint=folder / "last.safetensors", resume=task["resume"] and Path(task["resume"]), time_limit=task["time_limit"]
    )
    prior = train_prior([task["people"]], load_head_model(), config_from_dict(task["config"], "task"), options, log=log)
    torch.save(prior.codebook.codes.detach(), folder / f"codes{rank}.pt")
    if curve:
        (folder / f"curve{rank}.json").write_text(json.dumps(curve))

program.build_app = lambda: lambda args, prog_name: train()
program.main([])
"""


def torchrun(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def in_two(folder: Path, people: Path, config: TrainConfig = CONFIG, **more: object) -> subprocess.CompletedProcess[str]:
    task = {"folder": str(folder), "people": str(people), "config": config.to_dict(), "half": HALF}
    task |= {"resume": None, "time_limit": None, "broken": False, **more}
    (folder / "task.json").write_text(json.dumps(task))
    (folder / "worker.py").write_text(WORKER)
    return torchrun("worker.py", "task.json", cwd=folder)


def in_one(folder: Path, people: Path, head: HeadModel, config: TrainConfig = CONFIG, resume: Path | None = None) -> list[dict]:
    curve: list[dict] = []

    def log(step: int, figures: dict[str, float]) -> None:
        curve.append(figures)
        if step == HALF + 1 and resume is None:
            shutil.copy(folder / "last.safetensors", folder / "half.safetensors")

    train_prior([people], head, config, TrainOptions(checkpoint=folder / "last.safetensors", resume=resume), log=log)
    return curve


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head_model()


@pytest.fixture(scope="module")
def people(head: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_people(tmp_path_factory.mktemp("several") / "people", head, count=PEOPLE, views=3, size=40)


@pytest.fixture(scope="module")
def one(people: Path, head: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("one")
    return folder, in_one(folder, people, head)


@pytest.fixture(scope="module")
def two(people: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("two")
    done = in_two(folder, people)
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "curve0.json").read_text())


def same_curves(found: list[dict], expected: list[dict]) -> None:
    """Equal up to the order of float sums, which Adam's first steps enlarge."""
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected):
        assert a.keys() == b.keys()
        for name in a.keys() - {"seconds", "ms", "memory_gb"}:
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-7), name


def test_two_processes_train_what_one_trains(one: tuple[Path, list[dict]], two: tuple[Path, list[dict]]) -> None:
    same_curves(two[1], one[1])
    saved = [Checkpoint.load(folder / "last.safetensors") for folder, _ in (one, two)]
    assert saved[0].tensors.keys() == saved[1].tensors.keys(), "offsets and tracking have moments, too"
    for name, value in saved[0].tensors.items():
        if not value.is_floating_point():
            assert torch.equal(value, saved[1].tensors[name]), name
            continue
        # Adam makes a whole step of a gradient that is nothing but rounding: a few such elements go either way.
        close = torch.isclose(value.double(), saved[1].tensors[name].double(), rtol=0.01, atol=1e-5)
        assert close.double().mean() > 0.99, name


def test_only_the_first_process_writes_and_all_agree(two: tuple[Path, list[dict]]) -> None:
    folder = two[0]
    assert not (folder / "curve1.json").exists() and (folder / "last.safetensors").is_file()
    assert torch.equal(torch.load(folder / "codes0.pt"), torch.load(folder / "codes1.pt"))


def test_a_checkpoint_goes_on_with_another_number_of_processes(
    one: tuple[Path, list[dict]], two: tuple[Path, list[dict]], people: Path, head: HeadModel, tmp_path: Path
) -> None:
    assert Checkpoint.load(two[0] / "half.safetensors").step == HALF
    same_curves(in_one(tmp_path, people, head, resume=two[0] / "half.safetensors"), one[1][HALF:])
    done = in_two(tmp_path, people, resume=str(one[0] / "half.safetensors"))
    assert done.returncode == 0, done.stderr
    same_curves(json.loads((tmp_path / "curve0.json").read_text()), one[1][HALF:])


def test_accumulated_parts_are_one_batch(one: tuple[Path, list[dict]], people: Path, head: HeadModel, tmp_path: Path) -> None:
    same_curves(in_one(tmp_path, people, head, replace(CONFIG, accumulate=4)), one[1])


def test_parts_in_processes_on_a_clock_that_all_share(people: Path, tmp_path: Path) -> None:
    """Accumulation in two processes; and a time limit, which sets both the learning rate and the end."""
    config = replace(CONFIG, accumulate=2, steps=10**6, coarse_share=0.5)
    done = in_two(tmp_path, people, config, time_limit=6.0)
    assert done.returncode == 0, done.stderr
    steps = len(json.loads((tmp_path / "curve0.json").read_text()))
    assert 1 <= steps < 10**4  # how many depends on the machine
    assert torch.equal(torch.load(tmp_path / "codes0.pt"), torch.load(tmp_path / "codes1.pt"))


def test_an_error_in_one_process_ends_all(people: Path, tmp_path: Path) -> None:
    done = in_two(tmp_path, people, broken=True)
    assert done.returncode == 1
    assert "avtool: error: broken on purpose" in done.stderr
    assert "this is a bug" not in done.stderr and "codes" not in " ".join(path.name for path in tmp_path.iterdir())


def test_the_command_in_two_processes(people: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(replace(CONFIG, steps=2).to_yaml())
    command = ("-m", "avtool", "train-prior", people, "--config", "c.yaml", "--device", "cpu")
    odd = torchrun(*command, "-o", "odd.safetensors", "--batch-size", "6", cwd=tmp_path)
    assert odd.returncode == 1 and "the 3 people of a batch do not divide" in odd.stderr
    done = torchrun(*command, "-o", "p.safetensors", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["identities"] == PEOPLE, "one report"
    assert [done.stderr.count(f"step {step}: ") for step in (1, 2)] == [1, 1]
    assert (tmp_path / "p.safetensors").is_file() and not (tmp_path / "odd.safetensors").exists()


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    world = World.from_environment()
    assert world == World() and world.is_main and world.device("cuda:1") == "cuda:1" and world.agree(0.1) == 0.1
    with world.joined("cpu"), no_reduction(world.wrapped([], lambda: None)):
        assert not torch.distributed.is_initialized()
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert World.from_environment() == World(), "a scheduler's variables, not torchrun's"
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    world = World.from_environment()
    assert world == World(1, 2, 1) and not world.is_main and world.device("cpu") == "cpu"
    with pytest.raises(AvtoolError, match="one device for 2 processes"):
        world.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(AvtoolError, match="found 1 CUDA devices"):
        world.device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert world.device("cuda") == "cuda:1"


def test_batches_that_do_not_divide_are_refused() -> None:
    check_division(8, 2, 4)
    with pytest.raises(AvtoolError, match="the 8 people of a batch.*2 processes, 3 parts.*multiple of 6"):
        check_division(8, 2, 3)
