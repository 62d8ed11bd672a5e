"""The TensorFlow Lite operators that the shipped face models use, in torch.

Shape legend: inside the executor every 4-D value is (N, C, H, W), where the file means (N, H, W, C); values of another
rank are as in the file. Field numbers are those of TensorFlow's schema.fbs (Apache-2.0). The three custom operators of
the landmark model are those of MediaPipe's mediapipe/util/tflite/operations (Apache-2.0).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .flatbuffer import DamagedBuffer, Table, read_flexbuffer

SAME, VALID = 0, 1
# Order of a file's four axes (N, H, W, C) in ours.
_FILE_AXIS = {0: 0, 1: 2, 2: 3, 3: 1}


@dataclass(frozen=True)
class Node:
    """One operator of a graph.

    Attributes:
        name: key into OPERATORS.
        inputs, outputs: tensor indices; -1 stands for an input left out.
        output_shape: shape of the first output as in the file, batch 1.
        options: what the file says about the operator, by field name.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    output_shape: tuple[int, ...]
    options: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Operator:
    """How an operator's options are read (schema field number by name; flags in ``flags``) and what it computes."""

    run: Callable[[Node, list[Tensor | None]], Tensor]
    fields: dict[str, int] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    read_custom: Callable[[bytes], dict[str, object]] | None = None

    def read_options(self, table: Table | None, custom: bytes) -> dict[str, object]:
        """Options of one node by name."""
        if self.read_custom is not None:
            return self.read_custom(custom)
        if table is None:
            return {name: _DEFAULTS.get(name, 0) for name in self.fields}
        one_byte = {"padding", "activation", *self.flags}
        return {
            name: table.integer(number, _DEFAULTS.get(name, 0), "b" if name in one_byte else "i")
            for name, number in self.fields.items()
        }


_DEFAULTS = {"stride_w": 1, "stride_h": 1, "dilation_w": 1, "dilation_h": 1}


def to_ours(value: Tensor) -> Tensor:
    """(N, H, W, C) to (N, C, H, W); other ranks pass."""
    return value.permute(0, 3, 1, 2) if value.dim() == 4 else value


