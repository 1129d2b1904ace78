"""A wide convolution with a kernel of 3 x 3 becomes matrix products, by Winograd's algorithm for tiles of 2 x 2 results.

Sixteen products of tiles take 4 multiplications for each result and channel in place of 9. Before them a tile of 4 x 4 numbers
is transformed, behind them one of results; over a picture each transform is a product with a constant matrix, along the rows and
along the columns. That is worth it for many channels. The weights are stored transformed: 16 numbers in place of 9.

Lavin, Gray: Fast Algorithms for Convolutional Neural Networks, 2015, F(2x2, 3x3). Measured for two pictures of 32 x 32 with 640
channels, on one core: 85 instead of 134 ms; the largest error is 1.3 to 1.9 times that of the direct form.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qeff_framework.lowering import (
    GraphEditor,
    GraphPass,
    add_initializer,
    computed_tensor,
    is_weight,
    nodes_of,
    operand,
    static_shape,
    weight_of,
)

#: Of a 3 x 3 kernel along one axis, of a tile of four numbers, and of a tile of results.
_KERNEL: Final = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_TILE: Final = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_RESULT: Final = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
#: Fewer places make the products too narrow: 1.07 times the direct form for 256 channels of 8 x 8.
_FEWEST_PLACES = 256
#: Operations of a channel and place that moving the numbers takes as long as: fits the times of ten sizes, see `_is_faster`.
_MOVES = 600
#: The estimate is right to a tenth.
_WORTH_IT = 0.8
_ATTRIBUTES: Final = {"pads": (1, 1, 1, 1), "strides": (1, 1), "dilations": (1, 1)}


class WinogradConvolutions(GraphPass):
    """Lowers each ``Conv`` of float32 pictures that keeps their size, where it is faster."""

    name = "WinogradConvolutions"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether one was lowered."""
        found = [node for node in nodes_of(model, "Conv") if _is_plain(node) and _is_faster(node)]
        for node in found:
            edit = GraphEditor(model, node)
            edit.replace(node, _convolution(edit, node))
        return bool(found)


def _is_plain(node: ir.Node) -> bool:
    """3 x 3, each place of the picture once, zeros around it."""
    picture, weight = operand(node, 0), operand(node, 1)
    shape = static_shape(picture)
    if shape is None or len(shape) != 4 or shape[2] % 2 or shape[3] % 2 or picture.dtype != ir.DataType.FLOAT:
        return False
    attributes = node.attributes
    told = {name: tuple(attributes[name].as_ints()) if name in attributes else None for name in _ATTRIBUTES}
    if told["pads"] is None or any(value not in (None, _ATTRIBUTES[name]) for name, value in told.items()):
        return False
    if attributes.get_int("group", 1) != 1 or attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return False
    biases = node.inputs[2:]
    if not is_weight(weight) or any(each is not None and not is_weight(each) for each in biases):
        return False
    tensor = weight_of(weight)
    return tensor.dtype == ir.DataType.FLOAT and tuple(tensor.shape.numpy())[2:] == (3, 3)


def _is_faster(node: ir.Node) -> bool:
    _, _, height, width = static_shape(operand(node, 0)) or (0, 0, 0, 0)
    results, channels = (int(size) for size in weight_of(operand(node, 1)).shape.numpy()[:2])
    direct, products = 2 * 9 * channels * results, 2 * 4 * channels * results
    transforms = (channels + results) * (4 * height + 8 * width + _MOVES)
    return height * width >= _FEWEST_PLACES and products + transforms <= _WORTH_IT * direct


def _convolution(edit: GraphEditor, node: ir.Node) -> ir.Value:
    picture, weight = operand(node, 0), operand(node, 1)
    rows, channels, height, width = static_shape(picture) or (0, 0, 0, 0)
    results = int(weight_of(weight).shape.numpy()[0])
    tiles_down, tiles_across = height // 2, width // 2
    # Tiles along the columns: [4, rows * channels, tiles_down, width].
    pictures = edit.reshape(picture, (1, rows * channels, height, width))
    down = edit.op("MatMul", edit.array(_tiles(height).reshape(4, 1, tiles_down, height)), pictures)
    lines = edit.reshape(down, (4 * rows * channels * tiles_down, width))
    total: ir.Value | None = None
    for number in range(4):
        across = edit.op("MatMul", lines, edit.array(np.ascontiguousarray(_tiles(width)[number].T)))
        tiles = edit.reshape(across, (4, rows, channels, tiles_down * tiles_across))
        product = edit.op("MatMul", _kernels(edit, weight, number), tiles)
        flat = edit.reshape(product, (4 * rows * results * tiles_down, tiles_across))
        back = edit.array(np.ascontiguousarray(_results(width)[:, number].T))
        total = edit.op("Gemm", flat, back, *([] if total is None else [total]))
    assert total is not None  # noqa: S101 - there are four
    parts = edit.op("Reshape", total, edit.int64s(4, rows * results, tiles_down, width))
    columns = edit.reshape(edit.op("Transpose", parts, perm=(1, 0, 2, 3)), (rows * results, 2 * height, width))
    whole = edit.op("MatMul", edit.array(_results(height).reshape(height, 2 * height)), columns)
    shaped = edit.reshape(whole, (rows, results, height, width))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return shaped
    return edit.op("Add", shaped, edit.array(weight_of(bias).numpy().reshape(results, 1, 1)))


def _tiles(size: int) -> NDArray[np.float32]:
    """``[4, size / 2, size]``: number i of each tile's transform. Tile t begins one place in front of place 2 t."""
    found = np.zeros((4, size // 2, size + 2), np.float32)
    for tile in range(size // 2):
        found[:, tile, 2 * tile : 2 * tile + 4] = _TILE
    return np.ascontiguousarray(found[:, :, 1:-1])


def _results(size: int) -> NDArray[np.float32]:
    """``[size, 4, size / 2]``: what each transformed number of a tile adds to a place."""
    found = np.zeros((size, 4, size // 2), np.float32)
    for tile in range(size // 2):
        found[2 * tile : 2 * tile + 2, :, tile] = _RESULT
    return found


def _kernels(edit: GraphEditor, weight: ir.Value, number: int) -> ir.Value:
    """``[4, 1, results, channels]``: the transformed kernels, of number `number` across."""
    source = weight_of(weight)
    results, channels = (int(size) for size in source.shape.numpy()[:2])
    name = f"{weight.name}_winograd_{number}"
    known = edit.model.graph.initializers.get(name)
    if known is not None:
        return known
    tensor = computed_tensor(name, (4, 1, results, channels), np.float32, partial(_transformed, source, number))
    return add_initializer(edit.model, name, tensor)


def _transformed(source: Any, number: int) -> NDArray[np.float32]:
    across = source.numpy().astype(np.float32) @ _KERNEL[number].astype(np.float32)
    found = np.einsum("ia,kca->ikc", _KERNEL.astype(np.float32), across)
    return np.ascontiguousarray(found[:, None], np.float32)
