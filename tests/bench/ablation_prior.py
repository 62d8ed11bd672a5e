"""What the parts of a prior and the number of its people are worth, on synthetic people that no prior has seen.

Three views of each in (the front and one from either side), its other views and expressions out, exact parameters, matte on white,
256 pixels. Priors that differ in one thing each are trained with the same steps and kept in OUT; a run goes on where one stopped.

Usage: python tests/bench/ablation_prior.py OUT --train heads/ --held-out others/ [--steps 2000] [--prior default] [--only TABLE ...]
       --train      people to train the variants on (avtool synth-data); the curve takes the first 25, 50, 100 and 200 of them
       --held-out   people of another seed, 12 or more
Tables: rows (no prior in three meanings, inversion, + fine-tuning, + view regularization of --prior), parts (full, without parts,
dynamics, CNN), people (25 to 200), the last two with inversion alone beside the whole chain. Writes OUT/table.md, OUT/table.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from avtool.runtime import prepare

prepare()  # as the program does, before torch is imported

import torch

sys.path.insert(0, str(Path(__file__).parent))
from ablation import ROWS  # noqa: E402
from baseline import fit_free  # noqa: E402
from synth_report import view_yaw  # noqa: E402

from avtool.artifacts.track import Track  # noqa: E402
from avtool.head import HeadModel, load_head_model  # noqa: E402
from avtool.prior.dataset import find_tracks  # noqa: E402
from avtool.prior.evaluate import EvalOptions, Meters, Subject, evaluate  # noqa: E402
from avtool.prior.finetune import FinetuneOptions, finetune  # noqa: E402
from avtool.prior.invert import InvertOptions, invert  # noqa: E402
from avtool.prior.prior import Prior  # noqa: E402

FIGURES = ("psnr", "ssim")
SIDE_YAW = np.radians(35)  # where the two side photos should be from
MAX_TEST_YAW = np.radians(100)  # views from behind show what no photo does
PARTS = {"full": {}, "without parts": {"single_part": True}, "without dynamics": {"dynamics": False}, "without CNN": {"refiner": "none"}}
PEOPLE = (25, 50, 100, 200)
LAST = "no prior, not stopped by the test pictures"
UNTRAINED = "no prior: the same networks, untrained, tuned"
TABLES = ("rows", "parts", "people")


@dataclass(frozen=True)
class Case:
    """One held-out person: three photos, and what they are asked for."""

    name: str
    photos: Track
    test: Track


def load_cases(folder: Path, head: HeadModel, count: int) -> list[Case]:
    """Splits the views of the first people of a data set."""
    cases = []
    for path in find_tracks([folder])[:count]:
        track = Track.load(path, head)
        yaws = np.array([view_yaw(frame) for frame in track.frames])
        chosen: list[int] = []
        for wanted in (0.0, -SIDE_YAW, SIDE_YAW):
            order = np.argsort(np.abs(yaws - wanted))
            chosen.append(next(int(k) for k in order if int(k) not in chosen))
        rest = [k for k in range(len(yaws)) if k not in chosen and abs(yaws[k]) < MAX_TEST_YAW]
        parts = (replace(track, frames=[track.frames[k] for k in indices]) for indices in (chosen, rest))
        cases.append(Case(path.parent.name, *parts))
    return cases


def measure(build: Callable[[Case], Subject], cases: list[Case], mode: str, size: int) -> dict[str, list[float]]:
    """A figure a person, of every metric."""
    values: dict[str, list[float]] = {}
    for case in cases:
        torch.manual_seed(0)
        report = evaluate(build(case), case.test, EvalOptions(size=size, modes=(mode,)), Meters()).report[mode]
        for key in FIGURES:
            values.setdefault(key, []).append(float(report[key]["mean"]))
    return values


def subject_rows(prior_name: str, quick: bool, head: HeadModel, size: int) -> dict[str, tuple[Callable[[Case], Subject], str]]:
    """The four rows of method.md 1.5, with two more meanings of "no prior": how each makes its person, and the pictures it is measured by."""
    cut, free = ({"steps": 30}, 50) if quick else ({}, 300)
    known: dict[str, Subject] = {}

    def inverted(case: Case) -> Subject:
        if case.name not in known:
            known[case.name] = invert(Prior.load(prior_name), case.photos, InvertOptions(**cut))
        return known[case.name]

    def untrained(case: Case) -> Subject:
        start = invert(Prior.create(head, 1), case.photos, InvertOptions(**cut))
        return finetune(start, case.photos, FinetuneOptions(size=size, reference_weight=0.0, **cut))

    def tuned(case: Case, **options: float) -> Subject:
        key = f"{case.name} {options}"
        if key not in known:
            known[key] = finetune(inverted(case), case.photos, FinetuneOptions(size=size, **cut, **options))
        return known[key]

    return {
        ROWS[0]: (lambda case: fit_free(head, case.photos, case.test, size=size, steps=free)[0], "unrefined"),
        LAST: (lambda case: fit_free(head, case.photos, case.test, size=size, steps=free, keep_best=False)[0], "unrefined"),
        UNTRAINED: (untrained, "refined"),
        ROWS[1]: (inverted, "refined"),
        ROWS[2]: (lambda case: tuned(case, reference_weight=0.0), "refined"),
        ROWS[3]: (tuned, "refined"),
    }


def trained(out: Path, name: str, people: Path, steps: int, changes: dict[str, object]) -> Path:
    """A prior that differs from the full one by `changes`; trained once, resumed after an interruption."""
    file = out / f"prior_{name.replace(' ', '_')}.safetensors"
    if file.is_file():
        return file
    config, checkpoint = out / f"{file.stem}.yaml", file.with_suffix(".checkpoint.safetensors")
    settings = {"learning_rate": 2e-3, "batch_size": 8, "views_per_identity": 2, "image_size": 128, "checkpoint_every": 200}
    config.write_text(json.dumps({**settings, "steps": steps, "preview_every": 10**6, **changes}), encoding="utf-8")
    command = [sys.executable, "-m", "avtool", "train-prior", str(people), "-o", str(file), "--config", str(config), "--force"]
    if checkpoint.is_file():
        command += ["--resume", str(checkpoint)]
    started = time.perf_counter()
    subprocess.run(command, check=True)
    sys.stderr.write(f"{name}: trained in {time.perf_counter() - started:.0f} s\n")
    return file


def variant_rows(priors: dict[str, Path], quick: bool, head: HeadModel, size: int) -> dict[str, tuple[Callable[[Case], Subject], str]]:
    """Inversion alone and the whole chain with each of some priors; one without CNN is measured by its splats, and the full one also so."""
    rows = {}
    for name, file in priors.items():
        chain, mode = subject_rows(str(file), quick, head, size), "unrefined" if name == "without CNN" else "refined"
        rows[name] = (chain[ROWS[3]][0], mode)
        rows[f"{name}, inversion alone"] = (chain[ROWS[1]][0], mode)
        if name == "full":
            rows["full, drawn without its CNN"] = (chain[ROWS[3]][0], "unrefined")
    return rows


def to_markdown(tables: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """Mean and standard deviation over the people; in the last column the difference to the first row, person by person."""
    lines = []
    for title, rows in tables.items():
        lines += [f"### {title}", "", f"| row | n | {' | '.join(FIGURES)} | PSNR against the first row |", "|---" * (3 + len(FIGURES)) + "|"]
        first = next(iter(rows.values()))["psnr"]
        for name, values in rows.items():
            cells = [f"{np.mean(values[key]):.3f} ± {np.std(values[key]):.3f}" for key in FIGURES]
            gain = np.array(values["psnr"]) - np.array(first)
            lines.append(f"| {name} | {len(gain)} | {' | '.join(cells)} | {gain.mean():+.2f} ± {gain.std():.2f} |")
        lines.append("")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=12, help="held-out people")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--prior", default="default")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--size", type=int, default=256, help="of the photos that are tuned on and of the pictures that are compared")
    parser.add_argument("--quick", action="store_true", help="few steps: a smoke test, no figures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    head = load_head_model()
    cases = load_cases(args.held_out, head, args.count)
    file = args.out / "table.json"
    tables = json.loads(file.read_text()) if file.is_file() else {}
    if args.train is None and set(args.only) & {"parts", "people"}:
        parser.error("the tables parts and people need --train")
    for title in args.only:
        if title == "rows":
            rows = subject_rows(args.prior, args.quick, head, args.size)
        else:
            changes = PARTS if title == "parts" else {f"{n} people": {"max_identities": n} for n in PEOPLE}
            rows = variant_rows({n: trained(args.out, n, args.train, args.steps, c) for n, c in changes.items()}, args.quick, head, args.size)
        tables.setdefault(title, {})
        for name, (build, mode) in rows.items():
            if len(tables[title].get(name, {}).get("psnr", [])) == len(cases):
                continue
            tables[title][name] = measure(build, cases, mode, args.size)
            file.write_text(json.dumps(tables, indent=1))
            sys.stderr.write(f"{title}, {name}: {np.mean(tables[title][name]['psnr']):.2f} dB\n")
        (args.out / "table.md").write_text(to_markdown(tables))
    sys.stdout.write((args.out / "table.md").read_text())


if __name__ == "__main__":
    main()
