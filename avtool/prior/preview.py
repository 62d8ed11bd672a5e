"""Contact sheets of training and fitting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from avtool.artifacts.files import atomic_write


def save_preview(path: str | Path, rows: Sequence[Tensor]) -> None:
    """Write rows of pictures, each (B, H, W, 3) in [0, 1], as one PNG."""
    sheet = torch.cat([torch.cat(list(row.detach().cpu()), dim=1) for row in rows])
    pixels = (sheet.clamp(0, 1) * 255).round().byte().numpy()
    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary)
