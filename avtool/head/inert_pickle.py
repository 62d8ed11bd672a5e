"""Reading the arrays out of a pickle without running anything in it.

FLAME is published as a Python 2 pickle of numpy, scipy.sparse and chumpy objects. Unpickling normally lets the file
call any function. Here every name in it is looked up in a short table: numpy's array constructors are replaced by
checked ones, scipy and chumpy classes by an inert container that keeps its state as data, and everything else
is refused before it is called.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from scipy import sparse

from avtool.errors import FormatError


class Inert:
    """Stands in for an object of the file: holds its state, has no behavior."""

    origin = ""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple):  # (dict of __dict__, dict of slots)
            state = {k: v for part in state if isinstance(part, dict) for k, v in part.items()}
        self.state = state if isinstance(state, dict) else {"state": state}


class _ArrayClass:
    """Stands for numpy.ndarray: an array is only ever made by the checked functions below."""


class ForbiddenName(pickle.UnpicklingError):
    """The pickle asks for something other than arrays."""


def _empty_array(kind: type, shape: tuple, typecode: Any) -> np.ndarray:
    """numpy's _reconstruct for plain arrays only; the data follow by __setstate__."""
    if kind is not _ArrayClass:
        raise ForbiddenName("an array subclass")
    return np.ndarray((0,), dtype=np.int8)


def _scalar(dtype: np.dtype, data: Any = None) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise ForbiddenName("a scalar of objects")
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype=dtype, count=1)[0]


def _from_buffer(buffer: Any, dtype: np.dtype, shape: tuple, order: str) -> np.ndarray:
    if dtype.hasobject:
        raise ForbiddenName("an array of objects")
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _reconstructor(kind: type, base: type, state: Any) -> Inert:
    if not (isinstance(kind, type) and issubclass(kind, Inert)):
        raise ForbiddenName("copyreg._reconstructor of a live class")
    return kind()


def _new_object(kind: type, *arguments: Any) -> Inert:
    if not (isinstance(kind, type) and issubclass(kind, Inert)):
        raise ForbiddenName("copyreg.__newobj__ of a live class")
    return kind()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """_codecs.encode, which Python 3 uses to write bytes at old protocols."""
    if encoding not in ("latin1", "latin-1"):
        raise ForbiddenName(f"the codec {encoding}")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy", "ndarray"): _ArrayClass,
    ("numpy", "dtype"): np.dtype,
    ("multiarray", "_reconstruct"): _empty_array,
    ("multiarray", "scalar"): _scalar,
    ("numeric", "_frombuffer"): _from_buffer,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("copyreg", "__newobj__"): _new_object,
    ("_codecs", "encode"): _encode,
    ("builtins", "object"): object,
    ("builtins", "set"): set,
}
# How a damaged or hostile stream can fail inside the unpickler or an array's __setstate__.
_DAMAGE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)
_PYTHON2_MODULES = {"copy_reg": "copyreg", "__builtin__": "builtins"}
_NUMPY_MODULES = {f"{core}.{name}": name for core in ("numpy.core", "numpy._core") for name in ("multiarray", "numeric")}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        root = module.split(".")[0]
        if root == "chumpy" or module.startswith("scipy.sparse"):
            return type(name, (Inert,), {"origin": f"{module}.{name}"})
        key = (_NUMPY_MODULES.get(module) or _PYTHON2_MODULES.get(module, module), name)
        if key not in _ALLOWED:
            raise ForbiddenName(f"{module}.{name}")
        return _ALLOWED[key]

    def persistent_load(self, pid: Any) -> Any:
        raise ForbiddenName("a persistent object")


def load_pickled_arrays(path: str | Path) -> dict[str, Any]:
    """The dictionary in a pickle; arrays, sparse matrices and chumpy arrays come back as numpy and scipy ones.

    FormatError when the file is damaged, is not a dictionary, or asks for anything but arrays.
    """
    with open(path, "rb") as file:
        content = _unpickle(file, path)
    if not isinstance(content, dict):
        raise FormatError(path, "", "a pickled dictionary", type(content).__name__)
    return {str(k): _thaw(v, path, str(k)) for k, v in content.items()}


def _unpickle(file: BinaryIO, path: str | Path) -> Any:
    try:
        return _ArrayUnpickler(file, encoding="latin1").load()
    except ForbiddenName as error:
        raise FormatError(path, "", "a pickle of arrays only", f"{error}, which was not run") from error
    except _DAMAGE as error:
        raise FormatError(path, "", "a pickle of arrays", f"{type(error).__name__}: {error}") from error


def _thaw(value: Any, path: str | Path, key: str) -> Any:
    """Arrays from inert objects; other values as they are."""
    if not isinstance(value, Inert):
        return value
    state = value.state
    if value.origin.startswith("scipy.sparse"):
        return _thaw_sparse(value, path, key)
    inner = state.get("x")
    if isinstance(inner, Inert):
        return _thaw(inner, path, key)
    if inner is None:
        raise FormatError(path, key, "an array", f"a {value.origin} without values")
    return np.asarray(inner)


def _thaw_sparse(value: Inert, path: str | Path, key: str) -> sparse.spmatrix:
    state = value.state
    shape = state.get("_shape", state.get("shape"))
    try:
        if "indptr" in state:
            kind = sparse.csr_matrix if "csr" in value.origin else sparse.csc_matrix
            matrix: sparse.spmatrix = kind((state["data"], state["indices"], state["indptr"]), shape=shape)
        else:
            row, column = state["coords"] if "coords" in state else (state["row"], state["col"])
            matrix = sparse.coo_matrix((state["data"], (row, column)), shape=shape)
        return matrix.tocsr()  # checks that the indices fit the shape
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise FormatError(path, key, "a sparse matrix", f"{type(error).__name__}: {error}") from error
