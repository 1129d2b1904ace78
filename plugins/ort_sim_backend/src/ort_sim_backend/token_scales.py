"""Products whose inputs have one scale for each token, and weights one for each result: plain products of 8-bit numbers.

For many rows they take half of the time of products in blocks, for which the kernel turns sums into floats block by block.

A scale for a whole token does not suit one with a few inputs that are far larger than its others. Inputs that a norm or a gate
has made get units in which they are of like size, see `smoothing`. All are rotated, 32 at a time: each becomes the sum of all 32,
some with the other sign, divided by the root of 32 (a Hadamard matrix; QuaRot, Ashkboos et al., 2024). The rows of the weight are
rotated alike, so the product is what it was.

Weights are stored without a sign, with 128 for zero, as inputs are. Of signed weights some CPUs add pairs of products in 16 bits,
which do not hold them, and give wrong results without a word (AVX2 without VNNI). Of two operands without a sign the kernel has
no such form, so a program gives the same on every CPU. It brings a small product along all the same whose sums are as large as
they can be: a CPU that does not hold these is told of.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ort_sim_backend.lowering.kernels import CONTRIB
from ort_sim_backend.lowering.last_tokens import ROWWISE
from qeff_framework.lowering import ConstantProduct, GraphEditor, add_initializer, computed_tensor, weight_of

#: Inputs that are rotated together. Gemma 3 270M where what a gate has made is 8-bit numbers: KL divergence from float32 is
#: 0.0014 with 32, 0.0009 with 128, 0.0096 without; in blocks of 128 that is 0.0018. With 32 the rotation takes an eighth of the
#: time of the product, with 128 a third (AVX2). Of all layers' products together it is 0.0073, and 0.0096 where what norms have
#: made is not rotated.
_MOST_ROTATED: Final = 32
_FEWEST_ROTATED: Final = 8
#: Inputs and weights become whole numbers from -127 to 127, stored as 1 to 255.
_MOST: Final = 127
_ZERO: Final = 128
#: Of a weight that is rounded.
_NUMBERS_AT_A_TIME: Final = 1 << 20


def rotated_at_a_time(length: int) -> int:
    """Inputs that are rotated together, of products with so many; 0 where `length` is no multiple of enough."""
    size = math.gcd(length, _MOST_ROTATED)
    return size if size >= _FEWEST_ROTATED else 0


def scale_by_token(model: ir.Model, value: ir.Value, products: Mapping[ir.Node, ConstantProduct]) -> None:
    """Replaces `products`, nodes that read `value` ``[..., K]`` of a known rank, by products of 8-bit numbers.

    `rotated_at_a_time` must not be 0 for K.
    """
    shared: dict[Hashable, Any] = {}
    for node in [node for node in model.graph if node in products]:
        edit, product = GraphEditor(model, node, shared), products[node]
        matrix = _rotation(rotated_at_a_time(product.sizes[0]))
        levels, largest = edit.once("inputs", functools.partial(_by_token, edit, value, matrix))
        result = edit.op("MatMulIntegerToFloat", levels, *_weight(edit, product, matrix), domain=CONTRIB)
        result.type, result.shape = node.outputs[0].type, node.outputs[0].shape
        edit.replace(node, _like(edit.op("Mul", result, largest), result))


def _rotation(size: int) -> NDArray[np.float32]:
    """``[size, size]``, its own inverse; `size` is a power of two."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    rotation: NDArray[np.float32] = (matrix / math.sqrt(size)).astype(np.float32)
    return rotation


def _by_token(edit: GraphEditor, value: ir.Value, matrix: NDArray[np.float32]) -> tuple[ir.Value, ir.Value]:
    """Levels uint8 like `value`, and the largest number ``[..., 1]`` of each token, which is `_MOST` levels.

    A token of zeros has levels that say nothing, and zero to multiply them with.
    """
    value = _rotated(edit, value, matrix)
    largest = edit.op("ReduceMax", _like(edit.op("Abs", value), value), edit.int64s(-1), keepdims=1)
    largest.type, largest.shape = value.type, _with_last(value, 1)
    part = _like(edit.op("Div", value, largest), value)
    # One node in place of a product, a sum and a cast: in a step of one token a node costs more than the numbers of it.
    levels = edit.op("QuantizeLinear", part, _step(edit), edit.array(np.array(_ZERO, np.uint8)))
    levels.type, levels.shape = ir.TensorType(ir.DataType.UINT8), value.shape
    node = levels.producer()
    if node is not None:
        node.meta[ROWWISE] = True
    return levels, largest


