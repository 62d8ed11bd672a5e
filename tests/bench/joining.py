"""What pseudo multi-view data of real people is worth to priors and to fine-tuning, leaving one person out after another.

For every clip, from 1 and from 3 of its photos (the protocol of ablation.py: every 10th frame of the last 60 % out, whole frames, matte on white):
  prior      invert + finetune with a prior that learned from synthetic people and the pseudo-mv data of the OTHER clips, against one that
             learned from the synthetic people alone. Both come from --start (as train-prior --init) by the same number of steps with the
             same seed. --start none trains both from nothing.
  finetune   `avtool finetune --pseudo` with views that pseudo-mv made of the same photos, against the same without, from --prior.
Each is measured on all held-out frames, and again on held-out views: those seen from more than 10 degrees of yaw beside every photo.
Means and deviations are over the clips, of held-out views over the frames, as few clips have any (nerfies_book above all).

Usage: python tests/bench/joining.py OUT --portrait static.safetensors --heads heads/ [--data ../shared/data] [--clips obama_wh ...]
       [--steps 1000] [--people 60] [--mv-weight 4] [--photos 1 3] [--recognizer FILE] [--only prior|finetune] [--quick]
Writes OUT/table.md, OUT/table.json (a run goes on where one stopped; tracks, data sets, priors and avatars are kept), OUT/sheets/*.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avtool.runtime import prepare

prepare()  # as the program does, before torch is imported

sys.path.insert(0, str(Path(__file__).parent))
import ablation  # noqa: E402
from portrait_common import Figures, Tables, avtool_offers, digest, meters_of, run_command, say, view_yaw, write_sheet  # noqa: E402

from avtool.artifacts.track import Track  # noqa: E402
from avtool.head import HeadModel, load_head_model  # noqa: E402
from avtool.prior.avatar import Avatar  # noqa: E402
from avtool.prior.checkpoint import Checkpoint  # noqa: E402
from avtool.prior.config import TrainConfig  # noqa: E402
from avtool.prior.dataset import find_tracks  # noqa: E402
from avtool.prior.evaluate import EvalOptions, Meters, evaluate  # noqa: E402
from avtool.prior.train import TrainOptions, resumed_settings, train_prior, training_metadata  # noqa: E402

FAR = np.radians(10.0)
WITH, ALONE = "synthetic + pseudo of others", "synthetic alone"
PSEUDO, PLAIN = "with --pseudo", "without"
SUBSETS = ("held-out frames", "held-out views")
PARTS = ("prior", "finetune")


@dataclass(frozen=True)
class Plan:
    """The run's settings, in one place."""

    out: Path
    data: Path
    clips: list[str]
    portrait: Path
    heads: Path | None
    start: str
    prior: str
    steps: int
    people: int
    mv_weight: float
    mv: tuple[str, ...]  # options of pseudo-mv for whole clips
    own_mv: tuple[str, ...]  # and for a person's own photos
    every: int
    fit: tuple[str, ...]  # options of invert and finetune
    size: int


