"""A product with a constant matrix becomes ``MatMulNBits``, which keeps the matrix in blocks of 8 or 4 bits.

A decode step reads every weight once, so what it takes goes by their size. The kernel makes 8-bit numbers of the activations as
well, in blocks of their own; with float32 activations it is slower than the plain product.

The product that chooses a mixture's experts stays as it is: it is small, and another expert is another result.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ort_sim_backend.lowering.blocks import Blocks, Numbers
from ort_sim_backend.lowering.graph import (
    CONTRIB,
    INT8_ACTIVATIONS,
    Writer,
    computed_constant,
    dialect_nodes,
    like,
    number,
    operand,
)

_PRODUCTS = ("MatMul", "Gemm")


class CompressedProducts:
    """Lowers each ``MatMul`` and plain ``Gemm`` of float32 with a constant matrix, in loops and branches as well."""

    name = "CompressedProducts"
    version = "1"

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks

    def __call__(self, subject: ir.Model) -> bool:
        """Says whether a product was lowered."""
        weights = _Weights(subject.graph, self._blocks)
        routers = _routers(subject)
        lowered = False
        for product in [node for node in subject.graph.all_nodes() if _is_product(node) and node not in routers]:
            found = _constant_matrix(product)
            if found is not None:
                self._lower(product, *found, weights)
                subject.graph.opset_imports.setdefault(CONTRIB, 1)
                lowered = True
        return lowered

    def _lower(self, product: ir.Node, weight: ir.Value, transposed: bool, weights: _Weights) -> None:
        levels, scales, columns, length = weights.compressed(weight, transposed=transposed)
        write, result = Writer(product), like(product.outputs[0])
        bias = product.inputs[2] if product.op_type == "Gemm" and len(product.inputs) > 2 else None
        multiplied = result if bias is None else ir.Value(type=result.type, shape=result.shape)
        attributes = {
            "K": length,
            "N": columns,
            "bits": self._blocks.bits,
            "block_size": self._blocks.size,
            "accuracy_level": INT8_ACTIVATIONS,
        }
        write.ops("MatMulNBits", [operand(product, 0), levels, scales], [multiplied], CONTRIB, attributes)
        if bias is not None:
            write.ops("Add", [multiplied, bias], [result], "", {})
        write.replace(product, [result])


def _is_product(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type in _PRODUCTS


def _constant_matrix(product: ir.Node) -> tuple[ir.Value, bool] | None:
    """The right side when it is a constant matrix of float32, and whether the product reads it transposed."""
    if product.op_type == "Gemm" and (number(product, "transA", 0), number(product, "alpha", 1.0)) != (0, 1.0):
        return None
    if product.op_type == "Gemm" and number(product, "beta", 1.0) != 1.0:
        return None
    value, transposed = operand(product, 1), bool(number(product, "transB", 0))
    producer = value.producer()
    if producer is not None and (producer.domain, producer.op_type) == ("", "Transpose"):
        value, transposed = operand(producer, 0), not transposed
    is_matrix = value.is_initializer() and value.const_value is not None and len(value.const_value.shape) == 2
    return (value, transposed) if is_matrix and value.dtype == ir.DataType.FLOAT else None


def _routers(model: ir.Model) -> set[ir.Node]:
    """The last product before each choice of experts."""
    found: set[ir.Node] = set()
    for mixture in dialect_nodes(model, "MoE", "MoEBias"):
        seen, waiting = set[ir.Node](), [operand(mixture, place) for place in (1, 2)]
        while waiting:
            node = waiting.pop().producer()
            if node is None or node in seen:
                continue
            seen.add(node)
            if _is_product(node):
                found.add(node)
            else:
                waiting.extend(value for value in node.inputs if value is not None)
    return found


class _Weights:
    """Compressed weights, each once however many products read it. Their content is computed when it is written."""

    def __init__(self, graph: ir.Graph, blocks: Blocks) -> None:
        self._graph, self._blocks = graph, blocks
        self._known: dict[tuple[str | None, bool], tuple[ir.Value, ir.Value, int, int]] = {}

    def compressed(self, weight: ir.Value, *, transposed: bool) -> tuple[ir.Value, ir.Value, int, int]:
        """Levels ``[N, blocks, bytes]`` and scales ``[N, blocks]`` of the product's columns, and its sizes N and K."""
        key = (weight.name, transposed)
        if key not in self._known:
            source = weight.const_value
            if source is None:
                raise ValueError(f"the weight {weight.name} has no content")
            rows, others = (int(size) for size in source.shape.numpy())
            columns, length = (rows, others) if transposed else (others, rows)
            blocks, name = self._blocks.count(length), f"{weight.name}_{'transposed_' if transposed else ''}blocks"

            def content() -> Numbers:
                array = source.numpy()
                return array if transposed else array.T

            shape = (columns, blocks, self._blocks.bytes)
            levels = computed_constant(self._graph, name, shape, np.uint8, lambda: self._blocks.levels(content()))
            scales = computed_constant(
                self._graph, f"{name}_scales", shape[:2], np.float32, lambda: self._blocks.scales(content())
            )
            self._known[key] = (levels, scales, columns, length)
        return self._known[key]
