"""The photos of one person as targets of a fit, and the light of each photo.

Shape legend: B photos, S x S pixels, N points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from avtool.artifacts.track import Track
from avtool.capture.samples import load_samples
from avtool.errors import AvtoolError
from avtool.head import HeadModel, HeadParams
from avtool.prior.objective import mouth_mask, mouth_vertices
from avtool.prior.refiner import Refiner
from avtool.prior.storage import check_head_model

MAX_PHOTOS = 24
"""A fit of a few hundred steps does not see more; of a longer track this many frames are taken, evenly spread."""


@dataclass(frozen=True)
class PhotoSet:
    """Photos on white: targets (B, S, S, 3), mattes (B, S, S, 1), cameras, tracked parameters.

    mouths (B, S, S, 1) is 1 around the mouth; outside (B, S, S, 1) bool where a crop reaches beyond its photo, and
    nothing is known of the person (shoulders go on there).
    """

    targets: Tensor
    mattes: Tensor
    viewmats: Tensor
    Ks: Tensor
    params: HeadParams
    mouths: Tensor
    outside: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def size(self) -> int:
        """S."""
        return self.targets.shape[1]


def beyond_photo(track: Track, indices: list[int], size: int) -> Tensor:
    """Pixels of the crops that lie outside of their photos, (B, S, S, 1) bool."""
    masks = []
    for frame in (track.frames[i] for i in indices):
        x0, y0, extent = (float(v) for v in frame.crop)
        # A pixel that is half outside has been mixed with the fill color.
        places = (torch.arange(size) + 0.5) / size * extent
        margin = 0.5 * extent / size
        x, y = x0 + places, y0 + places
        out_x = (x < margin) | (x > frame.width - margin)
        out_y = (y < margin) | (y > frame.height - margin)
        masks.append(out_y[:, None] | out_x[None, :])
    return torch.stack(masks)[..., None]


def load_photos(track: Track, head: HeadModel, size: int, name: str = "track") -> PhotoSet:
    """Head crops of a track's photos, on the device of the head model; a track of another head model is an error.

    Pseudo pictures, which a program made of others, are no photos.
    """
    check_head_model(name, track.head_model, head.model_id)
    photos = track.real_frames()
    if not photos:
        raise AvtoolError(f"{name}: expected photos, found {len(track.frames)} pseudo pictures only")
    count = len(photos)
    places = [round(i * (count - 1) / max(1, min(count, MAX_PHOTOS) - 1)) for i in range(min(count, MAX_PHOTOS))]
    return load_pictures(track, [photos[i] for i in places], head, size, name)


def load_pictures(track: Track, chosen: list[int], head: HeadModel, size: int, name: str) -> PhotoSet:
    """The head crops of some frames, whatever they are, on the device of the head model."""
    check_head_model(name, track.head_model, head.model_id)
    samples = load_samples(track, chosen, size, with_matte=True)
    device = head.device
    params = samples.params.to(device)
    viewmats, Ks = samples.viewmats.to(device), samples.Ks.to(device)
    with torch.no_grad():
        mouth = head(params).vertices[:, mouth_vertices(head)]
    return PhotoSet(
        targets=(samples.images * samples.mattes + 1 - samples.mattes).to(device),
        mattes=samples.mattes.to(device),
        viewmats=viewmats,
        Ks=Ks,
        params=params,
        mouths=mouth_mask(mouth, viewmats, Ks, size, size),
        outside=beyond_photo(track, chosen, size).to(device),
    )


class PhotoLight:
    """Gain and bias per photo and channel, so that photos in different light can show one person.

    They are no part of the avatar, and they are relative: over all photos the log gains and the biases have mean zero,
    so the avatar keeps the mean light, and a single photo has nothing to explain away.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.log_gains = torch.zeros(count, 3, device=device)
        self.biases = torch.zeros(count, 3, device=device)

    def parameters(self) -> list[Tensor]:
        """What a stage moves; nothing for one photo."""
        return [self.log_gains, self.biases] if len(self.log_gains) > 1 else []

    def __call__(self, colors: Tensor, alphas: Tensor, index: Tensor) -> Tensor:
        """Premultiplied rgb (B, S, S, 3) as the photos `index` (B,) show it."""
        gains = (self.log_gains - self.log_gains.mean(0))[index].exp()
        biases = (self.biases - self.biases.mean(0))[index]
        return colors * gains[:, None, None] + alphas * biases[:, None, None]


def hide(hole: Tensor, target: Tensor, pictures: tuple[Tensor, ...]) -> list[Tensor]:
    """Pictures with the target painted over a hole (B, S, S, 1): no gradient there, and no edge that SSIM would see."""
    return [torch.where(hole, target, picture) for picture in pictures]


def lit_images(
    colors: Tensor, alphas: Tensor, refiner: Refiner | None, light: PhotoLight | None, index: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Refined and plain pictures (B, S, S, 3) on white, in the light of their photos."""
    plain = colors[..., :3]
    refined = plain if refiner is None else plain + refiner.residual(colors, alphas)
    pictures = [plain] if refiner is None else [refined, plain]
    if light is not None:
        pictures = [light(picture, alphas, index) for picture in pictures]
    pictures = [picture + 1 - alphas for picture in pictures]
    return pictures[0], pictures[-1]
