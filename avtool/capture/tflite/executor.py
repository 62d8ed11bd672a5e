"""Loads a .tflite file and runs its graph in torch, on any device.

Shape legend: N batch, H, W image, C channels; inputs and outputs are in the file's layout (N, H, W, C).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import AvtoolError, FormatError
from .flatbuffer import DamagedBuffer, Table
from .operators import BUILTIN_NAMES, CUSTOM, OPERATORS, Node, to_file, to_ours

# Schema enum TensorType.
_DTYPES = {0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 4: np.int64, 6: np.bool_, 9: np.int8}
_MAGIC = b"TFL3"


class TfliteModel(nn.Module):
    """The first graph of a .tflite file.

    Args:
        path: the file.
        sha256: hex digest that the file must have, or None for any file.

    Attributes:
        nodes: the operators in order of execution.
        input_shape: (1, H, W, C) of the only input.
        output_names: names of the outputs, in order.

    Raises:
        FormatError: not a .tflite file, truncated, of another checksum, or with operators that are not known here.
    """

    def __init__(self, path: str | Path, sha256: str | None = None) -> None:
        super().__init__()
        data = _read_checked(Path(path), sha256)
        try:
            self._parse(data)
        except (DamagedBuffer, UnicodeDecodeError) as error:
            raise FormatError(path, "", "a complete .tflite model", str(error), "install avtool again") from error

    def _parse(self, data: bytes) -> None:
        model = Table.root(data)
        graphs = model.tables(2)
        if not graphs:
            raise DamagedBuffer("the model holds no graph")
        graph, buffers = graphs[0], model.tables(4)
        tensors = graph.tables(0)
        shapes = [tuple(tensor.integers(0)) for tensor in tensors]
        constants = _read_constants(data, tensors, shapes, buffers)
        nodes = _read_nodes(graph, [_operator_name(code) for code in model.tables(1)], shapes)
        self.inputs, self.outputs = graph.integers(1), graph.integers(2)
        _check_indices(nodes, self.inputs, self.outputs, constants, len(tensors))
        self.nodes = _fold_dequantized(nodes, constants)
        self.input_shape = shapes[self.inputs[0]]
        self.output_names = [tensors[k].text(3) for k in self.outputs]
        # Values that are consumed at parse time (float16 weights) are dropped, the rest follow .to(device).
        used = {index for node in self.nodes for index in node.inputs}
        layouts = _weight_layouts(self.nodes)
        for index in sorted(used & constants.keys()):
            self.register_buffer(f"constant_{index}", _our_constant(constants[index], layouts.get(index)), False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Runs the graph.

        Args:
            image: (N, H, W, C) float32.

        Returns:
            the outputs in the file's layout.
        """
        if tuple(image.shape[1:]) != self.input_shape[1:]:
            raise ValueError(f"expected an input of shape (N, {self.input_shape[1:]}), found {tuple(image.shape)}")
        values: dict[int, Tensor] = {int(name[9:]): value for name, value in self.named_buffers()}
        with torch.no_grad(), _few_threads(len(image)):
            values[self.inputs[0]] = to_ours(image).contiguous()
            for node in self.nodes:
                arguments = [values[index] if index >= 0 else None for index in node.inputs]
                values[node.outputs[0]] = OPERATORS[node.name].run(node, arguments)
        return [to_file(values[index]) for index in self.outputs]

    def options(self, name: str) -> list[dict[str, object]]:
        """Options of every operator of that name, in order."""
        return [node.options for node in self.nodes if node.name == name]


@contextmanager
def _few_threads(batch: int) -> Iterator[None]:
    """One thread for a few images: the networks are hundreds of operators of a few microseconds each, where waiting
    for a second thread costs more than it brings (16 ms against 23 ms), and a hundred times that on a busy machine."""
    threads = torch.get_num_threads()
    if batch > 4 or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _read_checked(path: Path, sha256: str | None) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise AvtoolError(f"{path}: no such file", "install avtool again") from error
    if data[4:8] != _MAGIC:
        raise FormatError(path, "", "a .tflite model", "another kind of file", "install avtool again")
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        raise FormatError(path, "sha256", sha256, digest, "the file is damaged: install avtool again")
    return data


