"""What the source shows of the surface that a new camera sees: its pixels, for the super-resolution head.

Portrait4D-v2 brings the source's detail to the picture through its planes, whose paper sizes a CPU cannot train. The volume's depth, and
on the face the tracked shape, say where on the head every pixel of the new picture lies, the head model's expressions where that place
was in the source's expression, and the tracked pose and camera where the source shows it; so a small network, too, can keep a face sharp
where the photo is (pixel-aligned features: PIFu, arXiv 1905.05172; IBRNet, arXiv 2102.13090). What the source hides is looked up, too, and
wrong: the volume's depth from the source's own camera tells, as a shadow map does, and so do both cameras' directions and how far the
place has moved. Lids and open mouths are the business of eyes.py and mouth.py. What lies beside the source's picture has the color of
its border, so that clothes go on below.

Shape legend: B pictures, N points, S x S pixels of a result, s x s of the volume's, F texels a side of the front, E expressions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor, nn

from avtool.head import HeadModel, HeadParams
from avtool.portrait.eyes import Lids
from avtool.portrait.frontal import SourceView, colors_at, front_surface
from avtool.portrait.layers import enlarge
from avtool.portrait.mouth import Mouth, behind_lips
from avtool.portrait.rig import Rig, inverse_transform, linear_moves, move_amounts, posed_box
from avtool.portrait.triplane import to_box
from avtool.portrait.volume import pixel_rays

_FRONT_SIZE = 128  # texels a side of the mean head's front: 3.5 mm
_NEIGHBORS = 3  # vertices a texel moves with
_ITERATIONS = 3  # of the search for the place that an expression has moved to a point
_DEEP = 0.05  # meters behind the front at which a place is surely hidden from the front
_HIDDEN = 0.02  # meters behind what the source sees at which a place is surely hidden from it
_FAR = 0.01  # meters: the unit of how far a place has moved
_LIPS = (0.50, 0.37, 0.36)  # rgb of lips in the light of the average mouth's colors
_LIGHT = (0.3, 1.3)  # how much darker and brighter an average mouth may become
_FACE, _ON_FACE = ("face", "lips", "eye_l", "eye_r"), 0.008  # regions, and meters from their vertices
_STEEP = 2.0  # of the front, in meters of depth a meter, where it is no more trusted
_NEAR = 0.03  # meters along a line of sight within which a place is on the face
_GRAZING = 0.3  # cosine of the direction to the camera under which a line of sight tells no place on the front
_FADE = 0.2  # of that cosine, over which it is trusted more and more
_FAINT = 1e-3  # coverage under which there is no surface


@dataclass(frozen=True)
class DepthMap:
    """What a volume has before cameras: expected depth (B, s, s) in meters along the view axis, 0 where alpha (B, s, s) is."""

    depth: Tensor
    alpha: Tensor

    def enlarged(self, size: int) -> Tensor:
        """Depths (B, size * size) of a larger picture's pixels; premultiplied between pixels, as rays beside the head have no depth."""
        factor = size // self.depth.shape[-1]
        covered = enlarge(self.alpha[:, None], factor)
        return (enlarge((self.depth * self.alpha)[:, None], factor) / covered.clamp_min(_FAINT)).flatten(1)

    def behind(self, at: Tensor) -> Tensor:
        """How far (B, N), in [-1, 1], points lie behind what is seen at (B, N, 3): picture coordinates in [-1, 1] and depth. 0 where
        nothing is seen."""
        maps = torch.stack((self.depth * self.alpha, self.alpha), dim=1)
        weighted, covered = F.grid_sample(maps, at[:, None, :, :2], padding_mode="zeros", align_corners=False)[:, :, 0].unbind(1)
        return ((at[..., 2] - weighted / covered.clamp_min(_FAINT)) / _HIDDEN).clamp(-1, 1) * covered


