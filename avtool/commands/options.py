"""Options that commands share, as Annotated types: a command picks the default, the meaning is written once."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import AvtoolError

if TYPE_CHECKING:
    import torch

_LOGGER = logging.getLogger(__name__)
_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d+)?")


def _check_device(value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise typer.BadParameter(f"expected auto, cpu, cuda or cuda:N (mps and xpu mean cpu), found {value!r}")
    return value


OutputOption = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")]
ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Overwrite existing output files.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random choice.")]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="DEVICE", callback=_check_device, help="auto, cpu, cuda or cuda:N; mps and xpu mean cpu.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and errors.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Say more; show the traceback of an error.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Write a machine-readable report to standard output.")]
HeadModelOption = Annotated[
    str, typer.Option("--head-model", metavar="NAME", help="The parametric head: anny (shipped) or flame (your file).")
]
HeadModelPathOption = Annotated[
    Path | None,
    typer.Option("--head-model-path", metavar="FILE", help="Your FLAME 2020 or 2023 file (pickle or npz)."),
]


def resolve_device(name: str) -> torch.device:
    """"auto", "cpu" or "cuda[:N]" to a torch device; "auto" takes CUDA when there is one, others are the CPU with a note."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        # Half of a step is splatting, which has no kernels there: pictures would go back and forth.
        _LOGGER.warning("no rasterizer for %s: using the CPU", name)
        return torch.device("cpu")
    if device.type == "cuda":
        available = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= available:
            raise AvtoolError(f"--device {name}: found {available} CUDA devices", "use --device cpu")
    return device


def load_head(name: str, path: Path | None, device: torch.device | str = "cpu"):
    """The HeadModel that --head-model and --head-model-path name; the file is checked first."""
    from ..head import load_head_model

    if name not in ("anny", "flame"):
        raise AvtoolError(f"--head-model {name}: expected anny or flame", "leave it out for the shipped head")
    if name == "flame" and path is None:
        raise AvtoolError(
            "--head-model flame: the FLAME file is missing",
            "pass yours with --head-model-path FILE; its licence does not allow shipping it",
        )
    if path is not None and not path.is_file():
        raise AvtoolError(f"{path}: no such file", "check --head-model-path")
    return load_head_model(name, path=path, device=device)
