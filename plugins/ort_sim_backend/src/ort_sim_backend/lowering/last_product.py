"""The product that gives the logits of one row reads its weight where the file is mapped, once for each token.

ONNX Runtime copies the weights of products into a layout that suits several rows. For one row it has a kernel that reads a weight
``[K, N]`` as it lies in the file, so the copy can be saved: it is the largest one there is. Without it Gemma 3 270M takes 1151
instead of 1791 MB, a decode step as long as before, and processes share the pages of the weight.

Rows of an embedding that has the same weight are then its columns.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qeff_framework.lowering import (
    ConstantProduct,
    GraphEditor,
    GraphPass,
    add_initializer,
    computed_tensor,
    constant_products,
    operand,
    readers,
    static_dim,
    turned_matrix,
    weight_of,
)

#: Smaller weights may as well be copied.
_SMALLEST = 1 << 20


class LastProduct(GraphPass):
    """Lowers products with the logits as their result, for programs whose steps have one row and ask for one token of it."""

    name = "LastProduct"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether a product was lowered."""
        found = [product for product in constant_products(model) if _reads_one_row(model, product)]
        for product in found:
            _lower(model, product)
        return bool(found)


def _reads_one_row(model: ir.Model, product: ConstantProduct) -> bool:
    weight = product.weight
    (result,) = product.node.outputs
    return (
        product.node.graph is model.graph
        and _gives_logits(result)
        and _rows(product.left) == 1
        and weight.dtype == ir.DataType.FLOAT
        and weight_of(weight).size >= _SMALLEST
        and all(node is product.node or _is_lookup(node, weight) for node in _users(weight))
    )


def _rows(value: ir.Value) -> int | None:
    """Of ``[..., rows, K]``."""
    known = value.shape is not None and len(value.shape) > 1
    return static_dim(value, -2) if known else None


def _gives_logits(value: ir.Value) -> bool:
    """No product stands between `value` and the output."""
    seen, waiting = set[ir.Value](), [value]
    while waiting:
        value = waiting.pop()
        if value.name == "logits" and value.is_graph_output():
            return True
        if value not in seen:
            seen.add(value)
            nodes = [node for node in readers(value) if ConstantProduct.of(node) is None]
            waiting.extend(output for node in nodes for output in node.outputs)
    return False


def _users(weight: ir.Value) -> list[ir.Node]:
    """The nodes that read a weight; of one that is transposed, those that read the transpose."""
    nodes: list[ir.Node] = []
    for node in readers(weight):
        nodes += readers(node.outputs[0]) if node.op_type == "Transpose" else [node]
    return nodes


def _is_lookup(node: ir.Node, weight: ir.Value) -> bool:
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return False
    return operand(node, 0) is weight and operand(node, 1).shape is not None


def _lower(model: ir.Model, product: ConstantProduct) -> None:
    weight, source, transposed = product.weight, weight_of(product.weight), product.transposed
    name = f"{weight.name}_by_inputs"
    mapped = add_initializer(
        model,
        name,
        computed_tensor(
            name,
            product.sizes,
            np.float32,
            lambda: turned_matrix(source) if transposed else source.numpy(),
        ),
    )
    # An initializer that is an input as well may be replaced by a caller, so ONNX Runtime makes no copy of it.
    model.graph.inputs.append(mapped)
    for node in [node for node in readers(weight) if _is_lookup(node, weight)]:
        edit, indices = GraphEditor(model, node), operand(node, 1)
        rows = edit.op("Gather", mapped, indices, axis=int(transposed))
        edit.replace(node, _last_axis(edit, rows, indices) if transposed else rows)
    edit = GraphEditor(model, product.node)
    result = edit.op("MatMul", product.left, mapped)
    edit.replace(product.node, result if product.bias is None else edit.op("Add", result, product.bias))


def _last_axis(edit: GraphEditor, columns: ir.Value, indices: ir.Value) -> ir.Value:
    """``[K, ...]`` as ``[..., K]``."""
    rank = 0 if indices.shape is None else len(indices.shape)
    return edit.op("Transpose", columns, perm=[*range(1, rank + 1), 0])
