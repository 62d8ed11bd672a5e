"""How long the README's first command takes on a clean clone, stage by stage, and how much memory it needs.

Usage: python tests/bench/quickstart.py [--keep DIRECTORY] [--here]
Clones the repository's last commit into a temporary directory and runs examples/quickstart.sh there (--here: in this tree, with its
environment). Every command the script starts is a stage. Prints a table on standard error and JSON on standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TRACE = re.compile(r"^\++ (.*)$")
STAGES = ("avtool", "python", "pip", "uv")
LIMIT_SECONDS = 12 * 60
LIMIT_BYTES = 4 * 2**30


@contextlib.contextmanager
def clean_clone() -> Iterator[Path]:
    """The last commit in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="quickstart-") as folder:
        target = Path(folder) / "avtool"
        subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(target)], check=True)
        yield target


def is_stage(command: str) -> bool:
    """Whether a traced shell line starts a program that is worth timing."""
    try:
        words = shlex.split(command)
    except ValueError:
        return False
    return bool(words) and Path(words[0]).name.rstrip("0123456789.") in STAGES


def time_stages(tree: Path, out: Path) -> tuple[int, list[tuple[str, float]]]:
    """Runs the quickstart with the shell's trace on; seconds from each command to the next.

    Returns:
        the exit code, and (command, seconds) in order.
    """
    command = ["sh", "-x", "examples/quickstart.sh", str(out)]
    process = subprocess.Popen(command, cwd=tree, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    marks: list[tuple[str, float]] = []
    assert process.stderr is not None
    for line in process.stderr:
        traced = TRACE.match(line.rstrip())
        if traced and is_stage(traced[1]):
            marks.append((traced[1], time.monotonic()))
        if not traced:
            sys.stderr.write(line)
    code = process.wait()
    ends = [moment for _, moment in marks[1:]] + [time.monotonic()]
    return code, [(name, end - moment) for (name, moment), end in zip(marks, ends)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="put the quickstart's output here")
    parser.add_argument("--here", action="store_true", help="run in this tree instead of a clean clone")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        tree = REPOSITORY if args.here else stack.enter_context(clean_clone())
        out = args.keep.resolve() if args.keep else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started = time.monotonic()
        code, stages = time_stages(tree, out)
        seconds = time.monotonic() - started
        made = (out / "out.mp4").is_file()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # of the largest single process
    report = {
        "exit_code": code, "seconds": seconds, "peak_bytes": peak, "made_video": made,
        "within_limits": code == 0 and made and seconds < LIMIT_SECONDS and peak < LIMIT_BYTES,
        "stages": [{"command": name, "seconds": spent} for name, spent in stages],
    }  # fmt: skip
    for name, spent in stages:
        sys.stderr.write(f"{spent:8.1f} s  {name[:120]}\n")
    sys.stderr.write(f"{seconds:8.1f} s  in all; peak memory {peak / 2**30:.2f} GiB\n")
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    sys.exit(0 if report["within_limits"] else 1)


if __name__ == "__main__":
    main()
