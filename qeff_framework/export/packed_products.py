"""Weights that a checkpoint holds in blocks of few bits stay so, in products and in experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir
import onnx_ir.passes.common as common_passes
from numpy.typing import DTypeLike, NDArray

from qeff_framework.contracts import PackedMatrix
from qeff_framework.dialect.functions import attach_functions
from qeff_framework.dialect.names import DOMAIN, Op
from qeff_framework.lowering.constant_products import ConstantProduct, constant_products
from qeff_framework.lowering.editor import GraphEditor, add_initializer
from qeff_framework.lowering.nodes import MoENode
from qeff_framework.lowering.values import is_weight, made_by, operand, static_shape
from qeff_framework.lowering.weights import computed_tensor

#: The inputs that stand for a matrix, and the types of their numbers.
_PARTS: Sequence[tuple[str, DTypeLike]] = (("levels", np.uint8), ("scales", np.float32), ("zero_points", np.uint8))

_Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def keep_packed_products(model: onnx_ir.Model, matrices: Mapping[str, PackedMatrix]) -> tuple[str, ...]:
    """Replaces the products with these weights, by name; returns the names of those that were found.

    A weight that something else reads as well, such as the embedding of tied weights, stays beside its blocks.
    """
    kept: dict[str, tuple[onnx_ir.Value, ...]] = {}
    for product in constant_products(model):
        name = str(product.weight.name)
        matrix = matrices.get(name)
        # The graph holds it as [K, N] or [N, K]; the product says which it is.
        if matrix is None or product.sizes != matrix.shape[::-1]:
            continue
        if name not in kept:
            kept[name] = _initializers(model, name, matrix)
        _replace(model, product, matrix, kept[name])
    for node in [node for node in model.graph.all_nodes() if MoENode.views(node)]:
        _keep_experts(model, MoENode.of(node), matrices, kept)
    if kept:
        attach_functions(model)
        common_passes.RemoveUnusedNodesPass()(model)
    return tuple(kept)


def _initializers(model: onnx_ir.Model, name: str, matrix: PackedMatrix) -> tuple[onnx_ir.Value, ...]:
    *experts, outputs, inputs = matrix.shape
    blocks = -(-inputs // matrix.block_size)
    rows = (*experts, outputs, blocks)
    shapes = ((*rows, matrix.block_size * matrix.bits // 8), rows, rows)
    parts = _Parts(matrix)
    return tuple(
        add_initializer(
            model, f"{name}.{part}", computed_tensor(f"{name}.{part}", shape, dtype, partial(parts.part, number))
        )
        for number, ((part, dtype), shape) in enumerate(zip(_PARTS, shapes, strict=True))
    )


class _Parts:
    """The arrays of one matrix, which are written one after the other and unpacked together."""

    def __init__(self, matrix: PackedMatrix) -> None:
        self._matrix = matrix
        self._pending: dict[int, NDArray[Any]] = {}

    def part(self, number: int) -> NDArray[Any]:
        if number not in self._pending:
            self._pending = dict(enumerate(self._matrix.read()))
        return self._pending.pop(number)


def _replace(
    model: onnx_ir.Model, product: ConstantProduct, matrix: PackedMatrix, parts: tuple[onnx_ir.Value, ...]
) -> None:
    edit = GraphEditor(model, product.node)
    result = edit.op(
        Op.QUANTIZED_MATMUL, product.left, *parts, domain=DOMAIN, bits=matrix.bits, input_size=matrix.shape[1]
    )
    output = product.node.outputs[0]
    result.type, result.shape = output.type, output.shape
    edit.replace(product.node, result if product.bias is None else edit.op("Add", result, product.bias))


def _keep_experts(
    model: onnx_ir.Model,
    node: MoENode,
    matrices: Mapping[str, PackedMatrix],
    kept: dict[str, tuple[onnx_ir.Value, ...]],
) -> None:
    """Replaces a mixture both of whose weights are packed."""
    found: list[tuple[str, PackedMatrix]] = []
    for value in (node.up, node.down):
        weight = _expert_weight(value)
        matrix = None if weight is None else matrices.get(str(weight.name))
        shape = static_shape(value)
        if weight is None or matrix is None or shape != (matrix.shape[0], *matrix.shape[:0:-1]):
            return
        found.append((str(weight.name), matrix))
    bits = max(matrix.bits for _, matrix in found)
    size = min(matrix.block_size for _, matrix in found)
    for name, matrix in found:
        if name not in kept:
            kept[name] = _initializers(model, name, _in_blocks(matrix, bits, size))
    op = Op.QUANTIZED_MOE if node.op == Op.MOE else Op.QUANTIZED_MOE_BIAS
    biases = (node.up_bias, node.down_bias) if node.op == Op.MOE_BIAS else ()
    edit = GraphEditor(model, node.node)
    gate = {name: attribute.value for name, attribute in node.node.attributes.items()}
    blocks = [part for name, _ in found for part in kept[name]]
    result = edit.op(
        op, node.hidden, node.expert_ids, node.expert_weights, *blocks, *biases, domain=DOMAIN, bits=bits, **gate
    )
    result.type, result.shape = node.output.type, node.output.shape
    edit.replace(node.node, result)


def _expert_weight(value: onnx_ir.Value) -> onnx_ir.Value | None:
    """The initializer that an experts' weight ``[E,K,N]`` is, or is made from by turning each matrix."""
    transpose = made_by(value, "Transpose")
    if transpose is not None:
        if list(transpose.attributes["perm"].as_ints()) != [0, 2, 1]:
            return None
        value = operand(transpose, 0)
    return value if is_weight(value) else None


def _in_blocks(matrix: PackedMatrix, bits: int, size: int) -> PackedMatrix:
    """The same matrices with as many or more bits, and blocks as long or shorter: ``QuantizedMoE`` has both for two weights."""
    if (matrix.bits, matrix.block_size) == (bits, size):
        return matrix
    pieces = matrix.block_size // size
    count = -(-matrix.shape[-1] // size)

    def read() -> _Arrays:
        levels, scales, zero_points = matrix.read()
        if matrix.bits < bits:
            levels = np.stack([levels & 15, levels >> 4], axis=-1).reshape(*levels.shape[:-1], -1)
        levels = levels.reshape(*scales.shape[:-1], -1, size * bits // 8)[..., :count, :]
        scales, zero_points = (np.repeat(part, pieces, axis=-1)[..., :count] for part in (scales, zero_points))
        return levels, scales, zero_points

    return PackedMatrix(shape=matrix.shape, bits=bits, block_size=size, read=read)
