"""avtool init-points: Gaussians on the tracked head, as a PLY file that splat viewers open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console, options

if TYPE_CHECKING:
    from torch import Tensor

    from ..artifacts.track import Track
    from ..gaussians.seeding import PointBinding
    from ..head import HeadModel

PRESETS = ("test", "default", "large", "paper")
PHOTO_SIZE = 768


def _check_preset(value: str) -> str:
    if value not in PRESETS:
        raise typer.BadParameter(f"expected {', '.join(PRESETS)}, found {value!r}")
    return value


def init_points_command(
    track: Annotated[str, typer.Argument(metavar="TRACK", help="track.json, from avtool track; - for standard input.")],
    output: options.OutputOption = Path("points.ply"),
    preset: Annotated[
        str,
        typer.Option(
            metavar="PRESET", callback=_check_preset, help="UV size by name: test 64, default 128, large 256, paper 300."
        ),
    ] = "default",
    uv_size: Annotated[
        int | None, typer.Option(metavar="N", min=8, max=2048, help="UV size; overrides --preset.")
    ] = None,
    head_model: options.HeadModelOption = "anny",
    head_model_path: options.HeadModelPathOption = None,
    force: options.ForceOption = False,
    seed: options.SeedOption = 0,
    device: options.DeviceOption = "auto",
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Place Gaussians on the tracked head, one at every texel of its UV map.

    The points lie on the person's neutral head, with colors from the first picture of the track. Each names its triangle,
    its place in it and its semantic part after the usual 3DGS properties.

    Example: avtool init-points track.json -o points.ply --preset large
    """
    from ..artifacts.files import refuse_existing

    refuse_existing(output, force)

    from ..artifacts.points import Points
    from ..artifacts.track import Track
    from ..errors import AvtoolError
    from ..gaussians.initial import initial_gaussians
    from ..gaussians.seeding import UV_SIZES, seed_points
    from ..head import PARTS

    options.resolve_device(device)  # the points are few: the device is checked, the CPU does the work
    head = options.load_head(head_model, head_model_path)
    loaded = Track.load(track, head)
    if loaded.head_model != head.model_id:
        raise AvtoolError(
            f"{track}: made with head model {loaded.head_model}, this one is {head.model_id}",
            "pass the head model of the track with --head-model and --head-model-path",
        )
    binding = seed_points(head, uv_size or UV_SIZES[preset])
    colors = _photo_colors(loaded, head, binding)
    gaussians = initial_gaussians(head, loaded.params([0])[0].neutral(), binding, colors)
    points = Points(
        means=gaussians.means, quats=gaussians.quats, scales=gaussians.scales, opacities=gaussians.opacities,
        colors=gaussians.colors, face_idx=binding.face_idx, barycentrics=binding.barycentrics, part=binding.part,
        head_model=head.model_id, uv_size=binding.uv_size,
    )  # fmt: skip
    points.save(output, force)
    parts = dict(zip(PARTS, binding.part_sizes(len(PARTS)), strict=True))
    report = {"output": str(output), "points": binding.num_points, "uv_size": binding.uv_size, "parts": parts}
    console.report(report, as_json, quiet)


def _photo_colors(track: Track, head: HeadModel, binding: PointBinding) -> Tensor | None:
    """(N, 3) from the track's first picture, or None with a warning when that cannot be read."""
    from ..capture.samples import load_samples
    from ..errors import AvtoolError
    from ..gaussians.initial import colors_from_photo
    from ..gaussians.rig import point_frames

    try:
        sample = load_samples(track, [0], PHOTO_SIZE, with_matte=False)
    except AvtoolError as error:
        console.warn(f"{error}; the points are gray")
        return None
    frames = point_frames(head(sample.params[0]).vertices, head.faces, binding)
    return colors_from_photo(frames, binding.part, sample.images[0], sample.viewmats[0], sample.Ks[0])
