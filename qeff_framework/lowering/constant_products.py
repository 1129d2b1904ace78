"""Products with a constant matrix: finding them, and storing their weights in fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qeff_framework.lowering.editor import GraphEditor, add_initializer
from qeff_framework.lowering.passes import GraphPass
from qeff_framework.lowering.values import is_weight, made_by, operand, require_shape, static_shape
from qeff_framework.lowering.weight_blocks import WeightBlocks
from qeff_framework.lowering.weights import computed_tensor, content_key, weight_of

_CONTRIB = "com.microsoft"


@dataclass(frozen=True, kw_only=True)
class ConstantProduct:
    """``left [...,K] @ weight [K,N]`` of floats, or ``@ weight.T`` of ``[N,K]``, plus ``bias [N]``."""

    node: ir.Node
    left: ir.Value
    #: An initializer, also where a ``Transpose`` stands between it and the product.
    weight: ir.Value
    transposed: bool
    bias: ir.Value | None

    @classmethod
    def of(cls, node: ir.Node) -> ConstantProduct | None:
        """What a ``MatMul`` or a plain ``Gemm`` computes; `None` for other nodes and when the right side is no weight matrix."""
        if node.domain or node.op_type not in ("MatMul", "Gemm"):
            return None
        attributes = node.attributes
        if attributes.get_int("transA", 0) or attributes.get_float("alpha", 1.0) != attributes.get_float("beta", 1.0):
            return None
        if attributes.get_float("alpha", 1.0) != 1.0:
            return None
        weight, transposed = operand(node, 1), bool(attributes.get_int("transB", 0))
        transpose = made_by(weight, "Transpose")
        if transpose is not None:
            weight, transposed = operand(transpose, 0), not transposed
        if not is_weight(weight) or len(weight_of(weight).shape) != 2:
            return None
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        return cls(node=node, left=operand(node, 0), weight=weight, transposed=transposed, bias=bias)

    @property
    def sizes(self) -> tuple[int, int]:
        """K and N."""
        rows, columns = (int(size) for size in weight_of(self.weight).shape.numpy())
        return (columns, rows) if self.transposed else (rows, columns)


def constant_products(model: ir.Model) -> list[ConstantProduct]:
    """All products with a constant matrix, those in subgraphs included, in graph order."""
    return [product for node in model.graph.all_nodes() if (product := ConstantProduct.of(node)) is not None]


class CompressedProducts(GraphPass):
    """Each product with a constant matrix of float32 becomes a ``MatMulNBits``, which keeps the matrix in blocks of few bits.

    One instance may run on several graphs of a model: a weight is compressed once for all of them, when it is written.

    Args:
        blocks_for: how a weight with K rows is cut, `None` to leave it as it is.
        excluded: which nodes of a model stay as they are.
        ranked: give products a left side of rank 3, for kernels that take no other.
        attributes: further attributes of the op.
    """

    name = "CompressedProducts"
    version = "2"

    def __init__(
        self,
        blocks_for: Callable[[int], WeightBlocks | None],
        *,
        excluded: Callable[[ir.Model], Collection[ir.Node]] = lambda model: (),
        ranked: bool = False,
        attributes: Mapping[str, int] | None = None,
    ) -> None:
        self._blocks_for = blocks_for
        self._excluded = excluded
        self._ranked = ranked
        self._attributes = dict(attributes or {})
        #: By content: the weight, so that its identity stays its own, and its levels and scales.
        self._known: dict[Hashable, tuple[ir.TensorProtocol, ir.TensorProtocol, ir.TensorProtocol]] = {}

    def run(self, model: ir.Model) -> bool:
        """Says whether a product was replaced."""
        excluded = self._excluded(model)
        lowered = False
        for product in constant_products(model):
            blocks = self._blocks_for(product.sizes[0])
            if blocks is None or product.node in excluded or product.weight.dtype != ir.DataType.FLOAT:
                continue
            edit = GraphEditor(model, product.node)
            edit.replace(product.node, self._lower(edit, product, blocks))
            lowered = True
        return lowered

    def _lower(self, edit: GraphEditor, product: ConstantProduct, blocks: WeightBlocks) -> ir.Value:
        length, columns = product.sizes
        left, shape = product.left, static_shape(product.left)
        is_ranked = not self._ranked or (shape is not None and len(shape) == 3)
        if not is_ranked:
            left = edit.reshape(left, (1, -1, length))
        levels, scales = (_initializer(edit.model, tensor) for tensor in self._compressed(product, blocks))
        result = edit.op(
            "MatMulNBits",
            left,
            levels,
            scales,
            domain=_CONTRIB,
            K=length,
            N=columns,
            bits=blocks.bits,
            block_size=blocks.size,
            **self._attributes,
        )
        result.type = ir.TensorType(ir.DataType.FLOAT)
        if left.shape is not None:
            result.shape = ir.Shape((*left.shape[:-1], columns))
        if not is_ranked:
            result = edit.reshape(result, require_shape(product.node.outputs[0]))
        return result if product.bias is None else edit.op("Add", result, product.bias)

    def _compressed(self, product: ConstantProduct, blocks: WeightBlocks) -> Sequence[ir.TensorProtocol]:
        """Levels ``[N, blocks, bytes]`` and scales ``[N, blocks]`` of the columns."""
        source, transposed = weight_of(product.weight), product.transposed
        key = (content_key(source), transposed, blocks)
        if key not in self._known:
            length, columns = product.sizes
            shape = (columns, blocks.count(length), blocks.bytes)
            name = f"{product.weight.name}_{'transposed_' if transposed else ''}blocks"

            def content() -> NDArray[Any]:
                array = source.numpy()
                return array if transposed else array.T

            levels = computed_tensor(name, shape, np.uint8, lambda: blocks.levels(content()))
            scales = computed_tensor(f"{name}_scales", shape[:2], np.float32, lambda: blocks.scales(content()))
            self._known[key] = (source, levels, scales)
        return self._known[key][1:]


def _initializer(model: ir.Model, tensor: ir.TensorProtocol) -> ir.Value:
    """The initializer with this tensor; products with one weight share it."""
    known = model.graph.initializers.get(str(tensor.name))
    return (
        known if known is not None and known.const_value is tensor else add_initializer(model, str(tensor.name), tensor)
    )
