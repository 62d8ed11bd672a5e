"""What the parts of a prior and the number of its people are worth, on synthetic people that no prior has seen.

Three views of each in (the front and one from either side), its other views and expressions out, exact parameters, matte on white,
256 pixels. Priors that differ in one thing each are trained with the same steps and kept in OUT; a run goes on where one stopped.

Usage: python tests/bench/ablation_prior.py OUT --train heads/ --held-out others/ [--steps 2000] [--prior default] [--init PRIOR] [--only TABLE ...]
       --train      people to train the variants on (avtool synth-data); the curve takes the first 25, 50, 100 and 200 of them
       --held-out   people of another seed, 12 or more
Tables: rows (no prior in three meanings, inversion, + fine-tuning, + view regularization of --prior), refiner (--prior with its CNN, and without
it from fine-tuning on), parts (full, without parts, dynamics, CNN), parts_whole (the same after --whole-steps more on pictures of whole size, where the steps before saw half of it), cnn (one
training whose --whole-steps on whole pictures are run twice, with the CNN and without it: less is left to chance than in trainings that
differ from their start), people (25 to 200), the last four with inversion alone beside the whole chain. psnr_face, psnr_mouth and psnr_eyes are those of boxes around parts
of the posed head, in views within 60 degrees of the front; in the last column is each figure's difference to the first row. Writes OUT/table.md, OUT/table.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from avtool.runtime import prepare

prepare()  # as the program does, before torch is imported

import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from ablation import ROWS  # noqa: E402
from baseline import fit_free  # noqa: E402
from synth_report import view_yaw  # noqa: E402

from avtool.artifacts.track import Track  # noqa: E402
from avtool.cameras import project  # noqa: E402
from avtool.capture.samples import Samples, load_samples  # noqa: E402
from avtool.head import HeadModel, load_head_model  # noqa: E402
from avtool.metrics import psnr, ssim  # noqa: E402
from avtool.prior.checkpoint import Checkpoint  # noqa: E402
from avtool.prior.dataset import find_tracks, load_training_set  # noqa: E402
from avtool.prior.evaluate import EvalOptions, Subject, on_background, render_samples  # noqa: E402
from avtool.prior.finetune import FinetuneOptions, finetune  # noqa: E402
from avtool.prior.invert import InvertOptions, invert  # noqa: E402
from avtool.prior.prior import Prior  # noqa: E402

REGIONS = {"psnr_face": ("face", "lips"), "psnr_mouth": ("lips",), "psnr_eyes": ("eye_l", "eye_r", "lash_l", "lash_r")}
FIGURES = ("psnr", "ssim", *REGIONS)
WHITE, BATCH = (1.0, 1.0, 1.0), 8
BOX_MARGIN = 0.15  # of the box's longer side
FACE_YAW = np.radians(60)  # beyond, half of mouth and eyes is hidden
SIDE_YAW = np.radians(35)  # where the two side photos should be from
MAX_TEST_YAW = np.radians(100)  # views from behind show what no photo does
PARTS = {"full": {}, "without parts": {"single_part": True}, "without dynamics": {"dynamics": False}, "without CNN": {"refiner": "none"}}
PEOPLE = (25, 50, 100, 200)
LAST = "no prior, not stopped by the test pictures"
UNTRAINED = "no prior: the same networks, untrained, tuned"
TABLES = ("rows", "refiner", "parts", "parts_whole", "cnn", "people")
SHARED = {"coarse_share": 0.5}  # quarter-size pictures first: most of these steps go into the codes
CNN = {"full": {}, "without CNN": {"refiner": "none"}}


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


def region_boxes(case: Case, samples: Samples, indices: list[int], head: HeadModel, names: tuple[str, ...]) -> list[NDArray[np.bool_] | None]:
    """(S, S) a picture: the box of the posed head's regions on it; None in views from the side or from behind."""
    size, boxes = samples.images.shape[1], []
    pixels, _ = project(head(samples.params).vertices, samples.viewmats, samples.Ks)
    corners = pixels[:, head.faces[head.region_mask(*names)].unique()].numpy()
    for idx, points in zip(indices, corners):
        low, high = points.min(0), points.max(0)
        margin = BOX_MARGIN * (high - low).max()
        (x0, y0), (x1, y1) = (np.clip(np.rint(v), 0, size).astype(int) for v in (low - margin, high + margin))
        box = np.zeros((size, size), bool)
        box[y0:y1, x0:x1] = True
        boxes.append(box if abs(view_yaw(case.test.frames[idx])) < FACE_YAW and box.any() else None)
    return boxes


