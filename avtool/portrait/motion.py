"""Frozen motion embeddings: what the attention of a portrait is told about a source's and a driver's expression.

Portrait4D-v2 calls it E_mot (method of arXiv 2403.13570, section 3.2). It must be frozen: the driver is a picture of the target,
and an embedding that learned along would carry the target itself. The default comes from avtool's own tracker; others are
registered by name, or are TorchScript files that the user names.

Shape legend: B samples, E expression weights, M length of an embedding, S x S pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avtool.errors import AvtoolError, FormatError
from avtool.head import HeadModel, HeadParams
from avtool.portrait.frontal import SourceView
from avtool.rotations import axis_angle_to_matrix

GAZE_UNIT = 0.4
"""Radians of eye rotation that count as much as a whole expression weight: about the comfortable limit of a glance."""
JAW_UNIT = 0.3
"""Radians of the jaw joint, where a head model has one beside its weights: an open mouth."""
TORCHSCRIPT_SIDE = 224
"""Pixels a side of the crops that a TorchScript embedding takes."""


class MotionEncoder(Protocol):
    """An embedding of motion, without gradients. `name` identifies it in a portrait's file, weights included."""

    name: str
    size: int
    reads_images: bool  # False: embed() is asked; True: embed_images()

    def embed(self, params: HeadParams) -> Tensor:
        """Tracked parameters (B, ...) -> (B, M)."""
        ...

    def embed_images(self, images: Tensor) -> Tensor:
        """Head crops (B, S, S, 3) in [0, 1] -> (B, M)."""
        ...


Loader = Callable[[str, HeadModel], MotionEncoder]
_LOADERS: dict[str, Loader] = {}


def register(name: str, loader: Loader) -> None:
    """Make an embedding known as `name`; `loader` gets what follows a colon ("name:rest", else "") and the head model."""
    if not name or ":" in name:
        raise ValueError(f"expected a name without a colon, found {name!r}")
    _LOADERS[name] = loader


def load_motion(name: str, head: HeadModel) -> MotionEncoder:
    """The embedding of a name as `register` knows it, for the parameters of a head model, on its device."""
    kind, _, rest = name.partition(":")
    if kind not in _LOADERS:
        raise AvtoolError(f"motion embedding {name!r} is unknown", f"known: {', '.join(sorted(_LOADERS))}")
    return _LOADERS[kind](rest, head)


def source_motion(encoder: MotionEncoder, source: SourceView) -> Tensor:
    """Embeddings (B, M) of sources (B,), by what the encoder reads."""
    return encoder.embed_images(source.images) if encoder.reads_images else encoder.embed(source.params)


class TrackerMotion:
    """Expression weights, gaze and jaw of the tracker: M = E + 4 + 3. Identity and the pose of head and neck are left out."""

    name = "tracker"
    reads_images = False

    def __init__(self, num_expression: int) -> None:
        self.size = num_expression + 7

    @torch.no_grad()
    def embed(self, params: HeadParams) -> Tensor:
        """Weights as they are, gaze in GAZE_UNIT, jaw in JAW_UNIT: numbers of comparable size."""
        gaze = gaze_angles(params.eyes).flatten(-2) / GAZE_UNIT
        parts = (params.expression, gaze, params.jaw / JAW_UNIT)
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], dim=-1).detach()

    def embed_images(self, images: Tensor) -> Tensor:
        """Not of this embedding: pictures must be tracked first."""
        raise ValueError("the tracker's embedding takes tracked parameters, not pictures")


def gaze_angles(eyes: Tensor) -> Tensor:
    """Axis-angle of both eyes (..., 2, 3) -> yaw to the person's left and pitch upward (..., 2, 2), radians."""
    forward = axis_angle_to_matrix(eyes)[..., :, 2]
    x, y, z = forward.unbind(-1)
    return torch.stack((torch.atan2(x, z), torch.asin(y.clamp(-1, 1))), dim=-1)


class TorchScriptMotion:
    """A user's TorchScript file: crops (B, 3, 224, 224) RGB in [0, 1] -> (B, M). It is a program: name only files you trust."""

    reads_images = True

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        file = Path(path)
        if not file.is_file():
            raise AvtoolError(f"{file}: no such motion embedding", "write it as torchscript:FILE")
        self.device = torch.device(device)
        try:
            self._network: nn.Module = torch.jit.load(str(file), map_location=self.device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise FormatError(file, "", "a TorchScript file", " ".join(str(error).split())[:200]) from error
        for parameter in self._network.parameters():
            parameter.requires_grad_(False)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        self.name = f"torchscript-{digest}"
        self.size = self._probe(file)

    def _probe(self, file: Path) -> int:
        """M, found on a gray picture."""
        try:
            found = self.embed_images(torch.full((2, TORCHSCRIPT_SIDE, TORCHSCRIPT_SIDE, 3), 0.5, device=self.device))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise FormatError(file, "", f"a network on crops (B, 3, {TORCHSCRIPT_SIDE}, {TORCHSCRIPT_SIDE})", reason) from error
        if found.dim() != 2 or len(found) != 2 or not found.is_floating_point():
            raise FormatError(file, "", "an embedding of shape (B, M)", f"shape {tuple(found.shape)}")
        return found.shape[1]

    def embed(self, params: HeadParams) -> Tensor:
        """Not of this embedding."""
        raise ValueError("this motion embedding takes pictures, not tracked parameters")

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Resampled to the network's size."""
        planes = images.movedim(-1, 1)
        if planes.shape[-1] != TORCHSCRIPT_SIDE:
            size = (TORCHSCRIPT_SIDE, TORCHSCRIPT_SIDE)
            planes = F.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True)
        return self._network(planes.contiguous()).detach()


def _tracker(rest: str, head: HeadModel) -> MotionEncoder:
    if rest:
        raise AvtoolError(f"motion embedding 'tracker:{rest}': expected nothing after tracker")
    return TrackerMotion(head.num_expression)


register("tracker", _tracker)
register("torchscript", lambda rest, head: TorchScriptMotion(rest, head.device))
