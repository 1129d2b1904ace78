"""Products with a constant matrix become ``MatMulNBits``, which keeps the matrix in blocks of few bits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qeff_framework.lowering.constant_products import ConstantProduct, constant_products
from qeff_framework.lowering.editor import GraphEditor, add_initializer
from qeff_framework.lowering.passes import GraphPass
from qeff_framework.lowering.stored_weights import StoredWeight
from qeff_framework.lowering.values import require_shape, static_shape
from qeff_framework.lowering.weight_blocks import WeightBlocks
from qeff_framework.lowering.weights import computed_tensor, content_key, weight_of

_CONTRIB = "com.microsoft"


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
    version = "3"

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
        #: By content: the weight, so that its identity stays its own, and its levels, scales and zeros.
        self._known: dict[Hashable, tuple[ir.TensorProtocol, ...]] = {}
        #: Scales and zeros of the weight that was compressed last, until they are written.
        self._kept: dict[Hashable, NDArray[Any]] = {}

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
        weight = self.compressed(edit.model, product.weight, blocks, transposed=product.transposed)
        result = edit.op(
            "MatMulNBits",
            left,
            *weight,
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

    def compressed(
        self, model: ir.Model, weight: ir.Value, blocks: WeightBlocks, *, transposed: bool
    ) -> Sequence[ir.Value]:
        """Levels ``[N, blocks, bytes]`` and scales ``[N, blocks]`` of a weight, as initializers that all readers share.

        Fitted blocks have their zeros behind these, ``[N, bytes]``.

        Args:
            model: gets the initializers.
            weight: ``[K, N]``, or ``[N, K]`` if `transposed`.
            blocks: how the K numbers of each of the N are cut.
            transposed: the layout of `weight`.
        """
        source = weight_of(weight)
        key = (content_key(source), transposed, blocks)
        if key not in self._known:
            rows, columns = (int(size) for size in source.shape.numpy())
            length, count = (columns, rows) if transposed else (rows, columns)
            shape = (count, blocks.count(length), blocks.bytes)
            name = f"{weight.name}_{'transposed_' if transposed else ''}blocks"

            def part(name: str) -> NDArray[Any]:
                kept = self._kept.pop((key, name), None)
                if kept is not None:
                    return kept
                made = blocks.compressed(_row_pieces(source, transposed=transposed), count, length)
                # The parts of a weight are written one after the other: what is small waits for that, of one weight only.
                self._kept = {(key, other): getattr(made, other) for other in ("scales", "zeros") if other != name}
                found: NDArray[Any] = getattr(made, name)
                return found

            levels = computed_tensor(name, shape, np.uint8, lambda: part("levels"))
            scales = computed_tensor(f"{name}_scales", shape[:2], np.float32, lambda: part("scales"))
            self._known[key] = (source, levels, scales)
            if blocks.fitted:
                packed = (count, blocks.bytes_of_zeros(length))
                zeros = computed_tensor(f"{name}_zeros", packed, np.uint8, lambda: part("zeros"))
                self._known[key] = (source, levels, scales, zeros)
        return [_initializer(model, tensor) for tensor in self._known[key][1:]]


def _row_pieces(source: ir.TensorProtocol, *, transposed: bool) -> Iterator[NDArray[Any]]:
    """The rows of the matrix ``[N, K]``, some at a time where it lies in a file."""
    if isinstance(source, StoredWeight):
        yield from (source if transposed else source.turned((1, 0))).pieces()
    else:
        array = source.numpy()
        yield array if transposed else array.T


def _initializer(model: ir.Model, tensor: ir.TensorProtocol) -> ir.Value:
    """The initializer with this tensor; products with one weight share it."""
    known = model.graph.initializers.get(str(tensor.name))
    return (
        known if known is not None and known.const_value is tensor else add_initializer(model, str(tensor.name), tensor)
    )
