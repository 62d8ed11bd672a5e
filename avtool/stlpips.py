"""ST-LPIPS, the shift-tolerant LPIPS of Ghildyal and Liu (ECCV 2022): a perceptual distance that forgives small shifts.

LPIPS (Zhang et al. 2018) with another trunk: no layer drops pixels without blurring first (Zhang 2019, "Making
convolutional networks shift-invariant again"), borders are reflected by twice the usual width, and AlexNet's first
convolution walks one pixel at a time. The weights are those of the PyPI package stlpips-pytorch (BSD-2); only its files
are read, its code is not run: it imports much that a metric does not need.

Shape legend: B pictures, H x W pixels, C channels of a layer.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avtool.errors import Unavailable, first_line

__all__ = ["BACKBONES", "ShiftTolerantLpips", "find_weights", "load_st_lpips", "min_side", "st_lpips_network"]

WEIGHTS_VARIABLE = "AVTOOL_STLPIPS"  # a weight file, or a directory of such
PACKAGE = "stlpips_pytorch"
HINT = f"pip install stlpips-pytorch==0.0.2, or set {WEIGHTS_VARIABLE} to its weight file"

# Per slice, whose end is compared: convolutions as (channels, kernel side, padding) followed by a ReLU; "b" blurs and
# halves, "p" is the maximum over a window of POOL_SIDE that moves by one. AlexNet blurs between convolution and ReLU once.
_ALEX = (((64, 11, 2), "b", "r"), ("p", "b", (192, 5, 2), "r"), ("p", "b", (384, 3, 1), "r"), ((256, 3, 1), "r"), ((256, 3, 1), "r"))
_VGG = tuple(
    (*(("p", "b") if k else ()), *((channels, 3, 1), "r") * count)
    for k, (channels, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)))
)
BACKBONES = {"vgg": _VGG, "alex": _ALEX}
POOL_SIDE = {"vgg": 2, "alex": 3}
BLUR_PADDING = 2  # twice the half width of the 3 x 3 filter


class Blur(nn.Module):
    """A 3 x 3 binomial filter on every other pixel, the border reflected: (B, C, H, W) -> about half the size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor((0.25, 0.5, 0.25))
        # The weight files hold the filter too, under this name.
        self.register_buffer("filt", (row[:, None] * row).expand(channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, (H + 3) // 2, (W + 3) // 2)."""
        padded = F.pad(x, (BLUR_PADDING,) * 4, mode="reflect")
        return F.conv2d(padded, self.filt, stride=2, groups=x.shape[1])


class ShiftTolerantLpips(nn.Module):
    """The network with random weights; st_lpips_network() fills it. Its state has the layout of the weight files."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.net = nn.ModuleDict()
        widths, channels, place = [], 3, 0
        for k, layers in enumerate(BACKBONES[backbone], start=1):
            part = nn.Sequential()
            for layer in layers:
                part.add_module(str(place), _layer(layer, channels, POOL_SIDE[backbone]))
                channels = layer[0] if isinstance(layer, tuple) else channels
                place += 1
            self.net[f"slice{k}"] = part
            widths.append(channels)
        self.heads = nn.ParameterList(nn.Parameter(torch.rand(1, width, 1, 1) / width) for width in widths)
        # LPIPS' own input scaling: ImageNet's mean and deviation for pictures in [-1, 1].
        self.register_buffer("shift", torch.tensor((-0.030, -0.088, -0.188)).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor((0.458, 0.448, 0.450)).view(1, 3, 1, 1))

    def features(self, images: Tensor) -> Iterator[Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] -> after each slice, channels of unit length (B, C, h, w)."""
        x = (images - self.shift) / self.scale
        for part in self.net.values():
            x = part(x)
            # The floor inside the root keeps the gradient finite where every channel is zero.
            yield x / (x.square().sum(1, keepdim=True) + 1e-20).sqrt()

    def forward(self, a: Tensor, b: Tensor, normalize: bool = False) -> Tensor:
        """Two pictures (B, 3, H, W) in [-1, 1], or in [0, 1] with `normalize` -> distance (B, 1, 1, 1)."""
        if min(a.shape[-2:]) < min_side(self.backbone):
            raise ValueError(f"ST-LPIPS ({self.backbone}) needs pictures of at least {min_side(self.backbone)} pixels a side")
        a, b = (2 * x - 1 if normalize else x for x in (a, b))
        total = a.new_zeros(())
        for x, y, head in zip(self.features(a), self.features(b), self.heads):
            total = total + F.conv2d((x - y).square(), head).mean((2, 3), keepdim=True)
        return total


def _layer(layer: tuple[int, int, int] | str, channels: int, pool: int) -> nn.Module:
    if isinstance(layer, tuple):
        return nn.Conv2d(channels, layer[0], layer[1], padding=layer[2])
    return {"r": nn.ReLU, "b": lambda: Blur(channels), "p": lambda: nn.MaxPool2d(pool, stride=1)}[layer]()


def min_side(backbone: str) -> int:
    """Smallest pictures, in pixels a side: every border must be wider than what is reflected of it."""
    return {"vgg": 18, "alex": 21}[backbone]


def find_weights(backbone: str, path: str | Path = "") -> Path:
    """The weight file: the one named, else that of the environment, else the installed package's; `Unavailable` otherwise."""
    if backbone not in BACKBONES:
        raise Unavailable(f"ST-LPIPS has no {backbone} backbone, only {' and '.join(BACKBONES)}")
    name = f"{backbone}_shift_tolerant.pth"
    named = path or os.environ.get(WEIGHTS_VARIABLE, "")
    if named:
        file = Path(named) / name if Path(named).is_dir() else Path(named)
        if not file.is_file():
            raise Unavailable(f"{file}: no such ST-LPIPS weights", HINT)
        return file
    spec = importlib.util.find_spec(PACKAGE)  # of a top-level package: nothing of it is run
    for folder in [] if spec is None else spec.submodule_search_locations or []:
        file = Path(folder) / "weights" / "vST0.0" / name
        if file.is_file():
            return file
    raise Unavailable("ST-LPIPS' weights are not here", HINT)


def st_lpips_network(backbone: str, device: torch.device | str, path: str | Path = "") -> ShiftTolerantLpips:
    """The network with its weights, frozen; the backbone is the file's where a file is named."""
    file = find_weights(backbone, path)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        network = ShiftTolerantLpips("alex" if state["net.slice1.0.weight"].shape[-1] == 11 else "vgg")
        network.load_state_dict({_renamed(key): value for key, value in state.items()})
    except Exception as error:  # a damaged torch file fails in ways that have no common type
        raise Unavailable(f"{file} does not hold ST-LPIPS' weights ({first_line(error)})", HINT) from error
    return network.to(device).eval().requires_grad_(False)


def _renamed(key: str) -> str:
    """The file's name of a tensor as ours: "lin0.model.1.weight" is heads.0, "scaling_layer.shift" is shift."""
    if key.startswith("lin"):
        return f"heads.{key.removeprefix('lin').split('.')[0]}"
    return key.removeprefix("scaling_layer.")


def load_st_lpips(device: torch.device | str, path: str | Path = "") -> Callable[[Tensor, Tensor], Tensor]:
    """ST-LPIPS (VGG, unless `path` is another) as a loss: two images (B, H, W, 3) in [0, 1] -> mean distance."""
    try:
        network = st_lpips_network("vgg", device, path)
    except Unavailable as reason:
        raise Unavailable(f"the ST-LPIPS loss cannot be computed: {reason.message}", reason.hint) from reason

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return network(a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2), normalize=True).mean()

    return distance
