"""Points: Gaussians bound to the triangles of a head model, as a PLY file that splat viewers open ("points/1").

Shape legend: N points.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..errors import FormatError
from ..gaussians.container import SH_C0
from .files import refuse_existing
from .formats.ply import read_ply, write_ply

SCHEMA = "points/1"
_COLUMNS = (
    "x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2",
    "rot_3", "face_idx", "bary_0", "bary_1", "bary_2", "part",
)  # fmt: skip
_OPACITY_MARGIN = 1e-4


@dataclass(frozen=True)
class Points:
    """Gaussians in world space with their binding.

    Attributes:
        means: (N, 3) metres; quats: (N, 4) wxyz; scales: (N, 3) metres; opacities: (N,); colors: (N, 3) RGB.
        face_idx: (N,) int64 triangle of the head model; barycentrics: (N, 3) place in it; part: (N,) int64 into PARTS.
        head_model: id of the head model.
        uv_size: side of the UV grid the points were seeded from.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    face_idx: Tensor
    barycentrics: Tensor
    part: Tensor
    head_model: str
    uv_size: int = 0

    @property
    def num_points(self) -> int:
        """N."""
        return len(self.means)

    def save(self, path: str | Path, force: bool = False) -> None:
        """Writes the PLY file; degree-0 color, logit opacity and log scale as 3DGS programs expect them."""
        refuse_existing(path, force)
        fractions = self.opacities.detach().double().clamp(_OPACITY_MARGIN, 1 - _OPACITY_MARGIN)
        groups = {
            "xyz": self.means,
            "normals": torch.zeros_like(self.means),
            "f_dc": (self.colors - 0.5) / SH_C0,
            "opacity": torch.logit(fractions)[:, None],
            "scale": self.scales.detach().double().log(),
            "rot": self.quats,
            "bary": self.barycentrics,
        }
        columns: dict[str, np.ndarray] = {}
        for group, values in groups.items():
            array = values.detach().cpu().numpy().astype(np.float32)
            names = {"xyz": ["x", "y", "z"], "normals": ["nx", "ny", "nz"], "opacity": ["opacity"]}.get(group)
            for i, name in enumerate(names or [f"{group}_{i}" for i in range(array.shape[1])]):
                columns[name] = array[:, i]
        columns["face_idx"] = self.face_idx.cpu().numpy().astype(np.int32)
        columns["part"] = self.part.cpu().numpy().astype(np.uint8)
        comments = [
            f"avtool.schema {SCHEMA}", f"avtool.version {__version__}", f"head_model {self.head_model}",
            f"uv_size {self.uv_size}",
        ]  # fmt: skip
        write_ply(path, columns, comments)

    @staticmethod
    def load(path: str | Path) -> Points:
        """Reads what ``save`` wrote; a plain splat file without the binding is refused."""
        columns, comments = read_ply(path)
        notes = dict(line.split(" ", 1) for line in comments if " " in line)
        if notes.get("avtool.schema") != SCHEMA:
            found = notes.get("avtool.schema", "no schema")
            raise FormatError(path, "avtool.schema", SCHEMA, found, "make one with: avtool init-points")
        missing = [name for name in _COLUMNS if name not in columns]
        if missing:
            raise FormatError(path, "properties", "the 3DGS properties and the binding", f"no {', '.join(missing)}")

        def stack(*names: str) -> Tensor:
            return torch.from_numpy(np.stack([columns[name].astype(np.float32) for name in names], axis=-1))

        return Points(
            means=stack("x", "y", "z"),
            quats=stack("rot_0", "rot_1", "rot_2", "rot_3"),
            scales=stack("scale_0", "scale_1", "scale_2").exp(),
            opacities=torch.sigmoid(stack("opacity")[:, 0]),
            colors=0.5 + SH_C0 * stack("f_dc_0", "f_dc_1", "f_dc_2"),
            face_idx=torch.from_numpy(columns["face_idx"].astype(np.int64)),
            barycentrics=stack("bary_0", "bary_1", "bary_2"),
            part=torch.from_numpy(columns["part"].astype(np.int64)),
            head_model=notes.get("head_model", ""),
            uv_size=int(notes.get("uv_size", "0")),
        )