class SourceLookup(nn.Module):
    """Fetches a source's colors for the pixels of a volume-rendered picture; without weights of its own.

    Buffers (not stored, built from the head model): front (1, 1, F, F), depth z in meters of the mean head's front at rest; face (1, 1, F, F),
    how much of it is the face, in [0, 1]; moves
    (E + 3, 3, F, F), meters by which it moves per unit of each expression and radian of the jaw about x, y and z; shapes (I, 3, F, F),
    meters by which it moves per unit of each identity coefficient.
    """

    def __init__(self, head: HeadModel) -> None:
        super().__init__()
        surface = front_surface(head.to("cpu"), _FRONT_SIZE)
        self.register_buffer("front", surface[None, None, ..., 2].contiguous(), persistent=False)
        self.register_buffer("face", _face_texels(head.to("cpu"), surface)[None, None], persistent=False)
        moves, shapes = _front_moves(head.to("cpu"), surface)
        self.register_buffer("moves", moves, persistent=False)
        self.register_buffer("shapes", shapes, persistent=False)
        self.mouth, self.lids = Mouth.of(head.to("cpu")), Lids.of(head.to("cpu"))

    @torch.no_grad()
    def forward(
        self, source: SourceView, own: DepthMap, rig: Rig, params: HeadParams, viewmats: Tensor, Ks: Tensor, seen: DepthMap, size: int
    ) -> Tensor:
        """LOOKUP_CHANNELS (B, 12, S, S): rgb in [0, 1], unit vectors toward the source's and the new camera in the head's rest frame,
        how deep behind the front, in [0, 1], how far the place is from where the source's expression has it, in centimeters, and how far
        behind what the source sees there, in [-1, 1].

        Args:
            source: B of them, and what the volume has before their cameras. params: (B,) expression, jaw, neck and head of the new
                picture, posed by `rig`. viewmats, Ks: (B,) new cameras, Ks in pixels of the S x S result. seen: what the volume has there.
        """
        transforms = rig.transforms(params).expand(len(seen.depth), 3, 3, 4)
        rays = pixel_rays(viewmats, Ks, size, size, *posed_box(transforms))
        rest = rig.to_rest(rays.origins + rays.directions * seen.enlarged(size)[..., None], transforms)
        eye = F.normalize(inverse_transform(transforms[:, 2][:, None], rays.origins) - rest, dim=-1)
        rest = self.on_face(params, rest, eye)
        there = self.in_expression_of(source.params, rest, params)
        if self.lids is not None:
            there = self.lids.places(source.params, params, rest, there)
        moved = (there - rest).norm(dim=-1) / _FAR
        opening = torch.zeros_like(moved)
        if self.mouth is not None:
            there, opening = self.mouth.places(source.params, params, rest, there, eye)
        rgb, toward, at = colors_at(source, rig.transforms(source.params), there, rig.weights_at(there), outside="border")
        if self.mouth is not None:
            # Where both mouths are open by the same amount, nothing is unknown: not even at the rims, where neither is sure.
            unknown = (opening - self.mouth.shown(source.params, there, toward.mT)).clamp_min(0)
            light = (rgb / rgb.new_tensor(_LIPS)[:, None]).clamp(*_LIGHT)  # of the lips that are there in the source
            rgb = torch.lerp(rgb, light * self.mouth.colors(params, behind_lips(rest, eye)).mT, unknown[:, None])
        behind = ((_at_front(self.front, rest)[..., 0] - rest[..., 2]) / _DEEP).clamp(0, 1)
        # Behind the lips the place is known, whatever the skin before it does.
        doubts = torch.stack((behind, moved * (1 - opening), own.behind(at) * (1 - opening)), dim=1)
        return torch.cat((rgb, toward, eye.mT, doubts), dim=1).unflatten(-1, (size, size))

    def in_expression_of(self, wanted: HeadParams, points: Tensor, params: HeadParams) -> Tensor:
        """Where rest points (B, N, 3) of a head with the expression and jaw of `params` are with those of `wanted`, (B, N, 3) meters.

        Each moves with the place of the front before it, which is that of the person's shape (of `params`); the neutral place is found by
        fixed-point iteration, and from it that on the mean head.
        """
        here, there = self._moves_of(params, len(points)), self._moves_of(wanted, len(points))
        mean = self._on_mean(points, here + self._shape_of(params, len(points)))
        return points + _at_front(there - here, mean)

    def on_face(self, params: HeadParams, points: Tensor, eye: Tensor) -> Tensor:
        """Rest points (B, N, 3) that are near the face of params, moved onto it along the lines of sight (B, N, 3), unit vectors toward a camera.

        The face's shape is tracked, and better known than the depth of a volume of a few thousand rays.
        """
        moved = self._moves_of(params, len(points)) + self._shape_of(params, len(points))
        found = points
        for _ in range(_ITERATIONS):
            mean = self._on_mean(found, moved)
            at = _at_front(torch.cat((self.front, self.face), dim=1), mean)
            height = at[..., 0] + _at_front(moved, mean)[..., 2]
            found = found + eye * ((height - found[..., 2]) / eye[..., 2].clamp_min(_GRAZING))[..., None]
        gap = (found - points).norm(dim=-1)
        facing = ((eye[..., 2] - _GRAZING) / _FADE).clamp(0, 1)
        trust = at[..., 1] * ((_NEAR - gap) / (0.5 * _NEAR)).clamp(0, 1) * facing
        return torch.lerp(points, found, trust[..., None])

    def _on_mean(self, points: Tensor, moved: Tensor) -> Tensor:
        """Where points (B, N, 3) that have moved with the front by (B, 3, F, F) were before, by fixed-point iteration."""
        mean = points
        for _ in range(_ITERATIONS):
            mean = points - _at_front(moved, mean)
        return mean

    def _shape_of(self, params: HeadParams, count: int) -> Tensor:
        """(B, 3, F, F) meters by which the front of a person is from the mean head's."""
        return torch.einsum("bi,ixyz->bxyz", params.identity.expand(count, -1), self.shapes)

    def _moves_of(self, params: HeadParams, count: int) -> Tensor:
        """(B, 3, F, F) meters by which the front has moved from neutral; expression and jaw have a batch of B or none."""
        return torch.einsum("be,exyz->bxyz", move_amounts(params, count), self.moves)


