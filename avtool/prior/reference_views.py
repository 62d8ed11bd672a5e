"""Reference views (HeadGAP section 3.4): how a person looked before fine-tuning, from all around.

The paper renders the neutral face. Every second view of ours wears an expression that photos rarely show, so that shut
eyes and an open mouth stay as good as the prior made them.

Shape legend: M views, s x s pixels, E expressions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from avtool.cameras import intrinsics, orbit_viewmats
from avtool.head import HeadModel
from avtool.prior.avatar import Avatar
from avtool.prior.photos import lit_images
from avtool.prior.synthesis import render_channels

HEIGHT_SHARE = 0.6
"""Of the picture that the head fills."""
CHANGE = 0.05
"""Difference of a color, in [0, 1], from the neutral face's that counts as changed: above what shading alone does, below a lid's."""
MAX_YAW, LOW_PITCH, HIGH_PITCH = 1.4, -0.15, 0.25  # radians: from profile to profile, a little from below and from above
# One view after the other. Half are the paper's neutral; the open mouth is as wide as talking people open it.
EXPRESSIONS: tuple[dict[str, float], ...] = (
    {},
    {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0},
    {},
    {"jawOpen": 0.6, "mouthUpperUpLeft": 0.3, "mouthUpperUpRight": 0.3},
)


@dataclass(frozen=True)
class ReferenceViews:
    """Cameras, expressions (M, E), pictures (M, s, s, 3) on white, and where an expression changes them (M, s, s, 1)."""

    viewmats: Tensor
    Ks: Tensor
    expression: Tensor
    pictures: Tensor
    changed: Tensor

    def __len__(self) -> int:
        return len(self.pictures)


def reference_cameras(center: Tensor, height: float, views: int, size: int) -> tuple[Tensor, Tensor]:
    """Cameras around the head in two rings: viewmats (M, 4, 4), Ks (M, 3, 3).

    Args: center (3,) of the head, its height in metres.
    """
    columns = max(1, (views + 1) // 2)
    yaws = torch.linspace(-MAX_YAW, MAX_YAW, columns).repeat(2)[:views]
    pitches = torch.cat((torch.full((columns,), LOW_PITCH), torch.full((columns,), HIGH_PITCH)))[:views]
    distance = 1.0
    viewmats = orbit_viewmats(yaws, pitches, distance, center.cpu())
    K = intrinsics(HEIGHT_SHARE * size * distance / height, size, size)
    return viewmats.to(center.device), K.expand(views, 3, 3).to(center.device)


def reference_expressions(head: HeadModel, views: int) -> Tensor:
    """Expressions (M, E) of the views; a yaw that shows one in the lower ring shows another in the upper.

    A head model without shapes of these names stays neutral.
    """
    columns = max(1, (views + 1) // 2)
    expression = torch.zeros(views, head.num_expression, device=head.device)
    for view in range(views):
        for name, weight in EXPRESSIONS[(view + 2 * (view // columns)) % len(EXPRESSIONS)].items():
            if name in head.expression_names:
                expression[view, head.expression_index(name)] = weight
    return expression


@torch.no_grad()
def make_reference_views(avatar: Avatar, views: int, size: int) -> ReferenceViews:
    """Pictures of an avatar as it is."""
    vertices = avatar.head(avatar.identity_params).vertices
    skull = vertices[avatar.head.skin_weights.argmax(1) >= avatar.head.joint_names.index("neck")]
    low, high = skull.amin(0), skull.amax(0)
    viewmats, Ks = reference_cameras((low + high) / 2, float(high[1] - low[1]), views, size)
    expression = reference_expressions(avatar.head, views)

    def draw(view: int, worn: Tensor) -> Tensor:
        """The picture (1, s, s, 3) of a view with an expression (E,)."""
        one = slice(view, view + 1)
        gaussians = avatar.gaussians(replace(avatar.identity_params, expression=worn[None]))
        channels = render_channels(gaussians, viewmats[one], Ks[one], size, size)
        return lit_images(*channels, avatar.refiner, None, None)[0]

    pictures = torch.cat([draw(view, worn) for view, worn in enumerate(expression)])
    changed = torch.zeros(*pictures.shape[:3], 1, device=pictures.device)
    for view in torch.nonzero(expression.any(1)).flatten().tolist():
        neutral = draw(view, torch.zeros_like(expression[view]))[0]
        changed[view, ..., 0] = grow((pictures[view] - neutral).abs().amax(-1) > CHANGE)
    return ReferenceViews(viewmats, Ks, expression, pictures, changed)


def grow(mask: Tensor) -> Tensor:
    """A mask (s, s) with a margin of about a fiftieth of the side, as floats: SSIM's window looks that far around."""
    margin = max(1, mask.shape[-1] // 50)
    return F.max_pool2d(mask.float()[None, None], 2 * margin + 1, 1, margin)[0, 0]
