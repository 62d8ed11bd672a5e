"""What the commands that train share: their options, the checks before any work, and the log."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import AvtoolError
from . import console


class Light(str, Enum):
    """Whose pictures count."""

    any = "any"
    even = "even"


DatasetArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="DATASET...",
        help="Directories of people, each with a track.json and its pictures; DATASET=WEIGHT draws a person of it that"
        " often, where 1 is usual.",
    ),
]
ConfigOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Settings as YAML, see --print-config.")]
PrintConfigOption = Annotated[bool, typer.Option("--print-config", help="Write the settings as YAML to standard output and stop.")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Number of optimization steps.")]
LightOption = Annotated[Light | None, typer.Option(help="even: leave out people whose track says that their light is uneven.")]
MaxIdentitiesOption = Annotated[int | None, typer.Option(min=1, help="Use only the first people.")]
TimeLimitOption = Annotated[float | None, typer.Option(min=1.0, metavar="SECONDS", help="Finish within this time, and save.")]
ResumeOption = Annotated[Path | None, typer.Option(metavar="CHECKPOINT", help="Go on from a checkpoint, bit for bit.")]
CheckpointOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Where checkpoints go; OUTPUT.checkpoint when left out.")
]
PreviewsOption = Annotated[Path | None, typer.Option(metavar="DIR", help="Where previews go; OUTPUT.previews when left out.")]


def check_files(dataset: list[Path] | None, output: Path, checkpoint: Path | None, resume: Path | None, force: bool) -> Path:
    """Refuses what cannot be read or may not be replaced; returns where checkpoints go."""
    from ..artifacts.files import refuse_existing

    if not dataset:
        raise typer.BadParameter("name at least one data set directory", param_hint="DATASET")
    refuse_existing(output, force)
    checkpoint = checkpoint or output.with_suffix(".checkpoint.safetensors")
    if resume is None:
        refuse_existing(checkpoint, force)
    elif not resume.is_file():
        raise AvtoolError(f"{resume}: no such checkpoint", "leave --resume out to start anew")
    return checkpoint


class TrainingLog:
    """Log lines on standard error, of the first process alone; `last` keeps the newest figures."""

    def __init__(self, quiet: bool) -> None:
        from ..prior.distributed import World

        self.is_main = World.from_environment().is_main
        self.quiet = quiet or not self.is_main
        self.last: dict[str, float] = {}
        self._console = console.get_console(self.quiet)

    def __call__(self, step: int, figures: dict[str, float]) -> None:
        """A line."""
        self.last.update(figures)
        text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self._console.print(f"step {step}: {text}", markup=False)
