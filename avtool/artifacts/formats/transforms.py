"""Reads nerfstudio-style ``transforms.json`` with FLAME parameters, as VHAP writes them, as a Track.

What differs from our conventions, and is converted here:

- ``transform_matrix`` is camera to world in OpenGL axes (y up, z backward); ours is world to camera in OpenCV axes.
- VHAP turns K with the axes, so its ``cy`` counts from the bottom; other writers' ``cy`` counts from the top. A file is
  VHAP's when its frames name a ``timestep_index``.
- FLAME turns the whole mesh about its root joint and then shifts it; a Track keeps that rigid motion in the viewmat.
- Masks cover the whole picture and are named ``fg_mask_path`` (VHAP) or ``mask_path`` (nerfstudio).
"""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import AvtoolError, FormatError

if TYPE_CHECKING:
    from ...head import HeadModel
    from ..track import Frame, Track

MASK_KEYS = ("fg_mask_path", "mask_path")
# VHAP's names first; the others are NeRSemble's and those of common FLAME trackers.
ALIASES = {
    "shape": ("shape", "shape_params", "betas"),
    "expr": ("expr", "expression", "expression_params", "exp"),
    "rotation": ("rotation", "global_orient", "global_pose", "rot"),
    "neck_pose": ("neck_pose", "neck"),
    "jaw_pose": ("jaw_pose", "jaw"),
    "eyes_pose": ("eyes_pose", "eyes", "eye_pose"),
    "translation": ("translation", "transl", "trans"),
    "static_offset": ("static_offset",),
    "dynamic_offset": ("dynamic_offset",),
    "scale": ("scale",),
}
_WIDTHS = {"rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "translation": 3}
_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


def read_transforms(data: dict, name: str, base: Path, head: HeadModel | None) -> Track:
    """Parsed ``transforms.json`` to a Track.

    Args:
        data: the parsed file.
        name: its path, for messages.
        base: its directory; the FLAME files and pictures lie relative to it.
        head: the FLAME head model the parameters belong to; gives the root joint that FLAME turns about.

    Raises:
        FormatError: something is missing or of another shape.
        AvtoolError: the head model is missing or not FLAME.
    """
    from ..track import Track

    if not data.get("frames"):
        raise FormatError(name, "frames", "at least one frame", "none")
    if not any("flame_param_path" in frame for frame in data["frames"] if isinstance(frame, dict)):
        hint = "track the pictures instead: avtool track IMAGES -o track.json"
        raise FormatError(name, "frames[0].flame_param_path", "FLAME parameters as VHAP writes them", "nothing", hint)
    if head is None or not head.model_id.startswith("flame"):
        found = "no head model" if head is None else head.model_id
        raise AvtoolError(
            f"{name}: holds FLAME parameters, but the head model is {found}",
            "import it with: avtool track transforms.json --head-model flame --head-model-path FILE -o track.json",
        )
    cache: dict[str, dict[str, np.ndarray]] = {}
    frames, first = [], None
    for index, item in enumerate(data["frames"]):
        where = f"frames[{index}]"
        if not isinstance(item, dict) or not isinstance(item.get("flame_param_path"), str):
            raise FormatError(name, f"{where}.flame_param_path", "a path", "nothing")
        path = item["flame_param_path"]
        if path not in cache:
            cache[path] = read_flame_parameters(base / path, head)
        parameters = cache[path]
        first = parameters if first is None else first
        if not np.allclose(parameters["shape"], first["shape"], atol=1e-5):
            raise FormatError(base / path, "shape", "the same person in all frames", "another shape")
        frames.append(_frame(data, item, name, where, parameters, head))
    offsets = first.get("static_offset")
    return Track(
        head_model=head.model_id, identity=first["shape"], frames=frames, offsets=offsets, base=base,
        metadata={"source": "transforms.json"},
    )  # fmt: skip


def read_flame_parameters(path: Path, head: HeadModel) -> dict[str, np.ndarray]:
    """One FLAME npz: our names of VHAP's keys to float64 arrays cut or padded to the head model's sizes."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            raw = {key: np.asarray(archive[key], np.float64) for key in archive.files}
    except FileNotFoundError as error:
        raise AvtoolError(f"{path}: no such file", "copy the flame_param directory beside transforms.json") from error
    except (ValueError, zipfile.BadZipFile, EOFError, TypeError) as error:
        raise FormatError(path, "", "an npz file of numbers", str(error) or "something else") from error
    values = {}
    for key, names in ALIASES.items():
        found = next((raw[alias] for alias in names if alias in raw), None)
        if found is not None:
            if not np.isfinite(found).all():
                raise FormatError(path, key, "finite numbers", "NaN or infinity")
            values[key] = found
    if "shape" not in values:
        raise FormatError(path, "shape", "FLAME shape coefficients", f"only {', '.join(raw) or 'nothing'}")
    values["shape"] = _fit(path, "shape", values["shape"].reshape(-1), head.num_identity)
    values["expr"] = _fit(path, "expr", values.get("expr", np.zeros(1)).reshape(-1), head.num_expression)
    for key, width in _WIDTHS.items():
        flat = values.get(key, np.zeros(width)).reshape(-1)
        if len(flat) != width:
            raise FormatError(path, key, f"{width} numbers for one frame", len(flat))
        values[key] = flat
    if np.any(values.pop("dynamic_offset", np.zeros(1))):
        raise FormatError(path, "dynamic_offset", "none, or zeros", "offsets that change over time")
    if "static_offset" in values:
        values["static_offset"] = _offsets(path, values["static_offset"], head.num_vertices)
    return values


def _fit(path: Path, key: str, values: np.ndarray, size: int) -> np.ndarray:
    """Pads with zeros, which mean the average; cuts only what is zero."""
    if np.any(values[size:]):
        raise FormatError(path, key, f"at most {size} coefficients, as the head model has", f"{len(values)}")
    return np.concatenate([values[:size], np.zeros(max(0, size - len(values)))])


def _offsets(path: Path, values: np.ndarray, num_vertices: int) -> np.ndarray:
    """(V, 3); VHAP appends its teeth after FLAME's own vertices, and only FLAME's are kept."""
    values = values.reshape(-1, 3)
    if len(values) < num_vertices:
        raise FormatError(path, "static_offset", f"{num_vertices} vertices", f"{len(values)}")
    return values[:num_vertices]


def _frame(data: dict, item: dict, name: str, where: str, parameters: dict, head: HeadModel) -> Frame:
    from ..track import Frame

    def number(key: str) -> float:
        value = item.get(key, data.get(key))
        if not isinstance(value, (int, float)):
            raise FormatError(name, f"{where}.{key}", "a number", value)
        return float(value)

    width, height = int(number("w")), int(number("h"))
    cy = number("cy")
    if "timestep_index" in item:
        cy = height - cy
    K = np.array([[number("fl_x"), 0, number("cx")], [0, number("fl_y"), cy], [0, 0, 1]])
    to_world = np.asarray(item.get("transform_matrix", []), np.float64)
    if to_world.shape not in ((4, 4), (3, 4)):
        raise FormatError(name, f"{where}.transform_matrix", "a 4 x 4 matrix", f"shape {to_world.shape}")
    to_world = np.vstack([to_world[:3], [0, 0, 0, 1]])
    viewmat = _OPENGL_TO_OPENCV @ np.linalg.inv(to_world)
    eyes = parameters["eyes_pose"].reshape(2, 3)
    size = float(max(width, height))
    return Frame(
        image=item.get("file_path"),
        frame_idx=None,
        width=width,
        height=height,
        K=K,
        viewmat=_fold_rigid_motion(viewmat, parameters, head),
        expression=parameters["expr"],
        neck=parameters["neck_pose"],
        head=np.zeros(3),
        jaw=parameters["jaw_pose"],
        eyes=eyes,
        matte=next((item[key] for key in MASK_KEYS if isinstance(item.get(key), str)), None),
        crop=((width - size) / 2, (height - size) / 2, size),
    )


def _fold_rigid_motion(viewmat: np.ndarray, parameters: dict, head: HeadModel) -> np.ndarray:
    """World to camera for the head-model space, from FLAME's own.

    FLAME places a point p at s (R (p - J) + J) + t with the root joint J of this shape and expression. A camera does not
    see the common scale s.
    """
    import torch

    from ...head import HeadParams
    from ...rotations import axis_angle_to_matrix

    identity, expression = (
        torch.tensor(parameters[key], dtype=torch.float32, device=head.device) for key in ("shape", "expr")
    )
    _, joints = head.rest_shape(replace(HeadParams.zeros(head), identity=identity, expression=expression))
    root = joints[head.joint_names.index("root")].double().cpu().numpy()
    rotation = axis_angle_to_matrix(torch.tensor(parameters["rotation"])).numpy()
    scale = float(np.asarray(parameters.get("scale", 1.0)).reshape(-1)[0])
    rigid = np.eye(4)
    rigid[:3, :3] = rotation
    rigid[:3, 3] = root - rotation @ root + parameters["translation"] / scale
    camera = viewmat.copy()
    camera[:3, 3] /= scale
    return camera @ rigid
