"""The losses of HeadGAP section 3.3 on rendered pictures; equations 5 to 8.

Shape legend: B samples, H x W pixels, N points, I identities, V vertices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from avtool.cameras import project
from avtool.head import PARTS, HeadModel
from avtool.losses import SSIM_WINDOW, load_lpips, ssim_map, structure_distance, threshold_l2
from avtool.prior.gapnet import Geometry
from avtool.stlpips import load_st_lpips

Perceptual = Callable[[Tensor, Tensor], Tensor]
PERCEPTUAL = ("none", "lpips", "st-lpips")

REFERENCE_SPACING = 0.35
"""Point spacing of the paper's 83,651 points on FLAME, in units of the triangles' scale: its eps_s of 0.6 is 1.7 of it.
We have fewer points on finer triangles, so the threshold is measured in spacings to mean the same at every density."""

MOUTH_PARTS = ("lip", "teeth")
MOUTH_MARGIN = 1.35  # the ellipse around lips and teeth, as a factor of their projected box


@dataclass(frozen=True)
class LossWeights:
    """The paper's weights (method.md 1.2). lpips, the weight of the perceptual term whatever its network, is 0 by default:
    the network is a download that must be asked for."""

    l1: float = 0.8
    ssim: float = 0.2
    lpips: float = 0.0  # the paper's 0.4 when the network is there
    mouth: float = 10.0
    alpha: float = 1.0
    scale: float = 1.0
    position: float = 0.01
    arap: float = 1.0
    eps_scale: float = 0.6
    eps_position: float = 1.0


def load_perceptual(name: str, weight: float, device: torch.device, weights_file: str = "") -> Perceptual | None:
    """The network of the perceptual term, one of PERCEPTUAL; None without a weight. `weights_file` is ST-LPIPS' own."""
    if name == "none" or weight == 0:
        return None
    return load_lpips(device) if name == "lpips" else load_st_lpips(device, weights_file)


def mouth_vertices(head: HeadModel) -> Tensor:
    """Indices of the vertices of lips and teeth."""
    parts = torch.tensor([PARTS.index(name) for name in MOUTH_PARTS], device=head.faces.device)
    return torch.unique(head.faces[torch.isin(head.face_part, parts)])


def mouth_mask(points: Tensor, viewmats: Tensor, Ks: Tensor, width: int, height: int) -> Tensor:
    """Pixels around the mouth (B, H, W, 1) in [0, 1]: an ellipse in the box of projected lips and teeth (B, M, 3)."""
    with torch.no_grad():
        pixels, _ = project(points, viewmats, Ks)
        low, high = pixels.amin(1), pixels.amax(1)
        center, radius = (low + high) / 2, MOUTH_MARGIN * (high - low).clamp_min(1.0) / 2
        x = torch.arange(width, device=points.device) + 0.5
        y = torch.arange(height, device=points.device) + 0.5
        dx = (x - center[:, :1]) / radius[:, :1]
        dy = (y - center[:, 1:]) / radius[:, 1:]
        return ((dx.square()[:, None, :] + dy.square()[:, :, None]) < 1).float()[..., None]


def reconstruction(
    image: Tensor, target: Tensor, weights: LossWeights, mask: Tensor | None = None, perceptual: Perceptual | None = None
) -> tuple[Tensor, Tensor]:
    """Lrec of the image (B, H, W, 3) and of its masked region (B, H, W, 1): lambda_l1 L1 + lambda_ssim (1 - SSIM) + LPIPS.

    The masked term is Lrec(I_m, I_m*): the mean runs over the whole picture, as for a picture that is black elsewhere.
    """
    difference = (image - target).abs()
    dissimilarity = 1 - ssim_map(image, target)
    whole = weights.l1 * difference.mean() + weights.ssim * dissimilarity.mean()
    region = whole.new_zeros(())
    if mask is not None:
        border = SSIM_WINDOW // 2
        inner = mask[:, border:-border, border:-border]
        region = weights.l1 * (difference * mask).mean() + weights.ssim * (dissimilarity * inner).mean()
    if perceptual is not None:
        whole = whole + weights.lpips * perceptual(image.clamp(0, 1), target)
        if mask is not None:
            region = region + weights.lpips * perceptual((image * mask).clamp(0, 1), target * mask)
    return whole, region


