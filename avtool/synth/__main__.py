"""`python -m avtool.synth -o heads/`: makes a data set of synthetic people. See dataset.py."""

import argparse
import sys
import time

from avtool.errors import AvtoolError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m avtool.synth",
        description="Draw synthetic people from many views: images, mattes and a track.json of exact parameters, one directory a person. "
        "Runs of the same seed agree; an interrupted run goes on where it stopped.",
        epilog="Example: python -m avtool.synth -o heads/ --identities 64 --views 24 --size 256 --jobs 8",
    )
    parser.add_argument("-o", "--output", required=True, help="directory to write")
    parser.add_argument("--identities", type=int, default=64, help="people (default 64)")
    parser.add_argument("--views", type=int, default=24, help="images a person (default 24)")
    parser.add_argument("--expressions", type=int, default=0, help="different moments a person; 0: one a view (default)")
    parser.add_argument("--size", type=int, default=256, help="pixels a side (default 256)")
    parser.add_argument("--samples", type=int, default=2, help="samples a pixel side (default 2)")
    parser.add_argument("--light-variety", type=float, default=1.0, help="0: the same even light on all; 1: varied (default)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--assets", default=None, help="folder of MakeHuman's CC0 assets: photographic skins, irises, hair")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = _parser().parse_args(arguments)
    from avtool.synth.dataset import DatasetOptions, make_dataset

    start = time.monotonic()

    def progress(done: int, total: int) -> None:
        if options.quiet:
            return
        spent = time.monotonic() - start
        print(f"\r{done}/{total} people, {spent:.0f} s, {spent / done * (total - done):.0f} s to go  ", end="", file=sys.stderr, flush=True)

    fields = ("identities", "views", "expressions", "size", "seed", "samples", "light_variety", "assets")
    try:
        chosen = DatasetOptions(**{name: getattr(options, name) for name in fields}, texture_size=1024 if options.size <= 320 else 2048)
        make_dataset(options.output, chosen, options.jobs, progress)
    except (AvtoolError, ValueError, OSError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command to go on", file=sys.stderr)
        return 130
    if not options.quiet:
        print(f"\n{options.output}: {options.identities} people x {options.views} views in {time.monotonic() - start:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