def measure_case(subject: Subject, case: Case, head: HeadModel, mode: str, size: int) -> dict[str, float]:
    """A person's mean figures over the test pictures."""
    values: dict[str, list[float]] = {key: [] for key in FIGURES}
    for start in range(0, len(case.test.frames), BATCH):
        indices = list(range(start, min(start + BATCH, len(case.test.frames))))
        samples = load_samples(case.test, indices, size)
        real = on_background(samples, WHITE)
        images = render_samples(subject, samples, EvalOptions(size=size), refine=mode == "refined")
        pairs = list(zip(images, real))
        values["psnr"] += [psnr(*pair) for pair in pairs]
        values["ssim"] += [ssim(*pair) for pair in pairs]
        for key, names in REGIONS.items():
            boxes = region_boxes(case, samples, indices, head, names)
            values[key] += [psnr(*pair, box) for pair, box in zip(pairs, boxes) if box is not None]
    return {key: float(np.mean(found)) for key, found in values.items()}


def measure(build: Callable[[Case], Subject], cases: list[Case], head: HeadModel, mode: str, size: int) -> dict[str, list[float]]:
    """A figure a person, of every metric."""
    values: dict[str, list[float]] = {key: [] for key in FIGURES}
    for case in cases:
        torch.manual_seed(0)
        for key, value in measure_case(build(case), case, head, mode, size).items():
            values[key].append(value)
    return values


def subject_rows(
    prior_name: str, quick: bool, head: HeadModel, size: int, hold: float = 1.0
) -> dict[str, tuple[Callable[[Case], Subject], str]]:
    """The four rows of method.md 1.5, with two more meanings of "no prior": how each makes its person, and the pictures it is measured by.

    hold: the reference views' weight in the last row, times the usual one.
    """
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
        ROWS[3]: (partial(tuned, reference_weight=hold * FinetuneOptions().reference_weight), "refined"),
    }


def refiner_rows(prior_name: str, quick: bool, head: HeadModel, size: int) -> dict[str, tuple[Callable[[Case], Subject], str]]:
    """Fine-tuning from one inversion with the prior's CNN, and with the CNN taken away before.

    With a CNN the photos count twice, as refined and as plain pictures, and the reference views once. They have the double weight there, so that
    either way the photos and the views are in the same proportion, and what differs is the CNN.
    """
    chain = subject_rows(prior_name, quick, head, size, hold=2.0)
    inverted, tuned = chain[ROWS[1]][0], chain[ROWS[3]][0]

    def without(case: Case) -> Subject:
        avatar = copy.copy(inverted(case))
        avatar.refiner = None
        return finetune(avatar, case.photos, FinetuneOptions(size=size, **({"steps": 30} if quick else {})))

    return {
        "with its CNN": (tuned, "refined"),
        "CNN taken away before fine-tuning": (without, "unrefined"),
        "with its CNN, drawn without it": (tuned, "unrefined"),
    }


def trained(out: Path, name: str, people: Path, steps: int, changes: dict[str, object], init: str | None = None) -> Path:
    """A prior that differs from the full one by `changes`; trained once, from nothing or the prior `init`, resumed after an interruption."""
    file = out / f"prior_{name.replace(' ', '_')}.safetensors"
    if file.is_file():
        return file
    config, checkpoint = out / f"{file.stem}.yaml", file.with_suffix(".checkpoint.safetensors")
    settings = {"learning_rate": 2e-3, "batch_size": 8, "views_per_identity": 2, "image_size": 128, "checkpoint_every": 200}
    config.write_text(json.dumps({**settings, "steps": steps, "preview_every": 10**6, **changes}), encoding="utf-8")
    command = [sys.executable, "-m", "avtool", "train-prior", str(people), "-o", str(file), "--config", str(config), "--force"]
    if checkpoint.is_file():
        command += ["--resume", str(checkpoint)]
    elif init is not None:
        command += ["--init", init]
    run_training(name, command)
    return file


def trained_whole(
    out: Path, name: str, people: Path, steps: int, more: int, changes: dict[str, object], init: str | None = None, branch: bool = False
) -> Path:  # fmt: skip
    """A trained variant after more steps on pictures of twice the size; made once, resumed after an interruption.

    branch: what is changed is changed after `steps`, which all variants share.
    """
    start = trained(out, "shared" if branch else name, people, steps, SHARED if branch else changes, init)
    file = out / f"prior_{name.replace(' ', '_')}_{'branch' if branch else 'whole'}.safetensors"
    if file.is_file():
        return file
    checkpoint = file.with_suffix(".checkpoint.safetensors")
    if not checkpoint.is_file():
        saved = Checkpoint.load(start.with_suffix(".checkpoint.safetensors"))
        whole = {"steps": steps + more, "image_size": 2 * saved.config["image_size"], "coarse_share": steps / (steps + more)}
        data = load_training_set([people], load_head_model(), whole["image_size"]).fingerprint()
        # Whatever the checkpoint holds of a network that is left out is not read.
        replace(saved, config={**saved.config, **whole, **(changes if branch else {})}, data=data).save(checkpoint)
    command = [sys.executable, "-m", "avtool", "train-prior", str(people), "-o", str(file), "--resume", str(checkpoint), "--force"]
    run_training(f"{name}, whole pictures", [*command, "--steps", str(steps + more)])
    return file


