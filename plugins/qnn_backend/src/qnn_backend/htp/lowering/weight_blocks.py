"""Weights of matrix products are stored in blocks of 4 or 8 bits, ``com.microsoft::MatMulNBits``; everything else stays in
float16.

Each column of a weight ``[K, N]`` is cut into blocks of 32, or of 16 where K asks for it, with one scale each. A weight that
neither divides stays as it is: the compiler wants whole blocks, and inputs of rank 3. Other forms of 4-bit weights (per
channel, or as a standalone dequantisation) are refused by the compiler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qnn_backend.htp.lowering.graph import (
    Writer,
    add_initializer,
    identity,
    is_weight,
    known_sizes,
    number,
    operand,
    sizes,
    standard_nodes,
)

DOMAIN = "com.microsoft"
_BLOCK_SIZES = (32, 16)


@dataclass(frozen=True, kw_only=True)
class _Blocks:
    #: uint8 ``[N, blocks, block * bits / 8]``.
    packed: ir.TensorProtocol
    #: float32 ``[N, blocks]``.
    scales: ir.TensorProtocol
    rows: int
    columns: int
    size: int


@dataclass(frozen=True)
class WeightBlocks:
    """Rewrites each ``MatMul`` and ``Gemm`` with a matrix of weights. One instance serves all graphs of a model."""

    bits: int
    _done: dict[tuple[object, bool], tuple[ir.TensorProtocol, _Blocks]] = field(default_factory=dict)

    def __call__(self, model: ir.Model) -> bool:
        """Says whether a product was rewritten."""
        changed = False
        for node in standard_nodes(model, "MatMul", "Gemm"):
            found = _weight(node)
            if found is None:
                continue
            weight, transposed = found
            self._rewrite(model, node, self._blocks(weight, transposed=transposed))
            changed = True
        return changed

    def _blocks(self, weight: ir.Value, *, transposed: bool) -> _Blocks:
        tensor = weight.const_value
        if tensor is None:
            raise ValueError(f"{weight.name} is no weight")
        key = (identity(tensor), transposed)
        if key not in self._done:
            content = tensor.numpy().astype(np.float32)
            self._done[key] = (tensor, _quantise(content.T if transposed else content, self.bits))
        return self._done[key][1]

    def _rewrite(self, model: ir.Model, node: ir.Node, blocks: _Blocks) -> None:
        write = Writer(model, node)
        shape = known_sizes(node.outputs[0])
        left = operand(node, 0)
        rows = known_sizes(left)
        ranked = write.reshape(left, (1, math.prod(rows[:-1]), rows[-1]) if len(rows) != 3 else rows)
        product = write.op(
            "MatMulNBits",
            ranked,
            _shared(model, "blocks", blocks.packed),
            _shared(model, "scales", blocks.scales),
            domain=DOMAIN,
            K=blocks.rows,
            N=blocks.columns,
            bits=self.bits,
            block_size=blocks.size,
            shape=(*known_sizes(ranked)[:-1], blocks.columns),
        )
        product = write.reshape(product, shape)
        model.opset_imports[DOMAIN] = 1
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        write.replace(node, product if bias is None else write.op("Add", product, bias, shape=shape))


def _shared(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """The initializer with this tensor; two products with one weight share it."""
    for value in model.graph.initializers.values():
        if value.const_value is tensor:
            return value
    value = add_initializer(model, name, np.zeros(0, np.float32))
    value.const_value, value.shape, value.type = tensor, ir.Shape(tensor.numpy().shape), ir.TensorType(tensor.dtype)
    return value


def _weight(node: ir.Node) -> tuple[ir.Value, bool] | None:
    """The matrix of weights and whether it is used transposed."""
    if node.op_type == "Gemm" and (number(node, "alpha", 1.0) != 1.0 or number(node, "beta", 1.0) != 1.0):
        return None
    if number(node, "transA"):
        return None
    value, transposed = operand(node, 1), bool(number(node, "transB"))
    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose" and is_weight(producer.inputs[0]):
        value, transposed = operand(producer, 0), not transposed
    shape = sizes(value)
    if not is_weight(value) or value.dtype != ir.DataType.FLOAT or shape is None or len(shape) != 2:
        return None
    if _block_size(shape[1] if transposed else shape[0]) is None:
        return None
    return value, transposed


def _block_size(rows: int) -> int | None:
    return next((size for size in _BLOCK_SIZES if rows % size == 0), None)


def _quantise(weight: NDArray[np.float32], bits: int) -> _Blocks:
    """Symmetric: 0 is the middle of the range, which is what the op assumes without zero points."""
    rows, columns = weight.shape
    size = _block_size(rows)
    if size is None:
        raise ValueError(f"{rows} rows are no whole number of blocks")
    cut = np.ascontiguousarray(weight.T).reshape(columns, rows // size, size)
    middle = 2 ** (bits - 1)
    scales = np.abs(cut).max(axis=2) / (middle - 1)
    scales[scales == 0] = 1.0
    levels = np.clip(np.rint(cut / scales[..., None]) + middle, 0, 2 * middle - 1).astype(np.uint8)
    packed = levels if bits == 8 else levels[..., 0::2] | levels[..., 1::2] << 4
    return _Blocks(
        packed=ir.Tensor(packed, name="blocks"),
        scales=ir.Tensor(scales.astype(np.float32), name="scales"),
        rows=rows,
        columns=columns,
        size=size,
    )
