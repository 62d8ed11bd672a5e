"""The identity loss: a face recognizer, which the user names, sees the same person in result and target.

Faces are aligned by the tracked head instead of a detector, so that the loss is differentiable and works on early, blurred results.

Shape legend: B samples, S x S pixels, D length of a recognizer's embedding.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avtool.cameras import project
from avtool.errors import Unavailable
from avtool.head import HeadModel, HeadParams
from avtool.metrics import ARCFACE_POINTS, ARCFACE_SIZE

# ArcFace's five points among MediaPipe's 478: the corners of each eye (their middle), nose tip, mouth corners.
_FIVE = ((33, 133), (362, 263), (4, 4), (61, 61), (291, 291))
_SEEN = 1.0  # radians: beyond it a recognizer is outside of what it was trained on


class IdentityLoss:
    """1 - cosine of a frozen recognizer's embeddings. A TorchScript file alone has gradients: ONNX is for eval."""

    def __init__(self, path: str | Path, head: HeadModel) -> None:
        file = Path(path)
        if file.suffix.lower() not in (".pt", ".torchscript"):
            raise Unavailable(f"{file}: the identity loss takes a TorchScript recognizer (.pt, .torchscript)")
        if not file.is_file():
            raise Unavailable(f"the recognizer {file} is not a file")
        try:
            self.network = torch.jit.load(str(file), map_location=head.device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise Unavailable(f"{file} cannot be read as TorchScript ({' '.join(str(error).split())[:200]})") from error
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        ids = head.landmark_ids.tolist()
        if any(point not in ids for pair in _FIVE for point in pair):
            raise Unavailable(f"the head model {head.model_id} lacks the landmarks that a recognizer is aligned by")
        self.head = head
        self.places = torch.tensor([[ids.index(point) for point in pair] for pair in _FIVE], device=head.device)

    def __call__(self, shown: Tensor, target: Tensor, params: HeadParams, viewmats: Tensor, Ks: Tensor, facing: Tensor) -> Tensor:
        """Pictures (B, S, S, 3) in [0, 1] of heads (B) by cameras; those turned away by more than _SEEN do not count."""
        with torch.no_grad():
            points = self.head.landmarks(self.head(params).vertices)
            pixels = project(points, viewmats, Ks)[0][:, self.places].mean(2)
            grid = alignment_grid(pixels, shown.shape[1])
            wanted = self._embedding(target, grid)
        distance = 1 - torch.cosine_similarity(self._embedding(shown, grid), wanted)
        return (distance * (facing <= _SEEN)).mean()

    def _embedding(self, images: Tensor, grid: Tensor) -> Tensor:
        crops = F.grid_sample(images.movedim(-1, 1), grid, padding_mode="border", align_corners=False)
        return self.network((crops * 255 - 127.5) / 128).flatten(1)


def alignment_grid(pixels: Tensor, size: int) -> Tensor:
    """Five points (B, 5, 2) in pixels -> grid_sample's grid (B, 112, 112, 2) that brings them to ArcFace's places.

    The similarity of least squares from ArcFace's crop to the picture (Umeyama 1991), in the plane written with complex numbers.
    """
    places = torch.as_tensor(ARCFACE_POINTS, dtype=pixels.dtype, device=pixels.device) + 0.5
    crop, found = (torch.view_as_complex(x.contiguous()) for x in (places, pixels))
    center, middle = crop.mean(), found.mean(1, keepdim=True)
    turn = ((crop - center).conj() * (found - middle)).sum(1, keepdim=True) / (crop - center).abs().square().sum()
    axis = torch.arange(ARCFACE_SIZE, dtype=pixels.dtype, device=pixels.device) + 0.5
    lattice = torch.complex(axis[None, :].expand(ARCFACE_SIZE, -1).contiguous(), axis[:, None].expand(-1, ARCFACE_SIZE).contiguous())
    mapped = turn[..., None] * (lattice - center) + middle[..., None]
    return 2 * torch.view_as_real(mapped) / size - 1
