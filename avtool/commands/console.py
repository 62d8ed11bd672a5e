"""What a command says: talk and progress on standard error, data alone on standard output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Step = Callable[[int, int, str], None]


def get_console(quiet: bool = False) -> Console:
    """A console on standard error; a quiet one prints nothing. rich honors NO_COLOR by itself."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)


def warn(message: str) -> None:
    """One warning line on standard error; shown even when quiet."""
    get_console().print(f"warning: {message}", markup=False, style="yellow")


@contextmanager
def progress(task: str, quiet: bool = False) -> Iterator[Step]:
    """Yields ``step(done, total, message)``: a bar with the time left on a terminal, one closing line elsewhere.

    Args:
        task: what is being done, for example "tracking".
        quiet: say nothing.
    """
    console = get_console(quiet)
    started = time.monotonic()
    if quiet:
        yield lambda done, total, message="": None
        return
    if console.is_terminal:
        with _bar(console, task) as step:
            yield step
        return
    last = {"done": 0, "total": 0, "message": ""}

    def step(done: int, total: int, message: str = "") -> None:
        last.update(done=done, total=total, message=message or last["message"])

    yield step
    parts = [f"{last['done']}/{last['total']}"] if last["total"] else []
    parts += [str(last["message"])] if last["message"] else []
    console.print(f"{task}: {', '.join([*parts, f'{time.monotonic() - started:.1f} s'])}", markup=False)


@contextmanager
def _bar(console: Console, task: str) -> Iterator[Step]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[message]}", markup=False),
    )
    with Progress(*columns, console=console) as display:
        identifier = display.add_task(task, total=None, message="")

        def step(done: int, total: int, message: str = "") -> None:
            fields = {"message": message} if message else {}
            display.update(identifier, completed=done, total=total, **fields)

        yield step


def report(data: dict, as_json: bool = False, quiet: bool = False) -> None:
    """Closes a command: ``data`` as JSON on standard output, or as "key: value" lines on standard error."""
    if as_json:
        sys.stdout.write(json.dumps(data, indent=2, default=str, ensure_ascii=False) + "\n")
        return
    console = get_console(quiet)
    for key, value in data.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        console.print(f"{key.replace('_', ' ')}: {text}", markup=False)