def run_training(name: str, command: list[str]) -> None:
    started = time.perf_counter()
    subprocess.run(command, check=True)
    sys.stderr.write(f"{name}: trained in {time.perf_counter() - started:.0f} s\n")


def variant_rows(priors: dict[str, Path], quick: bool, head: HeadModel, size: int) -> dict[str, tuple[Callable[[Case], Subject], str]]:
    """Inversion alone and the whole chain with each of some priors; one without CNN is measured by its splats, and the full one also so."""
    rows = {}
    for name, file in priors.items():
        # Without a CNN the photos count once, not as refined and as plain pictures: half the hold keeps their proportion to the reference views.
        hold, mode = (0.5, "unrefined") if name == "without CNN" else (1.0, "refined")
        chain = subject_rows(str(file), quick, head, size, hold)
        rows[name] = (chain[ROWS[3]][0], mode)
        rows[f"{name}, inversion alone"] = (chain[ROWS[1]][0], mode)
        if name == "full":
            rows["full, drawn without its CNN"] = (chain[ROWS[3]][0], "unrefined")
    return rows


def to_markdown(tables: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """Mean and standard deviation over the people; in the last column the differences to the first row, person by person."""
    lines = []
    for title, rows in tables.items():
        known = [key for key in FIGURES if all(key in values for values in rows.values())]
        lines += [f"### {title}", "", f"| row | n | {' | '.join(known)} | against the first row |", "|---" * (3 + len(known)) + "|"]
        first = next(iter(rows.values()))
        for name, values in rows.items():
            cells = [f"{np.mean(values[key]):.3f} ± {np.std(values[key]):.3f}" for key in known]
            gains = {key: np.array(values[key]) - np.array(first[key]) for key in known if key != "ssim"}
            gain = ", ".join(f"{key} {found.mean():+.2f} ± {found.std():.2f}" for key, found in gains.items())
            lines.append(f"| {name} | {len(values['psnr'])} | {' | '.join(cells)} | {gain} |")
        lines.append("")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=12, help="held-out people")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--whole-steps", type=int, default=600, help="of the tables parts_whole and cnn, after --steps")
    parser.add_argument("--prior", default="default")
    parser.add_argument("--init", help="a prior that the variants start from, instead of from nothing (tables cnn, people)")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--size", type=int, default=256, help="of the photos that are tuned on and of the pictures that are compared")
    parser.add_argument("--quick", action="store_true", help="few steps: a smoke test, no figures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    head = load_head_model()
    cases = load_cases(args.held_out, head, args.count)
    file = args.out / "table.json"
    tables = json.loads(file.read_text()) if file.is_file() else {}
    if args.train is None and set(args.only) - {"rows", "refiner"}:
        parser.error("the tables parts, parts_whole, cnn and people need --train")
    for title in args.only:
        if title == "rows":
            rows = subject_rows(args.prior, args.quick, head, args.size)
        elif title == "refiner":
            rows = refiner_rows(args.prior, args.quick, head, args.size)
        else:
            changes = {"people": {f"{n} people": {"max_identities": n} for n in PEOPLE}, "cnn": CNN}.get(title, PARTS)
            init = args.init if title in ("cnn", "people") else None  # a known prior's parts are its own
            whole = partial(trained_whole, more=args.whole_steps, branch=title == "cnn")
            make = partial(whole if title in ("cnn", "parts_whole") else trained, init=init)
            priors = {name: make(args.out, name, args.train, args.steps, changes=change) for name, change in changes.items()}
            rows = variant_rows(priors, args.quick, head, args.size)
        tables.setdefault(title, {})
        for name, (build, mode) in rows.items():
            if len(tables[title].get(name, {}).get("psnr", [])) == len(cases):
                continue
            tables[title][name] = measure(build, cases, head, mode, args.size)
            file.write_text(json.dumps(tables, indent=1))
            sys.stderr.write(f"{title}, {name}: {np.mean(tables[title][name]['psnr']):.2f} dB\n")
        (args.out / "table.md").write_text(to_markdown(tables))
    sys.stdout.write((args.out / "table.md").read_text())


if __name__ == "__main__":
    main()
