"""How the CPU kernels are compiled: cached on disk per version of their sources, and threaded without fighting torch.

numba's own cache does not notice edits in imported modules, so the cache folder's name carries a hash of every kernel
source. A cache that cannot be written costs a compilation in each process and nothing else.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import torch

KERNEL_SOURCES = (
    "render/simd.py", "render/cpu_project.py", "render/cpu_bin.py", "render/cpu_forward.py", "render/cpu_backward.py",
    "gaussians/cpu_rig.py", "cpu_ssim.py",
)  # fmt: skip
LOCK = threading.RLock()
"""Held around threaded kernels: their scratch memory is shared, and numba's work queue takes one caller at a time."""
MAX_THREADS = 16
"""Each thread keeps a gradient buffer of its own; beyond this the buffers cost more than the threads bring."""


def _user_cache() -> Path:
    if os.environ.get("NUMBA_CACHE_DIR"):
        return Path(os.environ["NUMBA_CACHE_DIR"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def cache_folder() -> Path | None:
    """Where compiled kernels are kept: the user's cache, else the temporary directory, else nowhere (None)."""
    digest = hashlib.sha256(numba.__version__.encode())
    for name in KERNEL_SOURCES:
        digest.update((Path(__file__).parent / name).read_bytes())
    name = f"kernels-{digest.hexdigest()[:16]}"
    try:
        preferred = _user_cache() / "avtool" / name
    except RuntimeError:  # no home directory can be determined
        preferred = None
    user = os.getuid() if hasattr(os, "getuid") else "user"
    fallback = Path(tempfile.gettempdir()) / f"avtool-{user}" / name
    for folder in (preferred, fallback):
        if folder is not None and _is_writable(folder):
            return folder
    return None


_CACHE_FOLDER = cache_folder()


def _compile(function: Callable[..., Any], **options: bool) -> Callable[..., Any]:
    previous = numba.config.CACHE_DIR
    if _CACHE_FOLDER is not None:
        numba.config.CACHE_DIR = str(_CACHE_FOLDER)
    try:
        return numba.njit(
            cache=_CACHE_FOLDER is not None,
            nogil=True,
            error_model="numpy",
            fastmath={"contract"},
            **options,
        )(function)
    finally:
        numba.config.CACHE_DIR = previous


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a serial kernel."""
    return _compile(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a part of a kernel, always inlined: a call would count references of every array, across threads."""
    return _compile(function, forceinline=True)


def threaded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel whose ``prange`` runs over threads."""
    return _compile(function, parallel=True)


def choose_threading_layer() -> None:
    """Ask for OpenMP where numba has it, else for its own work queue; a layer that is already running stays."""
    if os.environ.get("NUMBA_THREADING_LAYER"):
        return
    try:
        numba.threading_layer()
    except ValueError:  # no layer has been started yet
        try:
            importlib.import_module("numba.np.ufunc.omppool")
            numba.config.THREADING_LAYER = "omp"
        except ImportError:
            numba.config.THREADING_LAYER = "workqueue"


def num_threads() -> int:
    """torch's thread count, as far as numba can follow it; also sets numba's."""
    count = max(1, min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS, MAX_THREADS))
    numba.set_num_threads(count)
    return count
