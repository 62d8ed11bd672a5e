"""Sizes of the portrait network (Portrait4D-v2, arXiv 2403.13570, section 3) and its presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass

# 52 blend-shape weights, gaze (4) and jaw (3): what avtool's own tracker knows of an expression.
TRACKER_MOTION = 59
FRONTAL_CHANNELS = 6  # of a frontalized source: rgb and the direction to the camera
LOOKUP_CHANNELS = 12  # of the source's pixels for a new camera: rgb, the directions to both cameras, and how sure they are (lookup.py)
_LARGEST = 4096  # of any size: four times the paper's, and a damaged file asks for no impossible network


@dataclass(frozen=True)
class PortraitConfig:
    """Sizes of a portrait network; the defaults are the preset "small".

    Attributes:
        size: pixels a side of the source picture and, unless render() is told otherwise, of the result.
        motion_size: length of the motion embedding.
        frontalize: the networks see the source as the front plane does (frontal.py) instead of as it was photographed.
        source_lookup: the super-resolution head sees what the source shows of each pixel's place (lookup.py).
        encoder_widths, encoder_blocks: channels and residual blocks of the global encoder's stages.
        global_size: side of the global feature map. detail_size, detail_channels: of the detail feature map.
        token_size: side of the token grid. dim, heads, mlp_ratio: of the transformer.
        neutralizing, reenacting: blocks whose cross-attention reads the source's and the driver's motion.
        motion_tokens: side of the grid of motion tokens.
        decoder_channels: width of the plane decoder. plane_size, plane_channels: of each of the three planes.
        concatenate_planes: the volume's MLP reads the planes' features side by side instead of their mean (EG3D).
        mean_head_density: density starts as the mean head instead of as thin fog.
        hidden, feature_channels: of the volume's MLP; the first three features are rgb.
        low_size: side of the volume-rendered picture for a result of `size`. coarse, fine: samples a ray.
        upsampler_channels: width of the super-resolution head.
    """

    size: int = 128
    motion_size: int = TRACKER_MOTION
    frontalize: bool = True
    source_lookup: bool = True
    encoder_widths: tuple[int, ...] = (32, 64)
    encoder_blocks: tuple[int, ...] = (2, 2)
    global_size: int = 32
    detail_size: int = 64
    detail_channels: int = 24
    token_size: int = 16
    dim: int = 256
    heads: int = 4
    mlp_ratio: int = 2
    neutralizing: int = 4
    reenacting: int = 4
    motion_tokens: int = 4
    decoder_channels: int = 48
    plane_size: int = 128
    plane_channels: int = 16
    concatenate_planes: bool = True
    mean_head_density: bool = True
    hidden: int = 48
    feature_channels: int = 16
    low_size: int = 64
    coarse: int = 12
    fine: int = 12
    upsampler_channels: int = 24

    def __post_init__(self) -> None:
        """ValueError unless the sizes fit together."""
        for name, value in asdict(self).items():
            values = value if isinstance(value, (tuple, list)) else (value,)
            if any(not isinstance(v, int) or not (isinstance(v, bool) or 1 <= v <= _LARGEST) for v in values):
                raise ValueError(f"{name} must be whole numbers from 1 to {_LARGEST}, found {value}")
        if len(self.encoder_widths) != len(self.encoder_blocks):
            raise ValueError("encoder_widths and encoder_blocks must be of one length")
        if self.feature_channels < 3 or self.dim % self.heads:
            raise ValueError("feature_channels must be at least 3, and dim a multiple of heads")
        for larger, smaller in _NESTED:
            doublings(getattr(self, larger), getattr(self, smaller), f"{larger} / {smaller}")
        if len(self.encoder_widths) < doublings(self.size, self.global_size, "size / global_size"):
            raise ValueError("global_size is too small for this many encoder stages")

    def to_dict(self) -> dict[str, object]:
        """For the metadata of an artifact."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, object]) -> PortraitConfig:
        """The inverse of to_dict, also after JSON made lists of the tuples; ValueError or TypeError says what is wrong."""
        return PortraitConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


_NESTED = (
    ("size", "global_size"),
    ("size", "detail_size"),
    ("size", "low_size"),
    ("global_size", "token_size"),
    ("detail_size", "token_size"),
    ("plane_size", "detail_size"),
)


def doublings(larger: int, smaller: int, what: str) -> int:
    """How often `smaller` doubles to `larger`; ValueError when it does not."""
    count = max(0, (larger // max(1, smaller)).bit_length() - 1)
    if smaller << count != larger:
        raise ValueError(f"{what} must be a power of two, found {larger} / {smaller}")
    return count


PRESETS = {
    # Tests: forward and backward in a fraction of a second on one core.
    "tiny": PortraitConfig(
        size=64, encoder_widths=(8, 16), encoder_blocks=(1, 1), global_size=16, detail_size=32, detail_channels=8,
        token_size=8, dim=32, heads=2, neutralizing=1, reenacting=1, motion_tokens=2, decoder_channels=16,
        plane_size=32, plane_channels=8, hidden=16, feature_channels=8, low_size=16, coarse=8, fine=8,
        upsampler_channels=8,
    ),  # fmt: skip
    # Two CPU cores: a training step of two pictures within a second.
    "small": PortraitConfig(),
    # One GPU: the sizes of the paper. What it does not state: the widths of the encoder are ResNet-34's, the low
    # picture is EG3D's, the decoder and the super-resolution head are as wide as the volume's features allow.
    "paper": PortraitConfig(
        size=512, frontalize=False, source_lookup=False, encoder_widths=(64, 128, 256), encoder_blocks=(3, 4, 6), global_size=64, detail_size=256,
        detail_channels=96, token_size=32, dim=1024, heads=4, mlp_ratio=4, neutralizing=4, reenacting=4,
        motion_tokens=8, decoder_channels=128, plane_size=256, plane_channels=32, concatenate_planes=False,
        mean_head_density=False, hidden=64, feature_channels=32, low_size=128, coarse=48, fine=48,
        upsampler_channels=128,
    ),  # fmt: skip
}
