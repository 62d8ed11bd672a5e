"""The .tflite reader and executor: operators against readable twins, a hand-made model, damaged files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny_tflite
import torch

from avtool.capture.models import CHECKSUMS, DATA, load_model
from avtool.capture.tflite import TfliteModel
from avtool.capture.tflite.flatbuffer import DamagedBuffer, read_flexbuffer
from avtool.capture.tflite.operators import OPERATORS, Node, same_padding
from avtool.errors import FormatError

POOL = {"stride_h": 2, "stride_w": 2, "filter_h": 3, "filter_w": 3, "activation": 0}


def windows(image: np.ndarray, kernel: int, stride: int, padding: int) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """For every output place: the rows and columns of the input it sees, as TensorFlow defines SAME (0) and VALID (1)."""
    axes = []
    for size in image.shape[:2]:
        if padding == 0:
            count, before = math.ceil(size / stride), max((math.ceil(size / stride) - 1) * stride + kernel - size, 0) // 2
        else:
            count, before = (size - kernel) // stride + 1, 0
        axes.append([np.arange(k * stride - before, k * stride - before + kernel) for k in range(count)])
    return [[(rows, columns) for columns in axes[1]] for rows in axes[0]]


def run(name: str, values: list[torch.Tensor], shape: tuple[int, ...] = (), **options: object) -> torch.Tensor:
    return OPERATORS[name].run(Node(name, (0,), (1,), shape, options), values)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(7, 6), (8, 9)])
def test_convolution_agrees_with_loops(padding: int, stride: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image, weight, bias = rng.normal(size=(*size, 3)), rng.normal(size=(4, 3, 3, 3)), rng.normal(size=4)
    places = windows(image, 3, stride, padding)
    expected = np.zeros((len(places), len(places[0]), 4))
    for y, row in enumerate(places):
        for x, (rows, columns) in enumerate(row):
            for i, r in enumerate(rows):
                for j, c in enumerate(columns):
                    if 0 <= r < size[0] and 0 <= c < size[1]:
                        expected[y, x] += weight[:, i, j] @ image[r, c]
    expected = np.maximum(expected + bias, 0)
    options = {"padding": padding, "stride_h": stride, "stride_w": stride, "dilation_h": 1, "dilation_w": 1}
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None], torch.from_numpy(weight).permute(0, 3, 1, 2)]
    found = run("CONV_2D", [*tensors, torch.from_numpy(bias)], activation=1, **options)
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("name, reduce", [("MAX_POOL_2D", np.max), ("AVERAGE_POOL_2D", np.mean)])
@pytest.mark.parametrize("padding", [0, 1])
def test_pooling_leaves_padding_out(name: str, reduce: object, padding: int) -> None:
    image = np.random.default_rng(1).normal(size=(7, 10, 2)) - 5
    expected = [
        [reduce(image[np.ix_([r for r in rows if 0 <= r < 7], [c for c in columns if 0 <= c < 10])], (0, 1))
         for rows, columns in row]
        for row in windows(image, 3, 2, padding)
    ]  # fmt: skip
    found = run(name, [torch.from_numpy(image).permute(2, 0, 1)[None]], padding=padding, **POOL)
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), np.array(expected), atol=1e-12)


def test_same_padding_puts_the_odd_pixel_after() -> None:
    assert same_padding(6, 3, 2) == (0, 1)
    assert same_padding(7, 3, 2) == (1, 1)


def test_layout_operators_follow_the_file() -> None:
    image = torch.arange(2 * 3 * 4.0).reshape(1, 2, 3, 4)  # (N, H, W, C) as in a file
    ours = image.permute(0, 3, 1, 2)
    assert torch.equal(run("RESHAPE", [ours], (1, 6, 4)), image.reshape(1, 6, 4))
    joined = run("CONCATENATION", [ours, ours], axis=3, activation=0)
    assert torch.equal(joined.permute(0, 2, 3, 1), torch.cat([image, image], 3))
    amounts = torch.tensor([[0, 0], [1, 0], [0, 2], [0, 3]])
    padded = run("PAD", [ours, amounts]).permute(0, 2, 3, 1)
    assert padded.shape == (1, 3, 5, 7) and torch.equal(padded[:, 1:, :3, :4], image) and padded[0, 0].abs().sum() == 0
    bounds = [torch.tensor(v) for v in ([0, 0, 1, 0], [1, 2, 3, 4], [1, 1, 1, 2])]
    masks = dict.fromkeys(("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask"), 0)
    assert torch.equal(run("STRIDED_SLICE", [ours, *bounds], **masks).permute(0, 2, 3, 1), image[:, 0:2, 1:3, 0:4:2])


def test_crop_by_landmarks_undoes_a_known_turn() -> None:
    """The three custom operators together: a box of turned landmarks, a crop through it, and back."""
    angle, center, half = 0.4, np.array([20.0, 24.0]), np.array([6.0, 3.0])
    axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]]) * half @ axes + center
    points = torch.from_numpy(np.concatenate([corners, np.ones((4, 1))], 1)).float()[None]
    options = {"left_rotation_idx": 0, "right_rotation_idx": 1, "subset_idxs": [0, 1, 2, 3], "scale_x": 1.5,
               "scale_y": 1.5, "output_width": 16, "output_height": 16, "target_rotation_radians": 0.0}  # fmt: skip
    matrix = run("Landmarks2TransformMatrix", [points], **options)
    middle = run("TransformLandmarks", [torch.tensor([[[8.0, 8.0, 7.0], [16.0, 8.0, 7.0]]]), matrix])[0].numpy()
    np.testing.assert_allclose(middle[0], [*center, 7], atol=1e-4)
    np.testing.assert_allclose(middle[1, :2], center + 1.5 * half[0] * axes[0], atol=1e-4)
    y, x = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(48) + 0.5, indexing="ij")
    crop = run("TransformTensorBilinear", [torch.stack([x, y])[None], matrix], output_width=16, output_height=16)[0]
    place = run("TransformLandmarks", [torch.tensor([[[3.5, 11.5]]]), matrix])[0, 0]
    np.testing.assert_allclose(crop[:, 11, 3].numpy(), place.numpy(), atol=1e-3)


def tiny_model() -> bytes:
    """relu(conv(x) + 1), its weight stored in float16."""
    weight = np.arange(8, dtype=np.float16).reshape(2, 1, 1, 4)
    options = {0: ("b", 1), 1: ("i", 2), 2: ("i", 2)}
    return tiny_tflite.model(
        [((1, 4, 4, 4), None), ((2, 1, 1, 4), weight), ((2, 1, 1, 4), None), ((2,), np.float32([1, -100])),
         ((1, 2, 2, 2), None), ((1, 1, 1, 2), np.float32([[[[1, 1]]]])), ((1, 2, 2, 2), None)],
        [(tiny_tflite.DEQUANTIZE, [1], [2], {}), (tiny_tflite.CONV_2D, [0, 2, 3], [4], options),
         (tiny_tflite.ADD, [4, 5], [6], {0: ("b", 1)})],
        [0], [6],
    )  # fmt: skip


def test_hand_made_model(tmp_path) -> None:
    path = tmp_path / "tiny.tflite"
    path.write_bytes(tiny_model())
    model = TfliteModel(path)
    image = torch.rand(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    (found,) = model(image)
    weight = torch.arange(8.0).reshape(2, 4)
    expected = (image[:, ::2, ::2] @ weight.T + torch.tensor([1.0, -100.0]) + 1).relu()
    torch.testing.assert_close(found, expected)
    assert [node.name for node in model.nodes] == ["CONV_2D", "ADD"]
    with pytest.raises(ValueError, match="shape"):
        model(image[:, :3])


def test_damaged_files_are_format_errors(tmp_path) -> None:
    """Whatever byte is wrong, a file loads or is refused; it never ends in another error."""
    good, path, rng = tiny_model(), tmp_path / "damaged.tflite", np.random.default_rng(0)
    refused = 0
    cases = [good[:cut] for cut in range(0, len(good), 7)]
    for _ in range(400):
        data = bytearray(good)
        data[rng.integers(8, len(data))] = rng.integers(256)
        cases.append(bytes(data))
    for data in cases:
        path.write_bytes(data)
        try:
            TfliteModel(path)
        except FormatError as error:
            refused += 1
            assert "damaged.tflite" in str(error)
    assert refused > 100


def test_foreign_files_and_operators_are_refused(tmp_path) -> None:
    path = tmp_path / "foreign.tflite"
    path.write_bytes(b"PK\3\4" * 100)
    with pytest.raises(FormatError, match="another kind of file"):
        TfliteModel(path)
    path.write_bytes(
        tiny_tflite.model([((1, 2), None), ((1, 2), None)], [(32, [0], [1], {})], [0], [1], custom_name="RunShell")
    )
    with pytest.raises(FormatError, match="RunShell"):
        TfliteModel(path)


@pytest.mark.parametrize("name", sorted(CHECKSUMS))
def test_shipped_models_are_pinned(name: str, tmp_path) -> None:
    model = load_model(name)
    side = model.input_shape[1]
    outputs = model(torch.zeros(2, side, side, 3))
    assert all(len(value) == 2 and bool(torch.isfinite(value).all()) for value in outputs)
    assert name in (DATA / "NOTICE.md").read_text() and CHECKSUMS[name] in (DATA / "NOTICE.md").read_text()
    data = bytearray((DATA / f"{name}.tflite").read_bytes())
    data[-1] ^= 1
    (tmp_path / f"{name}.tflite").write_bytes(data)
    with pytest.raises(FormatError, match="install avtool again"):
        load_model(name, directory=tmp_path)


def test_flexbuffer_map_and_damage() -> None:
    """{"a": 5, "b": [1, 2]} as the reference writer lays it out."""
    # keys, typed vector, key vector with its length, then the map: keys offset, key width, length, values, types.
    data = bytes([97, 0, 98, 0, 2, 1, 2, 2, 8, 7, 2, 1, 2, 5, 9, 4, 44, 4, 36, 1])
    assert read_flexbuffer(data) == {"a": 5, "b": [1, 2]}
    for cut in range(len(data)):
        try:
            read_flexbuffer(data[cut:])
        except DamagedBuffer:
            continue
