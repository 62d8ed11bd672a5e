"""Safe writing: nothing half-written, nothing overwritten unasked."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import AvtoolError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary sibling path with the same suffix; on success it is synced and renamed to ``path``.

    When the body raises (Ctrl-C included) the temporary file is removed and ``path`` stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_existing(path: str | Path | None, force: bool) -> None:
    """Checks an output path before any work starts; None and "-" (standard output) pass.

    Raises:
        AvtoolError: the file exists and ``force`` is not set, or it could not be written.
    """
    if path is None or str(path) == "-":
        return
    path = Path(path)
    if path.is_dir():
        raise AvtoolError(f"{path}: expected a file to write, found a directory", "name a file inside it")
    if path.exists() and not force:
        raise AvtoolError(f"{path}: already exists", "pass --force to overwrite it, or choose another --output")
    parent = path.parent
    if not parent.is_dir():
        raise AvtoolError(f"{path}: the directory {parent} does not exist", f"create it with: mkdir -p '{parent}'")
    probe = parent / f".{secrets.token_hex(6)}.tmp"
    try:
        # os.access() is no answer for root and for read-only mounts: only a real file is.
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise AvtoolError(
            f"{path}: cannot write into {parent}: {reason}", "choose another --output or mend the permissions"
        ) from error


def sha256_file(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
