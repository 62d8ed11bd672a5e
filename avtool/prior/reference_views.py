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
"""Difference of a color from the neutral face's that counts as changed by the expression."""
MAX_YAW, LOW_PITCH, HIGH_PITCH = 1.4, -0.15, 0.25
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
    pictures, changed = [], []
    for view in range(views):
        one = slice(view, view + 1)
        both = torch.cat((expression[one], torch.zeros_like(expression[one])))
        gaussians = avatar.gaussians(replace(avatar.identity_params, expression=both))
        shown, neutral = (
            lit_images(*render_channels(gaussians[k : k + 1], viewmats[one], Ks[one], size, size), avatar.refiner, None, None)[0]
            for k in (0, 1)
        )
        pictures.append(shown)
        changed.append(spread((shown - neutral).abs().amax(-1) > CHANGE))
    return ReferenceViews(viewmats, Ks, expression, torch.cat(pictures), torch.cat(changed)[..., None])


def spread(mask: Tensor) -> Tensor:
    """A mask (B, s, s) grown by about a fiftieth of the side, as floats."""
    grown = max(1, mask.shape[-1] // 50)
    return F.max_pool2d(mask.float()[:, None], 2 * grown + 1, 1, grown)[:, 0]
