"""Head and neck pose by the head model's rig: from posed space back to the canonical rest pose.

Canonical space is the head model's with neck and head at rest; expressions, jaw and eyes are the planes' business. The
weights of (root, neck, head) lie on a voxel grid over the tri-planes' box.
Shape legend: B pictures, N points, J joints, V vertices, 3 groups (root, neck, head).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor, nn

from avtool.head import HeadModel, HeadParams
from avtool.portrait.triplane import BOX_CENTER, BOX_HALF, to_box
from avtool.rotations import axis_angle_to_matrix

GRID = (32, 36, 28)  # voxels along x, y, z: 14 mm, half the width over which skin weights change
_SMOOTHING = 2  # passes of a 3 x 3 x 3 mean: nearest vertices change by jumps, a field to be inverted must not
_ITERATIONS = 2
# Vertices a voxel takes its weights from: one alone would make steps between the vertices, 10 mm apart.
_NEIGHBORS = 4
# What turns with the head, lower and upper corner in meters at rest: the head from the neck up, with its hair.
_HEAD_BOX = ((-0.16, -0.08, -0.18), (0.16, 0.22, 0.18))
_FAR = 0.1  # meters: distances to the mean head are cut here


class Rig(nn.Module):
    """Carries posed points back to rest, and knows how far they are from the mean head there.

    Buffers (not stored, built from the head model): weights (1, 3, z, y, x), distance (1, 1, z, y, x) in meters,
    negative inside.
    """

    def __init__(self, head: HeadModel) -> None:
        super().__init__()
        head = head.to("cpu")
        self._names = head.joint_names
        weights, distance = _voxels(head)
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("distance", distance, persistent=False)
        for name in ("joint_template", "joint_basis"):
            self.register_buffer(name, getattr(head, name).clone(), persistent=False)
        moves = head.expression_joint_basis
        self.register_buffer("joint_motion", None if moves is None else moves.clone(), persistent=False)

    @torch.no_grad()
    def transforms(self, params: HeadParams) -> Tensor:
        """(B, 3, 3, 4) from rest to posed space of root, neck and head."""
        joints = self.joint_template + torch.einsum("...i,ijk->...jk", params.identity, self.joint_basis)
        if self.joint_motion is not None:
            joints = joints + torch.einsum("...e,ejk->...jk", params.expression, self.joint_motion)
        neck, head = axis_angle_to_matrix(params.neck), axis_angle_to_matrix(params.head)
        at_neck = joints[..., self._names.index("neck"), :]
        if "head" in self._names:
            at_head = joints[..., self._names.index("head"), :]
        else:  # as HeadModel: a model without a head joint turns the head at the neck
            neck, at_head = neck @ head, at_neck
            head = torch.eye(3, device=neck.device).expand_as(head)
        both = neck @ head
        neck_shift = at_neck - (neck @ at_neck[..., None])[..., 0]
        head_shift = (neck @ (at_head - (head @ at_head[..., None])[..., 0])[..., None])[..., 0] + neck_shift
        rest = torch.cat((torch.eye(3), torch.zeros(3, 1)), dim=-1).to(neck)
        moved = [torch.cat((m, s[..., None]), dim=-1) for m, s in _broadcast((neck, neck_shift), (both, head_shift))]
        return torch.stack((rest.expand_as(moved[0]), *moved), dim=-3)

    @torch.no_grad()
    def to_rest(self, points: Tensor, transforms: Tensor) -> Tensor:
        """Rest positions (B, N, 3) of posed points (B, N, 3): inverse linear blend skinning by fixed-point iteration.

        The weights belong to the rest position that is sought; the search starts where the head's transform leads.
        """
        rest = inverse_transform(transforms[:, 2][:, None], points)
        for _ in range(_ITERATIONS):
            weights = self.weights_at(rest)
            blended = (weights @ transforms.flatten(-2)).unflatten(-1, (3, 4))
            rest = inverse_transform(blended, points)
        return rest

    def weights_at(self, rest: Tensor) -> Tensor:
        """Weights (B, N, 3) of root, neck and head at rest points (B, N, 3)."""
        return _sample(self.weights, rest)

    @torch.no_grad()
    def distances(self, rest: Tensor) -> Tensor:
        """Signed meters (B, N) of rest points (B, N, 3) from the mean head's surface, cut at 0.1."""
        return _sample(self.distance, rest)[..., 0]


def linear_moves(head: HeadModel) -> Tensor:
    """(E + 3, V, 3) meters by which vertices move per unit of each expression and radian of the jaw about x, y and z."""
    jaw = torch.zeros(3, *head.template.shape)
    if "jaw" in head.joint_names:
        j = head.joint_names.index("jaw")
        arm = head.template - head.joint_template[j]
        axes = torch.eye(3)[:, None].expand(3, len(arm), 3)
        jaw = head.skin_weights[:, j, None] * torch.linalg.cross(axes, arm.expand_as(axes))
    return torch.cat((head.expression_basis, jaw))


