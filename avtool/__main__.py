"""The avtool program: registers the commands, and is the one place where errors become exit codes.

Exit codes: 0 done, 1 failed while working, 2 wrong usage, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import signal
import sys
import traceback
from typing import Annotated

import typer

from . import __version__
from .errors import AvtoolError
from .runtime import prepare

COMMANDS = ("track", "init-points", "synth-data", "train-prior", "train-portrait", "pseudo-mv", "invert", "finetune", "reenact", "eval")

HELP = """Make a head avatar from a few photos of a person, and drive it with a video.

The usual order is track, invert, finetune, reenact; every command says more with --help.

Example: avtool track photos/ -o track.json
"""


def _show_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"avtool {__version__}\n")
        raise typer.Exit()


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def build_app() -> typer.Typer:
    """The command tree; also read by the man page generator."""
    app = typer.Typer(
        name="avtool", help=HELP, no_args_is_help=True, add_completion=False, rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback(help=HELP)(_root)
    for name in COMMANDS:
        stem = name.replace("-", "_")
        module = importlib.import_module(f"avtool.commands.{stem}")
        app.command(name)(getattr(module, f"{stem}_command"))
    return app


def _say(line: str) -> None:
    sys.stderr.write(" ".join(line.split()) + "\n")


def _explain(error: BaseException) -> str:
    """One line for an error: what happened and what to do next."""
    if isinstance(error, AvtoolError):
        return str(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "out of memory (use fewer or smaller images, or a smaller preset)"
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or error} (check the path, its permissions and the free disk space)"
    if isinstance(error, ValueError):
        return str(error) or "a value is not valid (rerun with --verbose for details)"
    return f"unexpected {type(error).__name__}: {error} (this is a bug: rerun with --verbose and report the output)"


class _StandardError(logging.Handler):
    """The library's log lines on whatever standard error is at that moment: a progress bar puts itself in between."""

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno != logging.INFO else ""
        _say(f"avtool: {level}{record.getMessage()}")


def _start_logging(verbose: bool) -> None:
    logger = logging.getLogger("avtool")
    logger.handlers[:] = [_StandardError()]
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


def _terminate(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)


def _interrupt(signum: int, frame: object) -> None:
    """Ctrl-C, and again every second until it has come through: a C library's callback (numba's compiler has one) swallows
    the exception that is raised in it. While the stack unwinds nothing is raised, so that cleaning up is not cut short."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, 1.0)
    if signum == signal.SIGINT or sys.exc_info()[0] is None:
        raise KeyboardInterrupt


def _report_unraisable(problem: sys.UnraisableHookArgs) -> None:
    """What a callback swallows is shown, but for Ctrl-C, which comes again."""
    if not isinstance(problem.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(problem)


def _leave_interrupted() -> None:
    """Say so and end with 130. Not by sys.exit(): Python would end by the signal where it came during an import's exec()."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _say("avtool: interrupted; what was saved is complete")
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(130)


def main(args: list[str] | None = None) -> None:
    """Runs the program and exits the process with its code."""
    prepare()  # before torch is imported
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _report_unraisable
    args = sys.argv[1:] if args is None else args
    verbose = "--verbose" in args or "-v" in args
    _start_logging(verbose)
    try:
        build_app()(args, prog_name="avtool")
    except SystemExit as stop:
        if stop.code == 130:
            _leave_interrupted()
        raise
    except KeyboardInterrupt:
        _leave_interrupted()
    except BrokenPipeError:
        # The reader of our standard output has gone: nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # the border: every other error becomes one line and exit code 1
        if verbose:
            traceback.print_exc()
        _say(f"avtool: error: {_explain(error)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
