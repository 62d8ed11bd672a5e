"""New cameras for a moment that one camera saw: turned about the posed head, so that the head stays where it is in the picture.

Shapes: B moments, N views of each, V vertices. Angles are radians relative to the real camera, in its own axes: positive yaw moves
the camera to the right of the picture (the left of a person who faces it), positive pitch to the top.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from avtool.head import HeadModel
from avtool.rotations import axis_angle_to_matrix

# Steps of additive sequences that fill an interval evenly however long they go on: the golden ratio, and the first of the two
# of the plastic number (Roberts' R2), so that yaw and pitch do not keep in step.
_GOLDEN = (math.sqrt(5) - 1) / 2
_PLASTIC = 0.7548776662466927


def view_angles(moment: int, views: int, yaw: float, pitch: float, spread: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Yaws and pitches (N,) of the views of one moment, within +-yaw and +-pitch.

    Args:
        moment: its number; every moment has other angles.
        spread: one yaw in each N-th of the range, shifted from moment to moment so that all moments together cover it; False
            draws at random.
        seed: where the sequences start, or of the random draws.
    """
    if spread:
        start = torch.rand(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
        places = torch.arange(views, dtype=torch.float64)
        across = (places + (start[0] + moment * _GOLDEN) % 1) / views
        along = (start[1] + (moment * views + places) * _PLASTIC) % 1
    else:
        generator = torch.Generator().manual_seed(hash((seed, moment)) % 2**63)
        across, along = torch.rand(2, views, generator=generator, dtype=torch.float64)
    return (yaw * (2 * across - 1)).float(), (pitch * (2 * along - 1)).float()


def turned_viewmats(viewmats: Tensor, centers: Tensor, yaws: Tensor, pitches: Tensor) -> Tensor:
    """Cameras (B, N, 4, 4) that circle points of the world at their own distance.

    The whole camera is carried about the point, so that the point keeps its pixel and its depth, and the real K fits every view.

    Args:
        viewmats: (B, 4, 4) real cameras. centers: (B, 3) what is circled. yaws, pitches: (B, N).
    """
    point = (viewmats[:, :3, :3] @ centers[:, :, None] + viewmats[:, :3, 3:])[:, None]  # (B, 1, 3, 1) of the real camera
    zero = torch.zeros_like(yaws)
    about_x = axis_angle_to_matrix(torch.stack((pitches, zero, zero), -1))
    about_y = axis_angle_to_matrix(torch.stack((zero, yaws, zero), -1))
    turn = about_x @ about_y  # from the axes of the real camera to those of the new one
    rigid = torch.eye(4, dtype=viewmats.dtype, device=viewmats.device).repeat(*yaws.shape, 1, 1)
    rigid[..., :3, :3] = turn
    rigid[..., :3, 3:] = point - turn @ point
    return rigid @ viewmats[:, None]


def head_centers(head: HeadModel, vertices: Tensor) -> Tensor:
    """Middle (B, 3) of what turns with the head of posed meshes (B, V, 3), in meters."""
    carrier = "head" if "head" in head.joint_names else "neck"
    carried = [False] * len(head.joint_names)
    for j, (name, parent) in enumerate(zip(head.joint_names, head.joint_parents)):
        carried[j] = name == carrier or (parent >= 0 and carried[parent])
    turning = head.skin_weights[:, torch.tensor(carried, device=head.device)].sum(1) > 0.5
    points = vertices[:, turning]
    return (points.amin(1) + points.amax(1)) / 2