def other_data(plan: Plan, clip: str) -> Path:
    """The pseudo-mv data set of a whole clip, made once."""
    folder = plan.out / "mv" / clip
    if not (folder / "track.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        video = plan.data / clip / "crop.mp4"
        run_command(["pseudo-mv", video, "--portrait", plan.portrait, "-o", folder, *plan.mv, "-q", "--force"])
    return folder


def own_data(plan: Plan, clip: ablation.Clip, track: Path, count: int) -> Path:
    """The pseudo-mv data set of a clip's tracked photos alone: nothing that is held out is in it."""
    folder = plan.out / "own" / f"{clip.name}_{count}"
    if not (folder / "track.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        run_command(["pseudo-mv", track, "--portrait", plan.portrait, "-o", folder, *plan.own_mv, "-q", "--force"])
    return folder


def trained_prior(plan: Plan, name: str, sets: Sequence[str], head: HeadModel, config: TrainConfig) -> Path:
    """A prior that learned from data sets; trained once, and resumed after an interruption."""
    file = plan.out / f"prior_{name}.safetensors"
    if file.is_file():
        return file
    checkpoint = file.with_suffix(".checkpoint.safetensors")
    saved = Checkpoint.load(checkpoint) if checkpoint.is_file() else None
    options = TrainOptions(
        checkpoint=checkpoint, resume=None if saved is None else checkpoint, init=None if plan.start == "none" else plan.start
    )  # fmt: skip
    settings, options = resumed_settings(config, options, saved, head)
    started = time.perf_counter()
    prior = train_prior(
        sets, head, settings, options, log=lambda step, figures: say(f"{name}, step {step}: PSNR {figures.get('psnr', float('nan')):.2f}")
    )  # fmt: skip
    prior.save(file, training_metadata(settings, options, sets))
    say(f"{name}: trained in {time.perf_counter() - started:.0f} s")
    return file


def prior_files(plan: Plan, clip: str, head: HeadModel, config: TrainConfig) -> dict[str, Path]:
    """Both priors of a clip; the one without real people serves all clips."""
    heads = [str(track.parent) for track in find_tracks([plan.heads])[: plan.people]]
    others = [f"{other_data(plan, name)}={plan.mv_weight:g}" for name in plan.clips if name != clip]
    return {
        WITH: trained_prior(plan, f"without_{clip}", [*heads, *others], head, config),
        ALONE: trained_prior(plan, "synthetic", heads, head, config),
    }


def fitted(plan: Plan, name: str, track: Path, prior: str | Path, pseudo: Path | None = None) -> tuple[Avatar, Figures]:
    """invert and finetune as commands; the avatar is kept under a name, inversions are shared by what starts from them."""
    folder = plan.out / "avatars"
    folder.mkdir(parents=True, exist_ok=True)
    inverted = folder / f"inverted_{track.parent.name}_{track.stem}_{digest(prior)}.safetensors"
    avatar, seconds = folder / f"{name}.safetensors", {}
    if not inverted.is_file():
        run_command(["invert", track, "--prior", prior, "-o", inverted, "-q", *plan.fit])
    if not avatar.is_file():
        extra = [] if pseudo is None else ["--pseudo", pseudo]
        ran = run_command(["finetune", inverted, track, "-o", avatar, "-q", *plan.fit, *extra])
        seconds = {"seconds": ran.seconds, "peak_gib": ran.peak_gib}
    return Avatar.load(avatar), seconds


def far_frames(photos: Track, test: Track) -> list[int]:
    """Test frames whose yaw no photo comes within FAR of."""
    known = np.array([view_yaw(frame) for frame in photos.frames])
    return [k for k, frame in enumerate(test.frames) if np.abs(known - view_yaw(frame)).min() > FAR]


def score(
    plan: Plan, part: str, row: str, clip: ablation.Clip, count: int, made: tuple[Avatar, Figures], meters: Meters, tables: Tables
) -> None:
    """The figures of avtool eval on both subsets of the held-out frames."""
    avatar, seconds = made
    everything = list(range(len(clip.test.frames)))
    # All frames last: a row with those is complete.
    for subset, frames in ((SUBSETS[1], far_frames(clip.photos, clip.test)), (SUBSETS[0], everything)):
        if not frames:
            continue
        result = evaluate(avatar, clip.test.select(frames), EvalOptions(size=plan.size, modes=("refined",)), meters)
        found = {key: result.report["refined"][key] for key in ablation.FIGURES if key in result.report["refined"]}
        title = f"{part}, photos: {count}, {subset}"
        if subset == SUBSETS[0]:
            tables.put(title, row, clip.name, {key: value["mean"] for key, value in found.items()} | seconds)
        else:
            for k, idx in enumerate(frames):
                tables.put(title, row, f"{clip.name} {idx}", {key: value["per_frame"][k] for key, value in found.items()})
        real, shown = (np.stack([pair[side] for pair in result.shown]) for side in (0, 1))
        label = f"{clip.name}_{count}_{part}_{row}_{subset}".replace(" ", "_")
        write_sheet(plan.out / "sheets" / f"{label}.png", {"real": real, row: shown}, 6)


def run_clip(
    plan: Plan, clip: ablation.Clip, track: Path, count: int, parts: Sequence[str], head: HeadModel, config: TrainConfig, meters: Meters,
    tables: Tables,
) -> None:  # fmt: skip
    """Every row of one clip from so many photos that is not in the table yet."""

    def missing(part: str, row: str) -> bool:
        return not tables.has(f"{part}, photos: {count}, {SUBSETS[0]}", row, clip.name)

    if "prior" in parts and any(missing("prior", row) for row in (WITH, ALONE)):
        for row, prior in prior_files(plan, clip.name, head, config).items():
            if missing("prior", row):
                name = f"{clip.name}_{count}_{prior.stem}"
                score(plan, "prior", row, clip, count, fitted(plan, name, track, prior), meters, tables)
    if "finetune" in parts:
        for row in (PSEUDO, PLAIN):
            if missing("finetune", row):
                pseudo = own_data(plan, clip, track, count) if row == PSEUDO else None
                name = f"{clip.name}_{count}_{row.replace(' ', '_').replace('-', '')}"
                score(plan, "finetune", row, clip, count, fitted(plan, name, track, plan.prior, pseudo), meters, tables)
    say(f"{clip.name}, {count} photos: done")


def check_commands(parts: Sequence[str]) -> None:
    """SystemExit names what the installed program lacks, before anything is trained."""
    lacking = [] if "pseudo-mv" in run_command(["--help"]).output else ["the command pseudo-mv"]
    if "finetune" in parts and not avtool_offers("finetune", "--pseudo"):
        lacking.append("finetune --pseudo")
    if lacking:
        raise SystemExit(f"avtool here lacks {' and '.join(lacking)}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--portrait", type=Path, required=True, help="a static portrait, for pseudo-mv")
    parser.add_argument("--heads", type=Path, help="synthetic people")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--clips", nargs="+", default=list(ablation.CLIPS))
    parser.add_argument("--start", default="default", help="the prior that both start from, or none")
    parser.add_argument("--prior", default="default", help="of the finetune part")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--people", type=int, default=60, help="synthetic people of both priors")
    parser.add_argument("--mv-weight", type=float, default=4.0, help="how often a real person is drawn, where a synthetic one is drawn once")
    parser.add_argument("--mv-frames", type=int, default=40, help="real pictures of each pseudo-mv data set, every 5th frame")
    parser.add_argument("--threshold", type=float, help="of pseudo-mv: pictures whose own view differs by more are left out")
    parser.add_argument("--photos", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--recognizer", type=Path, help="face recognizer for identity similarity (.onnx, or a trusted .pt)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="few steps, people and frames: a smoke test, no figures")
    args = parser.parse_args(arguments)
    if "prior" in args.only and args.heads is None:
        parser.error("the part prior needs --heads")
    if "prior" in args.only and len(args.clips) < 2:
        parser.error("the part prior needs two clips or more: one is left out")
    return args


def plan_of(args: argparse.Namespace) -> tuple[Plan, TrainConfig]:
    """Settings and training configuration; in a smoke run both are cut, and views of any portrait pass."""
    quick, steps = args.quick, 3 if args.quick else args.steps
    passed = ("--threshold", "1") if quick else () if args.threshold is None else ("--threshold", str(args.threshold))
    plan = Plan(
        out=args.out, data=args.data, clips=args.clips, portrait=args.portrait, heads=args.heads, start=args.start, prior=args.prior, steps=steps,
        people=2 if quick else args.people, mv_weight=args.mv_weight, every=60 if quick else ablation.EVERY,
        mv=("--every", "5", "--max-frames", "2" if quick else str(args.mv_frames), *passed), own_mv=("--views", "8", *passed),
        fit=("--steps", "10", "--size", "64") if quick else (), size=64 if quick else args.size,
    )  # fmt: skip
    config = TrainConfig(
        steps=steps, batch_size=8, views_per_identity=2, image_size=32 if quick else 128, learning_rate=2e-3 if args.start == "none" else 1e-3,
        checkpoint_every=200, preview_every=10**6, warmup=min(100, steps),
    )  # fmt: skip
    return plan, config


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    check_commands(args.only)
    plan, config = plan_of(args)
    head, meters = load_head_model(), meters_of(args.recognizer, args.quick)
    recognizer = None if args.recognizer is None else args.recognizer.name
    protocol = {
        "portrait": digest(plan.portrait), "start": digest(plan.start), "prior": digest(plan.prior), "steps": plan.steps, "people": plan.people,
        "mv_weight": plan.mv_weight, "mv": " ".join(plan.mv), "own_mv": " ".join(plan.own_mv), "size": plan.size,
        "recognizer": recognizer, "quick": args.quick,
    }  # fmt: skip
    tables = Tables(plan.out, protocol)
    tables.notes += [f"{name} is absent: {reason}" for name, reason in meters.absent.items()]
    (plan.out / "training.json").write_text(json.dumps(config.to_dict(), indent=1), encoding="utf-8")
    for count in args.photos:
        suffix = "" if count == ablation.PHOTOS else f"_{count}_photos"
        for name in plan.clips:
            clip = ablation.load_clip(plan.data / name, plan.out / "clips" / name, head, plan.every, count)
            track = plan.out / "clips" / name / f"train{suffix}.json"
            run_clip(plan, clip, track, count, args.only, head, config, meters, tables)
    sys.stdout.write(tables.finish())
    return 0


if __name__ == "__main__":
    sys.exit(main())