def _at_front(grid: Tensor, points: Tensor) -> Tensor:
    """Values (B, N, C) of a grid (B or 1, C, F, F) on the front at rest points (B, N, 3); its border goes on outside."""
    at = to_box(points)[:, None, :, :2]
    return F.grid_sample(grid.expand(len(points), -1, -1, -1), at, padding_mode="border", align_corners=False)[:, :, 0].mT


def _face_texels(head: HeadModel, surface: Tensor) -> Tensor:
    """(F, F) in [0, 1]: where the front (F, F, 3) is the face and not its sides, which are steep; smooth at the border."""
    face = head.faces[head.region_mask(*(name for name in _FACE if name in head.region_names))].unique()
    near, _ = cKDTree(head.template[face].numpy()).query(surface.reshape(-1, 3).numpy())
    within = torch.from_numpy(near < _ON_FACE).float().reshape(surface.shape[:2])
    x, y, z = (surface[..., k] for k in range(3))
    across, up = torch.gradient(z, dim=1)[0] / (x[0, 1] - x[0, 0]), torch.gradient(z, dim=0)[0] / (y[1, 0] - y[0, 0])
    flat = ((_STEEP - torch.hypot(across, up)) / (0.5 * _STEEP)).clamp(0, 1)
    return F.avg_pool2d((within * flat)[None], 5, 1, 2)[0]


def _front_moves(head: HeadModel, surface: Tensor) -> tuple[Tensor, Tensor]:
    """(E + 3, 3, F, F) of linear_moves and (I, 3, F, F) of the identity basis, of the vertices nearest to the front (F, F, 3)."""
    near, idx = cKDTree(head.template.numpy()).query(surface.reshape(-1, 3).numpy(), k=_NEIGHBORS)
    closeness = torch.from_numpy(1 / (np.asarray(near) + 0.001)).float()
    closeness = closeness / closeness.sum(-1, keepdim=True)
    bases = (linear_moves(head), head.identity_basis)
    mixed = [torch.einsum("enkd,nk->end", basis[:, torch.from_numpy(idx)], closeness) for basis in bases]
    moves, shapes = (basis.mT.unflatten(-1, surface.shape[:2]).contiguous() for basis in mixed)
    return moves, shapes
