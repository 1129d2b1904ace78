"""Products whose matrix a checkpoint holds in blocks of few bits keep it that way: they become ``QuantizedMatMul``."""

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
from qeff_framework.lowering.weights import computed_tensor

#: The inputs behind the first, and the types of their numbers.
_PARTS: Sequence[tuple[str, DTypeLike]] = (("levels", np.uint8), ("scales", np.float32), ("zero_points", np.uint8))


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
    if kept:
        attach_functions(model)
        common_passes.RemoveUnusedNodesPass()(model)
    return tuple(kept)


def _initializers(model: onnx_ir.Model, name: str, matrix: PackedMatrix) -> tuple[onnx_ir.Value, ...]:
    outputs, inputs = matrix.shape
    blocks = -(-inputs // matrix.block_size)
    shapes = ((outputs, blocks, matrix.block_size * matrix.bits // 8), (outputs, blocks), (outputs, blocks))
    return tuple(
        add_initializer(
            model, f"{name}.{part}", computed_tensor(f"{name}.{part}", shape, dtype, partial(_part, matrix, number))
        )
        for number, ((part, dtype), shape) in enumerate(zip(_PARTS, shapes, strict=True))
    )


def _part(matrix: PackedMatrix, number: int) -> NDArray[Any]:
    return matrix.read()[number]


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
