"""Errors that a user can act on. The library raises them; only ``avtool.__main__`` turns them into exit codes."""

from __future__ import annotations

from pathlib import Path


class AvtoolError(Exception):
    """Something went wrong that the user can mend.

    Args:
        message: one line that names the file or value and what was expected.
        hint: the next step, as a short sentence; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class FormatError(AvtoolError):
    """A file is not what its schema says.

    Args:
        file: the file at fault.
        key: the field in it, or "" for the file as a whole.
        expected: what should be there.
        found: what is there.
        hint: the next step; may be empty.
    """

    def __init__(self, file: str | Path, key: str, expected: object, found: object, hint: str = "") -> None:
        where = f"{file}: {key}" if key else str(file)
        super().__init__(f"{where}: expected {expected}, found {found}", hint)
        self.file = str(file)
        self.key = key
        self.expected = expected
        self.found = found


class Unavailable(AvtoolError):
    """Something optional cannot be used here; the message is the reason that reports print."""


def first_line(error: BaseException) -> str:
    """The first line of another library's error, or its type when it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