def _operator_name(code: Table) -> str:
    """Name of an operator code; the number moved from a byte to an int32 when bytes ran out."""
    number = max(code.integer(0, kind="b"), code.integer(3))
    name = code.text(1) if number == CUSTOM else BUILTIN_NAMES.get(number, f"number {number}")
    if name not in OPERATORS:
        raise DamagedBuffer(f"the operator {name}, which is not supported")
    return name


def _read_constants(
    data: bytes, tensors: list[Table], shapes: list[tuple[int, ...]], buffers: list[Table]
) -> dict[int, Tensor]:
    constants = {}
    for index, tensor in enumerate(tensors):
        buffer = tensor.integer(2, kind="I")
        if buffer >= len(buffers):
            raise DamagedBuffer(f"tensor {index} names buffer {buffer} of {len(buffers)}")
        start, length = buffers[buffer].vector(0, 1)
        if not length:
            continue
        kind = tensor.integer(1, kind="b")
        if kind not in _DTYPES:
            raise DamagedBuffer(f"tensor {index} has type {kind}, which is not supported")
        dtype = np.dtype(_DTYPES[kind])
        if int(np.prod(shapes[index], dtype=np.int64)) * dtype.itemsize != length:
            raise DamagedBuffer(f"tensor {index} of shape {shapes[index]} has {length} bytes")
        values = np.frombuffer(data, dtype, length // dtype.itemsize, start).reshape(shapes[index])
        constants[index] = torch.from_numpy(values.copy())
    return constants


def _read_nodes(graph: Table, names: list[str], shapes: list[tuple[int, ...]]) -> list[Node]:
    nodes = []
    for operator in graph.tables(3):
        code, outputs = operator.integer(0, kind="I"), operator.integers(2)
        if code >= len(names) or len(outputs) != 1 or not 0 <= outputs[0] < len(shapes):
            raise DamagedBuffer("an operator with a wrong code or wrong outputs")
        options = OPERATORS[names[code]].read_options(operator.table(4), operator.raw(5))
        nodes.append(Node(names[code], tuple(operator.integers(1)), tuple(outputs), shapes[outputs[0]], options))
    return nodes


def _check_indices(
    nodes: list[Node], inputs: list[int], outputs: list[int], constants: dict[int, Tensor], num_tensors: int
) -> None:
    """Every value must be made before it is used, so that a damaged file fails at load and not while running."""
    known = {-1, *inputs, *constants}
    if len(inputs) != 1 or not 0 <= inputs[0] < num_tensors or not outputs:
        raise DamagedBuffer("a graph without exactly one input and some outputs")
    for node in nodes:
        if not set(node.inputs) <= known:
            raise DamagedBuffer(f"{node.name} uses a value before it is made")
        known.update(node.outputs)
    if not set(outputs) <= known - {-1}:
        raise DamagedBuffer("an output that nothing makes")


def _fold_dequantized(nodes: list[Node], constants: dict[int, Tensor]) -> list[Node]:
    """Turns float16 weights into float32 once, at load."""
    kept = []
    for node in nodes:
        if node.name == "DEQUANTIZE" and node.inputs[0] in constants:
            constants[node.outputs[0]] = constants[node.inputs[0]].float()
        else:
            kept.append(node)
    return kept


def _weight_layouts(nodes: list[Node]) -> dict[int, tuple[int, ...]]:
    """How convolution weights are turned into torch's (out, in, kh, kw), by tensor index."""
    layouts = {"CONV_2D": (0, 3, 1, 2), "DEPTHWISE_CONV_2D": (3, 0, 1, 2), "Convolution2DTransposeBias": (0, 3, 1, 2)}
    return {node.inputs[1]: layouts[node.name] for node in nodes if node.name in layouts}


def _our_constant(value: Tensor, layout: tuple[int, ...] | None) -> Tensor:
    if layout is not None:
        if value.dim() != 4:
            raise DamagedBuffer(f"a convolution weight of shape {tuple(value.shape)}")
        return value.permute(layout).contiguous()
    return to_ours(value).contiguous()
