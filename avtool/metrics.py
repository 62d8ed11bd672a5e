"""Image and face metrics, each a pure function of its inputs.

Shapes: image, target (H, W, 3) float in [0, 1]; mask (H, W) bool, true where pixels count; landmarks (478, 2) MediaPipe points
in pixels. The standard metrics come from kept libraries (scikit-image, lpips); what needs a file that may be missing (LPIPS'
backbone, ST-LPIPS' weights, a face recognizer) is loaded by a `load_*` function that raises `Unavailable` with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from avtool.errors import Unavailable, first_line
from avtool.losses import lpips_network
from avtool.stlpips import st_lpips_network

Array = NDArray[np.float32] | NDArray[np.float64]
LpipsFunction = Callable[[Array, Array], float]

SSIM_WINDOW = 11  # Wang et al. 2004: Gaussian window of 11 pixels, sigma 1.5
PSNR_CEILING = 100.0  # identical images: finite, so that means and JSON stay valid

OUTER_EYE_CORNERS = (33, 263)
CHIN = 152
CONTOUR_IDS = (  # brows, eyes, nose, lips: the points with an image edge under them, unlike cheeks and forehead
    (70, 63, 105, 66, 107, 336, 296, 334, 293, 300)
    + (33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380)
    + (168, 6, 4, 98, 97, 2, 326, 327)
    + (61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91, 78, 81, 13, 311, 308, 402, 14, 178)
)

# The five points of ArcFace (Deng et al. 2019) in its 112 x 112 crop: eyes, nose tip, mouth corners, left of the image first.
ARCFACE_POINTS = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
ARCFACE_SIZE = 112
FIVE_POINT_IDS = (468, 473, 4, 61, 291)


class Recognizer(Protocol):
    """A face recognizer: aligned (112, 112, 3) uint8 RGB -> embedding (D,)."""

    name: str

    def __call__(self, aligned: NDArray[np.uint8]) -> NDArray[np.float32]: ...


def psnr(image: Array, target: Array, mask: NDArray[np.bool_] | None = None) -> float:
    """Peak signal-to-noise ratio in dB over the masked pixels, peak 1.

    Raises ValueError when the mask is empty.
    """
    squared = (np.asarray(image, np.float64) - np.asarray(target, np.float64)) ** 2
    mean = float(_masked_mean(squared.mean(-1), mask))
    return PSNR_CEILING if mean <= 10 ** (-PSNR_CEILING / 10) else -10.0 * float(np.log10(mean))


def ssim(image: Array, target: Array, mask: NDArray[np.bool_] | None = None) -> float:
    """Structural similarity (Wang et al. 2004) with a Gaussian window; with a mask, the mean of the full map under it."""
    from skimage.metrics import structural_similarity

    _, full = structural_similarity(
        np.asarray(image, np.float64),
        np.asarray(target, np.float64),
        data_range=1.0,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        win_size=SSIM_WINDOW,
        full=True,
    )
    if mask is None:  # scikit-image's own mean leaves out the border, where the window has no support
        pad = SSIM_WINDOW // 2
        return float(full[pad:-pad, pad:-pad].mean())
    return float(_masked_mean(full.mean(-1), mask))


def interocular(landmarks: Array) -> float:
    """Distance between the outer eye corners, in pixels."""
    left, right = OUTER_EYE_CORNERS
    return float(np.linalg.norm(np.asarray(landmarks)[left, :2] - np.asarray(landmarks)[right, :2]))


def landmark_distance(found: Array, real: Array, ids: Sequence[int] | None = None) -> float:
    """Mean distance of matching landmarks in percent of the real face's inter-ocular distance.

    Args:
        found: (478, 2) landmarks detected in the render, pixels.
        real: (478, 2) landmarks of the real frame in the same pixels.
        ids: landmarks that count; all when None.
    """
    iod = interocular(real)
    if not iod > 0:
        raise ValueError("the real face's outer eye corners coincide: its landmarks are degenerate")
    distance = np.linalg.norm(np.asarray(found)[:, :2] - np.asarray(real)[:, :2], axis=-1)
    return 100.0 * float((distance if ids is None else distance[list(ids)]).mean()) / iod


def above_row(height: int, width: int, row: float) -> NDArray[np.bool_]:
    """Mask (height, width) of the pixels whose centers lie above `row`; at least one row is kept."""
    centers = np.arange(height) + 0.5
    mask = np.broadcast_to((centers < max(row, 1.0))[:, None], (height, width))
    return np.ascontiguousarray(mask)


def align_face(image: NDArray[np.uint8], landmarks: Array) -> NDArray[np.uint8]:
    """ArcFace's five-point crop: image (H, W, 3) uint8 and landmarks (478, 2) -> (112, 112, 3) uint8."""
    from skimage.transform import SimilarityTransform, warp

    source = np.asarray(landmarks, np.float64)[list(FIVE_POINT_IDS), :2]
    transform = SimilarityTransform.from_estimate(ARCFACE_POINTS, source - 0.5)  # skimage: centers at integers
    if not transform:
        raise ValueError("the five alignment points are degenerate")
    scale = max(float(transform.scale), 1e-6)
    if scale > 1.5:  # a face larger than the crop aliases unless it is smoothed first
        from scipy.ndimage import gaussian_filter

        sigma = 0.4 * scale
        image = gaussian_filter(image, sigma=(sigma, sigma, 0))
    shape = (ARCFACE_SIZE, ARCFACE_SIZE)
    crop = warp(image, transform, output_shape=shape, order=1, mode="edge", preserve_range=True)
    return np.clip(np.rint(crop), 0, 255).astype(np.uint8)


