"""A product whose columns are taken apart becomes a product for each part, as with the gated layers of denoisers.

The parts of a split are copies: ``[2048, 1024]`` in two halves takes a sixth of the time of the product that gave it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qeff_framework.lowering import (
    ConstantProduct,
    GraphEditor,
    GraphPass,
    add_initializer,
    computed_tensor,
    is_weight,
    made_by,
    nodes_of,
    operand,
    static_dim,
    static_shape,
    weight_of,
)

#: With fewer rows a product is as long as its weight takes to be read, and nothing is gained.
_FEWEST_ROWS = 64


class SplitProducts(GraphPass):
    """Lowers each ``Split`` of the columns of a product with a float32 weight, if nothing else reads the product."""

    name = "SplitProducts"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether a product was taken apart."""
        shared: dict[Hashable, Any] = {}
        found = False
        for node in nodes_of(model, "Split"):
            whole = operand(node, 0)
            shape, sizes = static_shape(whole), [static_dim(part, -1) for part in node.outputs]
            widths = [size for size in sizes if size is not None]
            product = _product(whole)
            if product is None or shape is None or len(widths) < len(sizes) or not _splits_columns(node, shape):
                continue
            edit = GraphEditor(model, node, shared)
            parts = [_part(edit, product, start, end) for start, end in pairwise(accumulate(widths, initial=0))]
            edit.replace(node, *parts)
            found = True
        return found


def _splits_columns(node: ir.Node, shape: tuple[int, ...]) -> bool:
    axis = node.attributes.get_int("axis", 0)
    return axis in (-1, len(shape) - 1) and math.prod(shape[:-1]) >= _FEWEST_ROWS


def _product(value: ir.Value) -> ConstantProduct | None:
    """The product that only the split reads, with the bias that is added to it."""
    bias, add = None, made_by(value, "Add")
    if add is not None:
        bias = next((each for each in add.inputs if is_weight(each)), None)
        products = [each for each in add.inputs if each is not None and each is not bias]
        if bias is None or len(products) != 1 or _is_shared(value):
            return None
        (value,) = products
    node = value.producer()
    product = None if node is None or _is_shared(value) else ConstantProduct.of(node)
    if product is None or weight_of(product.weight).dtype != ir.DataType.FLOAT:
        return None
    biases = [each for each in (bias, product.bias) if each is not None]
    if len(biases) > 1 or any(not is_weight(each) or static_shape(each) != product.sizes[1:] for each in biases):
        return None
    return replace(product, bias=biases[0] if biases else None)


def _is_shared(value: ir.Value) -> bool:
    return value.is_graph_output() or len(value.uses()) > 1


def _part(edit: GraphEditor, product: ConstantProduct, start: int, end: int) -> ir.Value:
    source, transposed = weight_of(product.weight), product.transposed

    def content() -> NDArray[Any]:
        whole = source.numpy()
        return np.ascontiguousarray(whole[start:end].T if transposed else whole[:, start:end])

    name = f"{product.weight.name}_{'rows' if transposed else 'columns'}_{start}_{end}"
    tensor = computed_tensor(name, (product.sizes[0], end - start), np.float32, content)
    weight = edit.once(name, lambda: add_initializer(edit.model, name, tensor))
    result = edit.op("MatMul", product.left, weight)
    if product.bias is None:
        return result
    bias = weight_of(product.bias).numpy()[start:end]
    return edit.op("Add", result, edit.array(np.ascontiguousarray(bias)))