def move_amounts(params: HeadParams, count: int) -> Tensor:
    """(B, E + 3) what linear_moves are multiplied with; expression and jaw have a batch of B or none."""
    return torch.cat((params.expression.expand(count, -1), params.jaw.expand(count, -1)), dim=-1)


def posed_box(transforms: Tensor) -> tuple[Tensor, Tensor]:
    """Center and half size (B, 1, 3) of a world-space box about the posed head and the bust that stays."""
    corners = torch.cartesian_prod(*transforms.new_tensor(_HEAD_BOX).unbind(-1))
    moved = corners @ transforms[:, 2, :, :3].mT + transforms[:, 2, :, 3][:, None]
    center, half = transforms.new_tensor(BOX_CENTER), transforms.new_tensor(BOX_HALF)
    low = torch.minimum(center - half, moved.amin(1, keepdim=True))
    high = torch.maximum(center + half, moved.amax(1, keepdim=True))
    return (low + high) / 2, (high - low) / 2


def _broadcast(*pairs: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Matrices (..., 3, 3) and shifts (..., 3), all of one batch shape."""
    shape = torch.broadcast_shapes(*(m.shape[:-2] for m, _ in pairs), *(s.shape[:-1] for _, s in pairs))
    return [(m.expand(*shape, 3, 3), s.expand(*shape, 3)) for m, s in pairs]


def inverse_transform(transform: Tensor, points: Tensor) -> Tensor:
    """x with A x + t = points, for transforms (..., 3, 4) = (A, t): by Cramer's rule, as A is a mean of rotations."""
    a, b, c = transform[..., :3].unbind(-1)
    y = points - transform[..., 3]
    bc = torch.linalg.cross(b, c)
    determinant = (a * bc).sum(-1, keepdim=True)
    first = (y * bc).sum(-1)
    second = (torch.linalg.cross(y, c) * a).sum(-1)
    third = (torch.linalg.cross(b, y) * a).sum(-1)
    return torch.stack((first, second, third), dim=-1) / determinant


def _sample(grid: Tensor, points: Tensor) -> Tensor:
    """Values (B, N, C) of a voxel grid (1, C, z, y, x) at points (B, N, 3) in meters; its border goes on outside."""
    at = to_box(points).reshape(1, 1, 1, -1, 3)
    found = F.grid_sample(grid, at, mode="bilinear", padding_mode="border", align_corners=False)
    return found.reshape(grid.shape[1], -1).mT.unflatten(0, points.shape[:-1])


def _voxels(head: HeadModel) -> tuple[Tensor, Tensor]:
    """Weights (1, 3, z, y, x) and signed distance (1, 1, z, y, x) at the centers of the voxels."""
    axes = [(np.arange(n) + 0.5) * (2 / n) - 1 for n in GRID]
    z, y, x = np.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
    points = np.stack((x, y, z), axis=-1).reshape(-1, 3) * np.array(BOX_HALF) + np.array(BOX_CENTER)
    near, idx = cKDTree(head.template.numpy()).query(points, k=_NEIGHBORS)
    closeness = torch.from_numpy(1 / (near + 0.005)).float()  # 5 mm: about the spacing of the vertices
    closeness = closeness / closeness.sum(-1, keepdim=True)
    weights = (_grouped_weights(head)[torch.from_numpy(idx)] * closeness[..., None]).sum(1)
    shape = (1, GRID[2], GRID[1], GRID[0], -1)
    weights = weights.reshape(shape).movedim(-1, 1)
    for _ in range(_SMOOTHING):
        weights = F.avg_pool3d(F.pad(weights, (1,) * 6, mode="replicate"), 3, 1)
    first = torch.from_numpy(idx[:, 0])
    offset = torch.from_numpy(points).float() - head.template[first]
    inside = (offset * _normals(head)[first]).sum(-1) < 0
    distance = torch.from_numpy(near[:, 0]).float().clamp_max(_FAR)
    distance = torch.where(inside, -distance, distance)
    return weights.contiguous(), distance.reshape(shape).movedim(-1, 1).contiguous()


def _grouped_weights(head: HeadModel) -> Tensor:
    """(V, 3) skin weights of root, neck and head; jaw and eyes go with what carries them."""
    groups: list[int] = []
    for name, parent in zip(head.joint_names, head.joint_parents):
        inherited = groups[parent] if parent >= 0 else 0
        groups.append({"neck": 1, "head": 2}.get(name, inherited))
    weights = torch.zeros(head.num_vertices, 3)
    return weights.index_add(1, torch.tensor(groups), head.skin_weights)


def _normals(head: HeadModel) -> Tensor:
    """(V, 3) outward normals of the template, not of unit length: the sum of its triangles' normals by area."""
    corners = head.template[head.faces]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = torch.zeros_like(head.template)
    for k in range(3):
        total = total.index_add(0, head.faces[:, k], normal)
    return total
