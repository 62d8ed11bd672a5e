"""Parametric head models behind one interface: `load_head_model(...)` gives a HeadModel."""

from __future__ import annotations

from pathlib import Path

import torch

from avtool.head.mesh import TriangleFrames, triangle_frames
from avtool.head.model import HeadModel
from avtool.head.params import HeadMesh, HeadParams
from avtool.head.parts import PARTS

__all__ = ["PARTS", "HeadMesh", "HeadModel", "HeadParams", "TriangleFrames", "load_head_model", "triangle_frames"]


def load_head_model(name: str = "anny", path: str | Path | None = None, device: str | torch.device = "cpu") -> HeadModel:
    """Load a head model.

    Args:
        name: "anny" (shipped) or "flame" (needs `path` to the user's own FLAME 2020 or 2023 file, .npz or .pkl).
        path: the model's file; None takes the shipped one.
        device: where its tensors go.
    """
    if name == "anny":
        from avtool.head.anny import load_anny

        return load_anny(path).to(device)
    if name == "flame":
        if path is None:
            raise ValueError("the flame head model needs the path of a FLAME .npz or .pkl file")
        from avtool.head.flame import load_flame

        return load_flame(path).to(device)
    raise ValueError(f"unknown head model {name!r}; expected 'anny' or 'flame'")