def _step(edit: GraphEditor) -> ir.Value:
    """A level, as part of the largest number."""
    return edit.array(np.array(1 / _MOST, np.float32))


def _rotated(edit: GraphEditor, value: ir.Value, matrix: NDArray[np.float32]) -> ir.Value:
    kept = [0] * (len(value.shape or ()) - 1)
    apart = edit.op("Reshape", value, edit.int64s(*kept, -1, len(matrix)))
    turned = edit.op("MatMul", apart, edit.array(matrix))
    joined = edit.op("Reshape", turned, edit.int64s(*kept, -1))
    for each in (apart, turned):
        each.type, each.shape = value.type, _with_last(value, None, len(matrix))
    for each in (apart, turned, joined):
        node = each.producer()
        if node is not None:
            node.meta[ROWWISE] = True
    return _like(joined, value)


def _with_last(value: ir.Value, *sizes: int | None) -> ir.Shape | None:
    """The shape of `value` with other `sizes` in place of the last one."""
    return None if value.shape is None else ir.Shape([*value.shape[:-1], *sizes])


def _like(value: ir.Value, other: ir.Value) -> ir.Value:
    value.type, value.shape = other.type, other.shape
    return value


def _weight(edit: GraphEditor, product: ConstantProduct, matrix: NDArray[np.float32]) -> Sequence[ir.Value]:
    """Operands of the kernel behind the levels: the weight ``[K, N]``, scales of inputs and weight, and the zeros of both."""
    length, count = product.sizes
    name = f"{product.weight.name}_levels"

    def by_results() -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """The rotated weight, some columns at a time: as a whole it would be held several times while it is rounded."""
        array: NDArray[np.float32] = weight_of(product.weight).numpy()
        columns = array.T if product.transposed else array
        step = max(1, _NUMBERS_AT_A_TIME // length)
        for start in range(0, count, step):
            part = slice(start, start + step)
            blocks = columns[:, part].reshape(length // len(matrix), len(matrix), -1)
            yield part, (matrix @ blocks).reshape(length, -1)

    def scales() -> NDArray[np.float32]:
        return np.concatenate([_scales_of(turned) for _, turned in by_results()])

    def levels() -> NDArray[np.uint8]:
        whole = np.empty((length, count), np.uint8)
        for part, turned in by_results():
            whole[:, part] = np.rint(turned / _scales_of(turned)) + _ZERO
        return whole

    weight, factors = (
        add_initializer(edit.model, str(tensor.name), tensor)
        for tensor in (
            computed_tensor(name, (length, count), np.uint8, levels),
            computed_tensor(f"{name}_scales", (count,), np.float32, scales),
        )
    )
    zero = edit.array(np.array(_ZERO, np.uint8))
    return weight, _step(edit), factors, zero, zero


def _scales_of(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    largest: NDArray[np.float32] = np.abs(columns).max(axis=0)
    return np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(_MOST)


#: Of the product that a program brings along.
_LENGTH: Final = 64


def write_probe(file: Path) -> None:
    """Writes the product whose sums are as large as they can be; `runtime.is_exact` runs it."""
    inputs = [
        ir.Value(name="levels", type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape([2, _LENGTH])),
        *(
            ir.Value(name=name, const_value=ir.tensor(content, name=name))
            for name, content in (
                ("weight", np.full((_LENGTH, _LENGTH), 255, np.uint8)),
                ("one", np.array(1, np.float32)),
                ("scales", np.ones(_LENGTH, np.float32)),
                ("zero", np.array(0, np.uint8)),
                ("zero_of_weight", np.array(_ZERO, np.uint8)),
            )
        ),
    ]
    node = ir.Node(CONTRIB, "MatMulIntegerToFloat", inputs)
    result = node.outputs[0]
    result.name, result.type, result.shape = "sums", ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, _LENGTH])
    graph = ir.Graph(
        inputs[:1], [result], nodes=[node], initializers=inputs[1:], opset_imports={"": 18, CONTRIB: 1}, name="probe"
    )
    ir.save(ir.Model(graph, ir_version=10), file)