@dataclass(frozen=True)
class Comparison:
    """What a batch shows and should show: refined, plain, target (B, H, W, 3), alphas, mattes, mouths (B, H, W, 1) in [0, 1].

    plain is None without a refiner: the splatted picture is the result then, and stands in refined.
    """

    refined: Tensor
    plain: Tensor | None
    alphas: Tensor
    target: Tensor
    mattes: Tensor
    mouths: Tensor

    def at(self, index: Tensor) -> Comparison:
        """Some of the pictures, index (b,)."""
        columns = [getattr(self, field.name) for field in fields(self)]
        return Comparison(*(None if column is None else column[index] for column in columns))

    @property
    def pictures(self) -> list[Tensor]:
        """What is compared with the target."""
        return [self.refined] if self.plain is None else [self.refined, self.plain]


def real_terms(shown: Comparison, weights: LossWeights, perceptual: Perceptual | None) -> dict[str, Tensor]:
    """Equation 6 and coverage on pictures that were photographed or drawn."""
    whole, mouth = reconstruction(shown.refined, shown.target, weights, shown.mouths, perceptual)
    parts = {"rec": whole, "mouth": weights.mouth * mouth}
    parts["alpha"] = weights.alpha * (shown.alphas - shown.mattes).abs().mean()
    if shown.plain is not None:
        parts["plain"], _ = reconstruction(shown.plain, shown.target, weights, None, perceptual)
    return parts


def pseudo_distance(image: Tensor, target: Tensor, foreground: Tensor, perceptual: Perceptual | None = None) -> Tensor:
    """How far pictures (B, H, W, 3) are from pseudo ones on their foreground (B, H, W, 1): structure, never colors as such.

    Portrait4D-v2 (section 3.2) compares pseudo targets by LPIPS alone, on the foreground: they carry geometry, and their texture is
    whatever the program that made them could do. So does this where a perceptual network is at hand. Without one the distance is
    structure_distance(), which a tint of the target does not change.
    """
    if perceptual is None:
        return structure_distance(image, target, foreground)
    return perceptual((image * foreground).clamp(0, 1), (target * foreground).clamp(0, 1))


def pseudo_term(
    pictures: Sequence[Tensor], alphas: Tensor, target: Tensor, mattes: Tensor, weights: LossWeights,
    perceptual: Perceptual | None = None, known: Tensor | None = None, compared: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """What pseudo targets (B, H, W, 3) ask of refined and plain pictures: structure on the foreground, and coverage.

    No L1, no mouth: no color of a pseudo picture is trusted. Coverage stays, since an outline is geometry. The distance has the weight
    of the perceptual network, or SSIM's where there is none.

    Args:
        known: (B, H, W, 1) bool where the target says anything at all. compared: (B, H, W, 1) bool where structure counts, too.
    """
    uncovered, foreground = (alphas - mattes).abs(), mattes
    if known is not None:
        uncovered, foreground = uncovered * known, foreground * known
    if compared is not None:
        foreground = foreground * compared
    weight = weights.ssim if perceptual is None else weights.lpips
    distances = [weight * pseudo_distance(picture, target, foreground, perceptual) for picture in pictures]
    return torch.stack([*distances, weights.alpha * uncovered.mean()]).sum()


def mixed_terms(
    shown: Comparison, pseudo: Tensor, pseudo_weight: float, weights: LossWeights, perceptual: Perceptual | None
) -> dict[str, Tensor]:
    """real_terms() of the real pictures of a batch and "pseudo", pseudo_weight times pseudo_term(), of the others; pseudo (B,) bool.

    Sums over the pictures are divided by the size of the batch, so that a batch is the mean of its halves. Every batch has every term,
    and every parameter in its graph, as several processes need it.
    """
    real, made = (~pseudo).nonzero()[:, 0], pseudo.nonzero()[:, 0]
    share = len(real) / len(pseudo)
    zero = torch.stack([picture.sum() for picture in (*shown.pictures, shown.alphas)]).sum() * 0
    parts = {name: zero for name in ("rec", "mouth", "alpha", *(() if shown.plain is None else ("plain",)))}
    if len(real):
        parts = {name: share * value for name, value in real_terms(shown.at(real), weights, perceptual).items()}
    term = zero
    if len(made):
        part = shown.at(made)
        term = (1 - share) * pseudo_term(part.pictures, part.alphas, part.target, part.mattes, weights, perceptual)
    return {**parts, "pseudo": pseudo_weight * term + zero}


def regularization(geometry: Geometry, spacing: Tensor, weights: LossWeights) -> dict[str, Tensor]:
    """Scale and position terms on local Gaussians (I, N, .), spacing (N,): only what exceeds the thresholds costs."""
    unit = (spacing / REFERENCE_SPACING)[:, None]
    distance = geometry.means.square().sum(-1).add(1e-12).sqrt()
    return {
        "scale": weights.scale * threshold_l2(geometry.scales / unit, weights.eps_scale),
        "position": weights.position * F.relu(distance - weights.eps_position).mean(),
    }
