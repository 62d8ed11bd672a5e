"""How the process is set up before torch is imported: threads that share two cores, memory that is not given back.

The program does it first of all; benches do it too, so that they time what users get. It imports nothing heavy.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_KEEP_BYTES = 1 << 30


def prepare() -> None:
    """Everything the program does before torch is imported."""
    set_threads()
    keep_memory()


def set_threads() -> None:
    """Set what torch, numba and numpy read when they start; what the user has set stays."""
    # torch and numba share OpenMP's threads. Idle ones do not spin for long: 20,000 rounds outlast the gap between two
    # operations, and give the core to others where the gap is longer.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # The landmark fit's matrices are small: numpy's threads wait for one another longer than they work.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def keep_memory() -> None:
    """Ask glibc to keep freed pictures for the next ones: fetching 8 MB of fresh pages costs as much as three convolutions."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