def cosine(a: Array, b: Array) -> float:
    """Cosine of two embeddings (D,): 1 same direction, 0 unrelated."""
    norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if norms == 0.0:
        raise ValueError("an embedding is zero")
    return float(np.dot(np.asarray(a).ravel(), np.asarray(b).ravel())) / norms


def summarize(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """mean, std (population) and n over the values that exist; mean and std are None when none does."""
    kept = np.array([value for value in values if value is not None], np.float64)
    if kept.size == 0:
        return {"mean": None, "std": None, "n": 0}
    return {"mean": float(kept.mean()), "std": float(kept.std()), "n": int(kept.size)}


def load_lpips(backbone: str = "vgg", device: str | torch.device = "cpu") -> LpipsFunction:
    """LPIPS (Zhang et al. 2018) as a function of two (H, W, 3) images in [0, 1]; `Unavailable` says why it cannot be."""
    network = lpips_network(backbone, device)
    return lambda image, target: _run_lpips(network, image, target, device)


def load_st_lpips(backbone: str = "vgg", device: str | torch.device = "cpu") -> tuple[LpipsFunction, str]:
    """ST-LPIPS (Ghildyal and Liu 2022), as load_lpips, and its backbone: a weight file that the user names decides it."""
    network = st_lpips_network(backbone, device)
    return lambda image, target: _run_lpips(network, image, target, device), network.backbone


def load_recognizer(path: str | os.PathLike[str]) -> Recognizer:
    """A face recognizer from the user's file: ONNX (through onnxruntime) or TorchScript (.pt, .torchscript).

    Input 1 x 3 x 112 x 112 RGB, (x - 127.5) / 128, ArcFace alignment: MobileFaceNet, ArcFace and their kin. A TorchScript file is
    a program: it is opened only because the user named it, and must come from a source that the user trusts; ONNX is data.
    """
    file = Path(path)
    if not file.is_file():
        raise Unavailable(f"the recognizer {file} is not a file")
    suffix = file.suffix.lower()
    if suffix == ".onnx":
        return _OnnxRecognizer(file)
    if suffix in (".pt", ".torchscript"):
        return _TorchScriptRecognizer(file)
    raise ValueError(f"{file}: a recognizer is an .onnx, .pt or .torchscript file")


class _OnnxRecognizer:
    """An ONNX recognizer run by onnxruntime on the CPU."""

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except (ImportError, OSError) as error:
            raise Unavailable(f"{path.name} needs onnxruntime (pip install onnxruntime): {first_line(error)}") from error
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions share no public base class
            raise Unavailable(f"{path} cannot be read as ONNX ({first_line(error)})") from error
        self.name = path.name

    def __call__(self, aligned: NDArray[np.uint8]) -> NDArray[np.float32]:
        name = self._session.get_inputs()[0].name
        return np.asarray(self._session.run(None, {name: _recognizer_input(aligned)})[0], np.float32).ravel()


class _TorchScriptRecognizer:
    """A TorchScript recognizer that the user named, run on the CPU."""

    def __init__(self, path: Path) -> None:
        try:
            self._module = torch.jit.load(str(path), map_location="cpu").eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise Unavailable(f"{path} cannot be read as TorchScript ({first_line(error)})") from error
        self.name = path.name

    def __call__(self, aligned: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            return self._module(torch.from_numpy(_recognizer_input(aligned))).reshape(-1).numpy()


def _recognizer_input(aligned: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(112, 112, 3) uint8 -> (1, 3, 112, 112) float32 scaled as ArcFace-style recognizers expect."""
    scaled = (aligned.astype(np.float32) - 127.5) / 128.0
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def _masked_mean(values: Array, mask: NDArray[np.bool_] | None) -> float:
    if mask is None:
        return float(values.mean())
    if not mask.any():
        raise ValueError("the mask leaves no pixel to measure")
    return float(values[mask].mean())


def _run_lpips(network: torch.nn.Module, image: Array, target: Array, device: str | torch.device) -> float:
    pair = [torch.from_numpy(np.asarray(x, np.float32)).permute(2, 0, 1)[None].to(device) * 2.0 - 1.0 for x in (image, target)]
    with torch.no_grad():
        return float(network(*pair))
