"""Settings as a frozen dataclass whose fields are numbers, texts or dataclasses of such: from YAML, strictly checked."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from avtool.errors import AvtoolError, FormatError

Settings = TypeVar("Settings")


def merged(data: object, file: str, base: Settings, prefix: str = "") -> Settings:
    """Settings over a base; an unknown key is an error that names it and the known ones.

    A value has the type of the default; a field whose default is None takes None or a whole number.
    """
    if data is None and not prefix:
        return base
    if not isinstance(data, dict):
        raise FormatError(file, prefix.rstrip("."), "a mapping of settings", type(data).__name__)
    defaults, values = type(base)(), {}
    known = [prefix + field.name for field in fields(base)]
    for key, value in data.items():
        name = prefix + str(key)
        if name not in known:
            raise AvtoolError(f"{file}: unknown setting {name!r}", f"known: {', '.join(known)}")
        default = getattr(defaults, key)
        if is_dataclass(default):
            values[key] = merged(value, file, getattr(base, key), f"{name}.")
        else:
            values[key] = _checked(file, name, value, default)
    return replace(base, **values)


def read_yaml(path: str | Path, command: str) -> Any:
    """What a YAML file of settings holds; `command` writes one with --print-config."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AvtoolError(f"{path}: no such file", f"write one with: avtool {command} --print-config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FormatError(path, "", "YAML", " ".join(str(error).split())) from error


def _checked(file: str, key: str, value: object, default: object) -> object:
    """A value of the type of the default; int passes for float, nothing else does."""
    if value is None and default is None:
        return None
    kind = int if default is None else type(default)
    if kind is float and isinstance(value, str):
        try:
            value = float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise FormatError(file, key, kind.__name__, repr(value))
    return value
