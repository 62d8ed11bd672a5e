"""Portrait: one photo -> a tri-plane head that a motion embedding drives (Psi of Portrait4D-v2, arXiv 2403.13570).

encode() sees the source once; planes() poses its expression; render() turns it by the head model's rig and draws it.
Shape legend: B pictures, S full size, s low size, N tokens, D channels, M motion embedding, P plane side, C its channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avtool.head import HeadModel, HeadParams
from avtool.portrait.config import PortraitConfig
from avtool.portrait.encoders import DetailEncoder, GlobalEncoder
from avtool.portrait.frontal import Frontalizer, SourceView
from avtool.portrait.layers import with_coordinates
from avtool.portrait.lookup import DepthMap, SourceLookup
from avtool.portrait.rig import Rig, posed_box
from avtool.portrait.storage import check_shapes, fill_portrait, portrait_file, read_portrait, write_portrait
from avtool.portrait.triplane import PlaneDecoder, PlaneField, to_box
from avtool.portrait.upsampler import Upsampler
from avtool.portrait.vit import Transformer
from avtool.portrait.volume import Rendered, pixel_rays, render_rays

# Per meter, of a softplus of 1: a surface must become opaque within a centimeter.
DENSITY_UNIT = 100.0
# Logit of the first fog: with 1.8 per meter the box lets half of the light through.
FOG_LOGIT = -4.0
# The mean head's logit falls from +4 to -4 over this many meters on either side of its surface.
_SURFACE = 0.02


@dataclass(frozen=True)
class Encoded:
    """What a source picture gives: tokens (B, N, D), detail (B, E, Q, Q) and, where it is frontalized, front (B, 6, S, S); and itself."""

    tokens: Tensor
    detail: Tensor
    front: Tensor | None
    source: SourceView

    def __getitem__(self, idx: slice | Tensor) -> Encoded:
        return Encoded(self.tokens[idx], self.detail[idx], None if self.front is None else self.front[idx], self.source[idx])


@dataclass(frozen=True)
class PortraitPicture:
    """A foreground, premultiplied on black: image (B, S, S, 3), alpha (B, S, S, 1), and the volume-rendered low
    (B, s, s, 3), low_alpha (B, s, s, 1) and depth (B, s, s, 1) in meters along the view axis, 0 where low_alpha is."""

    image: Tensor
    low: Tensor
    alpha: Tensor
    low_alpha: Tensor
    depth: Tensor


class Portrait(nn.Module):
    """The network Psi and its renderer, for one head model."""

    global_encoder: GlobalEncoder
    detail_encoder: DetailEncoder
    transformer: Transformer
    decoder: PlaneDecoder
    field: PlaneField
    upsampler: Upsampler

    def __init__(self, config: PortraitConfig, head: HeadModel) -> None:
        super().__init__()
        self.config, self.head_model = config, head.model_id
        self.metadata: dict[str, str] = {}
        for name, part in _parts(config).items():
            self.add_module(name, part)
        for part in (self.global_encoder, self.detail_encoder, self.decoder, self.upsampler):
            part.to(memory_format=torch.channels_last)  # an eighth less time a training step on a CPU
        self.rig = Rig(head)
        self.frontalizer = Frontalizer(head, self.rig, config.size) if config.frontalize else None
        self.lookup = SourceLookup(head) if config.source_lookup else None
        self.to(head.device)

    @staticmethod
    def create(config: PortraitConfig, head: HeadModel, seed: int = 0) -> Portrait:
        """An untrained network; equal seeds give equal weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Portrait(config, head)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.position.device

    def encode(self, source: SourceView) -> Encoded:
        """Source pictures of the network's size -> features, which depend on nothing else."""
        size, images = self.config.size, source.images
        if images.shape[1:] != (size, size, 3):
            raise ValueError(f"source pictures must be (B, {size}, {size}, 3), found {tuple(images.shape)}")
        front = None if self.frontalizer is None else self.frontalizer(source, self.rig.transforms(source.params))
        pictures = with_coordinates(images.movedim(-1, 1) if front is None else front)
        return Encoded(self.global_encoder(pictures), self.detail_encoder(pictures), front, source)

    def planes(self, encoded: Encoded, source_motion: Tensor | None, driver_motion: Tensor | None) -> Tensor:
        """Tri-planes (B, 3, C, P, P) in canonical space. Motions are (B, M); None turns their cross-attention off, and
        without both this is the static network Psi_3d. One source goes with any number of drivers."""
        return self.drive(self.neutralize(encoded, source_motion), driver_motion)

    def neutralize(self, encoded: Encoded, source_motion: Tensor | None) -> Encoded:
        """The first half of planes(): a source without its expression, the same for every driver."""
        self._check_motion(source_motion)
        return replace(encoded, tokens=self.transformer.neutralize(encoded.tokens, source_motion))

    def drive(self, neutral: Encoded, driver_motion: Tensor | None) -> Tensor:
        """The second half of planes(): a neutralized source with a driver's expression, (B, 3, C, P, P)."""
        self._check_motion(driver_motion)
        tokens = self.transformer.reenact(neutral.tokens, driver_motion)
        maps = (None if x is None else x.expand(len(tokens), -1, -1, -1) for x in (neutral.detail, neutral.front))
        return self.decoder(tokens, *maps)

    def _check_motion(self, motion: Tensor | None) -> None:
        if motion is not None and motion.shape[1:] != (self.config.motion_size,):
            raise ValueError(f"motion must be (B, {self.config.motion_size}), found {tuple(motion.shape)}")

    def render(
        self,
        planes: Tensor,
        source: SourceView,
        params: HeadParams,
        viewmats: Tensor,
        Ks: Tensor,
        size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> PortraitPicture:
        """Pictures of planes (B, 3, C, P, P), posed by the neck and head of params (B,).

        Args:
            source: what the planes were made of, B or one for all. Where the configuration has a lookup, its pixels are fetched by its and
                the expression and jaw of params, which should be the driver's.
            viewmats: (B, 4, 4). Ks: (B, 3, 3) in pixels of a size x size picture.
            size: side of the result; None is the configuration's.
            generator: jitters the samples along the rays (training); None renders the same picture every time.
        """
        size = size or self.config.size
        low = size >> self.upsampler.stages
        if low << self.upsampler.stages != size:
            raise ValueError(f"size must be a multiple of {1 << self.upsampler.stages}, found {size}")
        found = self.render_low(planes, params, viewmats, Ks, size, low, generator)
        features, alpha, depth = (x.unflatten(-1, (low, low)) for x in (found.features, found.alpha, found.depth))
        looked_up = None
        if self.lookup is not None:
            source = source[torch.zeros(len(planes), dtype=torch.long, device=planes.device)] if len(source) == 1 else source
            own = self.source_depth(planes, source)
            looked_up = self.lookup(source, own, self.rig, params, viewmats, Ks, DepthMap(depth, alpha), size)
        rgb, coverage = self.upsampler(features, alpha[:, None], looked_up)
        rgb = rgb if self.training else rgb.clamp(0, 1)  # clamped losses would have no gradient beyond
        return PortraitPicture(
            rgb.movedim(1, -1), features[:, :3].movedim(1, -1), coverage.movedim(1, -1), alpha[..., None], depth[..., None]
        )

    def render_low(
        self,
        planes: Tensor,
        params: HeadParams,
        viewmats: Tensor,
        Ks: Tensor,
        size: int,
        low: int,
        generator: torch.Generator | None = None,
    ) -> Rendered:
        """The volume alone, as low * low rays of pixels of a size x size picture; the first three features are rgb."""
        transforms = self.rig.transforms(params).expand(len(planes), 3, 3, 4)
        rays = pixel_rays(viewmats, Ks, size, low, *posed_box(transforms))

        def field(points: Tensor) -> tuple[Tensor, Tensor]:
            return self.density(planes, self.rig.to_rest(points, transforms))

        return render_rays(field, rays, self.config.coarse, self.config.fine, generator)

    @torch.no_grad()
    def source_depth(self, planes: Tensor, source: SourceView) -> DepthMap:
        """What is before the sources' cameras (B,), at half the low picture's size: a shadow map, which no gradient needs."""
        low = max(1, self.config.low_size // 2)
        found = self.render_low(planes, source.params, source.viewmats, source.Ks, self.config.size, low)
        return DepthMap(*(x.unflatten(-1, (low, low)) for x in (found.depth, found.alpha)))

    def density(self, planes: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Density per meter (B, N) and features (B, F, N) at rest points (B, N, 3) in meters; nothing outside the box."""
        at = to_box(rest)
        logit, features = self.field(planes, at)
        if self.config.mean_head_density:
            logit = logit + (self.rig.distances(rest) * (FOG_LOGIT / _SURFACE)).clamp(FOG_LOGIT, -FOG_LOGIT)
        else:
            logit = logit + FOG_LOGIT
        inside = (at.abs() <= 1).all(-1)
        return DENSITY_UNIT * F.softplus(logit) * inside, features

    def forward(
        self,
        source: SourceView,
        source_motion: Tensor | None,
        driver_motion: Tensor | None,
        params: HeadParams,
        viewmats: Tensor,
        Ks: Tensor,
        size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> PortraitPicture:
        """encode, planes and render in one call, as data-parallel training needs it."""
        planes = self.planes(self.encode(source), source_motion, driver_motion)
        return self.render(planes, source, params, viewmats, Ks, size, generator)

    def motion_parameters(self) -> list[nn.Parameter]:
        """The mapping of motion and the cross-attentions: what the static network does not use."""
        return [p for name, p in self.named_parameters() if _is_motion(name)]

    def static_parameters(self) -> list[nn.Parameter]:
        """All the others."""
        return [p for name, p in self.named_parameters() if not _is_motion(name)]

    def save(self, path: str | Path, metadata: dict[str, str] | None = None) -> None:
        """Write a "portrait/1" file."""
        write_portrait(path, self, self.config, self.head_model, metadata)

    @staticmethod
    def load(path: str | Path, device: torch.device | str = "cpu", head: HeadModel | None = None) -> Portrait:
        """Read a "portrait/1" file; "default" is the one in the package. `head` is needed for FLAME only; the file's metadata are in
        `.metadata`."""
        path = portrait_file(path)
        tensors, config, head, metadata = read_portrait(path, head)
        with torch.device("meta"):  # no memory is taken before the file is known to fit
            check_shapes(path, nn.ModuleDict(_parts(config)), tensors)
        network = Portrait.create(config, head)
        fill_portrait(path, network, tensors)
        network.metadata = metadata
        return network.to(device)


def _parts(config: PortraitConfig) -> dict[str, nn.Module]:
    """What has weights, by name."""
    return {
        "global_encoder": GlobalEncoder(config),
        "detail_encoder": DetailEncoder(config),
        "transformer": Transformer(config),
        "decoder": PlaneDecoder(config),
        "field": PlaneField(config),
        "upsampler": Upsampler(config),
    }


def _is_motion(name: str) -> bool:
    return ".cross." in name or name.startswith("transformer.motion.")