def to_file(value: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H, W, C); other ranks pass."""
    return value.permute(0, 2, 3, 1) if value.dim() == 4 else value


def activate(value: Tensor, kind: int) -> Tensor:
    """The fused activation (schema enum ActivationFunctionType)."""
    if kind == 0:
        return value
    if kind == 1:
        return F.relu(value)
    if kind == 2:
        return value.clamp(-1.0, 1.0)
    if kind == 3:
        return value.clamp(0.0, 6.0)
    raise DamagedBuffer(f"activation {kind} is not supported")


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Padding before and after, so that the output has ceil(size / stride) places; the odd one goes after."""
    total = max((math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _pad(value: Tensor, node: Node, kernel: tuple[int, int], fill: float) -> Tensor:
    options = node.options
    if options["padding"] != SAME:
        return value
    dilation = options.get("dilation_h", 1), options.get("dilation_w", 1)
    top, bottom = same_padding(value.shape[2], kernel[0], options["stride_h"], dilation[0])
    left, right = same_padding(value.shape[3], kernel[1], options["stride_w"], dilation[1])
    return F.pad(value, (left, right, top, bottom), value=fill) if top + bottom + left + right else value


def _convolve(node: Node, values: list[Tensor | None], groups: int) -> Tensor:
    value, weight, bias = values[0], values[1], values[2] if len(values) > 2 else None
    options = node.options
    value = _pad(value, node, (weight.shape[2], weight.shape[3]), 0.0)
    stride = (options["stride_h"], options["stride_w"])
    dilation = (options["dilation_h"], options["dilation_w"])
    return activate(F.conv2d(value, weight, bias, stride, 0, dilation, groups), options["activation"])


def conv_2d(node: Node, values: list[Tensor | None]) -> Tensor:
    """Convolution; the weight is (out, in, kh, kw)."""
    return _convolve(node, values, 1)


def depthwise_conv_2d(node: Node, values: list[Tensor | None]) -> Tensor:
    """Convolution of every channel by itself; the weight is (out, 1, kh, kw)."""
    return _convolve(node, values, values[0].shape[1])


def max_pool_2d(node: Node, values: list[Tensor | None]) -> Tensor:
    """Maximum over windows."""
    kernel = (node.options["filter_h"], node.options["filter_w"])
    stride = (node.options["stride_h"], node.options["stride_w"])
    pooled = F.max_pool2d(_pad(values[0], node, kernel, -math.inf), kernel, stride)
    return activate(pooled, node.options["activation"])


def average_pool_2d(node: Node, values: list[Tensor | None]) -> Tensor:
    """Mean over windows; padding does not count."""
    kernel = (node.options["filter_h"], node.options["filter_w"])
    stride = (node.options["stride_h"], node.options["stride_w"])
    padded = _pad(values[0], node, kernel, 0.0)
    pooled = F.avg_pool2d(padded, kernel, stride)
    if padded.shape != values[0].shape:
        inside = _pad(torch.ones_like(values[0][:1, :1]), node, kernel, 0.0)
        pooled = pooled / F.avg_pool2d(inside, kernel, stride)
    return activate(pooled, node.options["activation"])


def add(node: Node, values: list[Tensor | None]) -> Tensor:
    """Sum with broadcasting."""
    return activate(values[0] + values[1], node.options["activation"])


def mul(node: Node, values: list[Tensor | None]) -> Tensor:
    """Product with broadcasting."""
    return activate(values[0] * values[1], node.options["activation"])


def concatenation(node: Node, values: list[Tensor | None]) -> Tensor:
    """Joins along an axis of the file's layout."""
    rank = values[0].dim()
    axis = node.options["axis"] % rank
    return activate(torch.cat(values, _FILE_AXIS[axis] if rank == 4 else axis), node.options["activation"])


def reshape(node: Node, values: list[Tensor | None]) -> Tensor:
    """New shape in the file's layout; the batch follows the input."""
    return to_ours(to_file(values[0]).reshape(values[0].shape[0], *node.output_shape[1:]))


def pad(node: Node, values: list[Tensor | None]) -> Tensor:
    """Zeros around; the amounts are (rank, 2) in the file's layout."""
    amounts = values[1].tolist()
    if len(amounts) == 4:
        amounts = [amounts[axis] for axis in (0, 3, 1, 2)]
    return F.pad(values[0], [side for pair in reversed(amounts) for side in pair])


def prelu(node: Node, values: list[Tensor | None]) -> Tensor:
    """Leaky ReLU with one slope a channel, stored as (1, 1, C)."""
    slope = values[1].reshape(-1)
    if slope.shape[0] not in (1, values[0].shape[1]):
        raise DamagedBuffer(f"PReLU has {slope.shape[0]} slopes for {values[0].shape[1]} channels")
    return F.prelu(values[0], slope)


def resize_bilinear(node: Node, values: list[Tensor | None]) -> Tensor:
    """Bilinear resize with half-pixel centers, which is all that the models use."""
    if not node.options["half_pixel_centers"] or node.options["align_corners"]:
        raise DamagedBuffer("RESIZE_BILINEAR is supported with half-pixel centers only")
    return F.interpolate(values[0], values[1].tolist(), mode="bilinear", align_corners=False)


def strided_slice(node: Node, values: list[Tensor | None]) -> Tensor:
    """A slice in the file's layout, the batch left whole."""
    options = node.options
    if options["ellipsis_mask"] or options["new_axis_mask"]:
        raise DamagedBuffer("STRIDED_SLICE with new axes or an ellipsis is not supported")
    value = to_file(values[0])
    begin, end, stride = (bound.tolist() for bound in values[1:4])
    slices = [slice(None)]
    for axis in range(1, value.dim()):
        low = None if options["begin_mask"] >> axis & 1 else begin[axis]
        high = None if options["end_mask"] >> axis & 1 else end[axis]
        slices.append(slice(low, high, stride[axis]))
    value = value[tuple(slices)]
    for axis in reversed(range(1, value.dim())):
        if options["shrink_axis_mask"] >> axis & 1:
            value = value.select(axis, 0)
    return to_ours(value)


def transpose_conv_bias(node: Node, values: list[Tensor | None]) -> Tensor:
    """MediaPipe's Convolution2DTransposeBias; the weight is (out, in, kh, kw)."""
    value, weight, bias = values
    stride = (node.options["stride_h"], node.options["stride_w"])
    grown = F.conv_transpose2d(value, weight.transpose(0, 1), bias, stride)
    height, width = node.output_shape[1:3]
    top, left = (grown.shape[2] - height) // 2, (grown.shape[3] - width) // 2
    return grown[:, :, top : top + height, left : left + width]


def landmarks_to_matrix(node: Node, values: list[Tensor | None]) -> Tensor:
    """MediaPipe's Landmarks2TransformMatrix: the upright box of some landmarks as an affine map.

    Args:
        values: landmarks (N, L, D) in input pixels.

    Returns:
        (N, 4, 4), from pixels of the output crop to input pixels.
    """
    options, points = node.options, values[0]
    left, right = points[:, options["left_rotation_idx"]], points[:, options["right_rotation_idx"]]
    angle = options["target_rotation_radians"] - torch.atan2(right[:, 1] - left[:, 1], right[:, 0] - left[:, 0])
    cos, sin = angle.cos(), angle.sin()
    subset = points[:, options["subset_idxs"], :2]
    x = subset[..., 0] * cos[:, None] - subset[..., 1] * sin[:, None]
    y = subset[..., 0] * sin[:, None] + subset[..., 1] * cos[:, None]
    center_x, center_y = (x.amax(1) + x.amin(1)) / 2, (y.amax(1) + y.amin(1)) / 2
    step_x = options["scale_x"] * (x.amax(1) - x.amin(1)) / options["output_width"]
    step_y = options["scale_y"] * (y.amax(1) - y.amin(1)) / options["output_height"]
    matrix = points.new_zeros(len(points), 4, 4)
    matrix[:, 0, 0], matrix[:, 0, 1] = cos * step_x, sin * step_y
    matrix[:, 1, 0], matrix[:, 1, 1] = -sin * step_x, cos * step_y
    matrix[:, 2, 2] = matrix[:, 3, 3] = 1.0
    half = points.new_tensor([options["output_width"] / 2, options["output_height"] / 2])
    center = torch.stack([center_x * cos + center_y * sin, center_y * cos - center_x * sin], 1)
    matrix[:, :2, 3] = center - matrix[:, :2, :2] @ half
    return matrix


def crop_bilinear(node: Node, values: list[Tensor | None]) -> Tensor:
    """MediaPipe's TransformTensorBilinear: samples (N, C, H, W) through an affine map; outside is zero."""
    value, matrix = values
    height, width = value.shape[2:]
    rows = torch.arange(node.options["output_height"], device=value.device) + 0.5
    columns = torch.arange(node.options["output_width"], device=value.device) + 0.5
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    grid = torch.stack([x, y], -1).reshape(-1, 2)
    source = grid @ matrix[:, :2, :2].mT + matrix[:, None, :2, 3] - 0.5
    limit = value.new_tensor([width - 1, height - 1])
    inside = ((source >= 0) & (source <= limit)).all(-1).to(value.dtype)
    shape = (len(value), len(rows), len(columns))
    sampled = F.grid_sample(value, (source / limit * 2 - 1).reshape(*shape, 2), align_corners=True)
    return sampled * inside.reshape(shape)[:, None]


def transform_landmarks(node: Node, values: list[Tensor | None]) -> Tensor:
    """MediaPipe's TransformLandmarks: maps the x, y of (N, L, D) points by (N, 4, 4)."""
    points, matrix = values
    moved = points[..., :2] @ matrix[:, :2, :2].mT + matrix[:, None, :2, 3]
    return torch.cat([moved, points[..., 2:]], -1)


def _read_transpose_options(custom: bytes) -> dict[str, object]:
    if len(custom) != 12:
        raise DamagedBuffer(f"Convolution2DTransposeBias has {len(custom)} bytes of options, not 12")
    padding, stride_w, stride_h = struct.unpack("<iii", custom)
    return {"padding": padding, "stride_w": stride_w, "stride_h": stride_h}


def _read_flex_options(custom: bytes) -> dict[str, object]:
    options = read_flexbuffer(custom) if custom else {}
    if not isinstance(options, dict):
        raise DamagedBuffer("custom options are not a map")
    return options


_CONV = {"padding": 0, "stride_w": 1, "stride_h": 2, "activation": 3, "dilation_w": 4, "dilation_h": 5}
_DEPTHWISE = {"padding": 0, "stride_w": 1, "stride_h": 2, "activation": 4, "dilation_w": 5, "dilation_h": 6}
_POOL = {"padding": 0, "stride_w": 1, "stride_h": 2, "filter_w": 3, "filter_h": 4, "activation": 5}
_SLICE = {"begin_mask": 0, "end_mask": 1, "ellipsis_mask": 2, "new_axis_mask": 3, "shrink_axis_mask": 4}

# Built-in operators by their number in schema.fbs (enum BuiltinOperator).
BUILTIN_NAMES = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 6: "DEQUANTIZE",
    14: "LOGISTIC", 17: "MAX_POOL_2D", 18: "MUL", 19: "RELU", 22: "RESHAPE", 23: "RESIZE_BILINEAR", 34: "PAD",
    45: "STRIDED_SLICE", 54: "PRELU", 117: "HARD_SWISH",
}
CUSTOM = 32

OPERATORS: dict[str, Operator] = {
    "ADD": Operator(add, {"activation": 0}),
    "AVERAGE_POOL_2D": Operator(average_pool_2d, _POOL),
    "CONCATENATION": Operator(concatenation, {"axis": 0, "activation": 1}),
    "CONV_2D": Operator(conv_2d, _CONV),
    "DEPTHWISE_CONV_2D": Operator(depthwise_conv_2d, _DEPTHWISE),
    "DEQUANTIZE": Operator(lambda node, values: values[0].float()),
    "LOGISTIC": Operator(lambda node, values: values[0].sigmoid()),
    "MAX_POOL_2D": Operator(max_pool_2d, _POOL),
    "MUL": Operator(mul, {"activation": 0}),
    "RELU": Operator(lambda node, values: F.relu(values[0])),
    "RESHAPE": Operator(reshape),
    "RESIZE_BILINEAR": Operator(
        resize_bilinear, {"align_corners": 2, "half_pixel_centers": 3}, ("align_corners", "half_pixel_centers")
    ),
    "PAD": Operator(pad),
    "STRIDED_SLICE": Operator(strided_slice, _SLICE),
    "PRELU": Operator(prelu),
    "HARD_SWISH": Operator(lambda node, values: F.hardswish(values[0])),
    "Convolution2DTransposeBias": Operator(transpose_conv_bias, read_custom=_read_transpose_options),
    "Landmarks2TransformMatrix": Operator(landmarks_to_matrix, read_custom=_read_flex_options),
    "TransformTensorBilinear": Operator(crop_bilinear, read_custom=_read_flex_options),
    "TransformLandmarks": Operator(transform_landmarks, read_custom=_read_flex_options),
}
