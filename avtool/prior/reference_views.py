"""Reference views (HeadGAP section 3.4): how a person looked before fine-tuning, from all around.

The paper renders the neutral face. Every second view of ours wears an expression that photos rarely show, so that shut
eyes and an open mouth stay as good as the prior made them.

Shape legend: M views, s x s pixels, E expressions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from avtool.cameras import intrinsics, orbit_viewmats
from avtool.head import HeadModel
from avtool.prior.avatar import Avatar
from avtool.prior.photos import lit_images
from avtool.prior.synthesis import render_channels

HEIGHT_SHARE = 0.6
"""Of the picture that the head fills."""
MAX_YAW, LOW_PITCH, HIGH_PITCH = 1.4, -0.15, 0.25
EXPRESSIONS: tuple[dict[str, float], ...] = (
    {},
    {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0},
    {},
    {"jawOpen": 0.6, "mouthUpperUpLeft": 0.3, "mouthUpperUpRight": 0.3},
)


@dataclass(frozen=True)
class ReferenceViews:
    """Cameras, expressions (M, E) and pictures (M, s, s, 3) on white."""

    viewmats: Tensor
    Ks: Tensor
    expression: Tensor
    pictures: Tensor

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
    pictures = []
    for view in range(views):
        one = slice(view, view + 1)
        gaussians = avatar.gaussians(replace(avatar.identity_params, expression=expression[one]))
        colors, alphas = render_channels(gaussians, viewmats[one], Ks[one], size, size)
        pictures.append(lit_images(colors, alphas, avatar.refiner, None, None)[0])
    return ReferenceViews(viewmats, Ks, expression, torch.cat(pictures))
