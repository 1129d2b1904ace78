"""Products whose inputs have one scale for each token, and weights one for each result: plain products of 8-bit numbers.

For many rows they take half of the time of products in blocks, for which the kernel turns sums into floats block by block. Inputs
of like size bear it, see `smoothing`: those that a norm has made. What a gate has made does not: there a token has a few
inputs that are far larger than its others.

Some CPUs add pairs of 8-bit products in 16 bits, which do not hold them: there the kernel gives wrong results, without a word.
So a program brings a small product along whose sums are as large as they can be.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ort_sim_backend.lowering.kernels import CONTRIB
from qeff_framework.lowering import ConstantProduct, GraphEditor, add_initializer, computed_tensor, weight_of

#: Inputs become whole numbers from -127 to 127, stored as 1 to 255.
_MOST: Final = 127
_ZERO: Final = 128


def scale_by_token(model: ir.Model, value: ir.Value, products: Mapping[ir.Node, ConstantProduct]) -> None:
    """Replaces `products`, nodes that read `value` ``[..., K]``, by products of 8-bit numbers."""
    shared: dict[Hashable, Any] = {}
    for node in [node for node in model.graph if node in products]:
        edit = GraphEditor(model, node, shared)
        levels, scale = edit.once("inputs", functools.partial(_by_token, edit, value))
        result = edit.op("MatMulIntegerToFloat", levels, *_weight(edit, products[node]), domain=CONTRIB)
        result.type, result.shape = node.outputs[0].type, node.outputs[0].shape
        edit.replace(node, _like(edit.op("Mul", result, scale), result))


def _by_token(edit: GraphEditor, value: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Levels uint8 like `value`, and scales ``[..., 1]``. A token of zeros has a scale of zero, and levels that say nothing."""
    sizes = list(value.shape or ())
    largest = edit.op("ReduceMax", _like(edit.op("Abs", value), value), edit.int64s(-1), keepdims=1)
    scale = edit.op("Mul", largest, edit.array(np.array(1 / _MOST, np.float32)))
    for each in (largest, scale):
        each.type, each.shape = value.type, ir.Shape([*sizes[:-1], 1])
    # Half a level more, since the cast cuts off.
    shifted = _like(edit.op("Div", value, scale), value)
    shifted = _like(edit.op("Add", shifted, edit.array(np.array(_ZERO + 0.5, np.float32))), value)
    levels = edit.cast(shifted, ir.DataType.UINT8)
    levels.shape = value.shape
    return levels, scale


def _like(value: ir.Value, other: ir.Value) -> ir.Value:
    value.type, value.shape = other.type, other.shape
    return value


def _weight(edit: GraphEditor, product: ConstantProduct) -> Sequence[ir.Value]:
    """Operands of the kernel behind the levels: the weight ``[K, N]``, scales of inputs and weight, and the inputs' zero."""
    length, count = product.sizes
    name = f"{product.weight.name}_levels"

    def by_inputs() -> NDArray[np.float32]:
        array: NDArray[np.float32] = weight_of(product.weight).numpy()
        return array.T if product.transposed else array

    def scales() -> NDArray[np.float32]:
        largest: NDArray[np.float32] = np.abs(by_inputs()).max(axis=0)
        return np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(_MOST)

    def levels() -> NDArray[np.int8]:
        whole: NDArray[np.int8] = np.rint(by_inputs() / scales()).astype(np.int8)
        return whole

    weight, factors = (
        add_initializer(edit.model, str(tensor.name), tensor)
        for tensor in (
            computed_tensor(name, (length, count), np.int8, levels),
            computed_tensor(f"{name}_scales", (count,), np.float32, scales),
        )
    )
    return weight, edit.array(np.array(1, np.float32)), factors, edit.array(np.array(_ZERO, np.uint8))


#: Of the product that a program brings along.
_LENGTH: Final = 64


def write_probe(file: Path) -> None:
    """Writes the product whose sums are as large as they can be; `runtime.is_exact` runs it."""
    inputs = [
        ir.Value(name="levels", type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape([2, _LENGTH])),
        *(
            ir.Value(name=name, const_value=ir.tensor(content, name=name))
            for name, content in (
                ("weight", np.full((_LENGTH, _LENGTH), _MOST, np.int8)),
                ("one", np.array(1, np.float32)),
                ("scales", np.ones(_LENGTH, np.float32)),
                ("zero", np.array(0, np.uint8)),
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
