"""A product with a constant matrix becomes ``MatMulNBits``, which keeps the matrix in blocks of 8 or 4 bits.

A decode step reads every weight once, so what it takes goes by their size. The kernel makes 8-bit numbers of the activations as
well, in blocks of their own; with float32 activations it is slower than the plain product.

The product that chooses a mixture's experts stays as it is: it is small, and another expert is another result.

For 4 bits all products get 8 bits here. Which of them bear 4 bits is measured with this model by the compile stage, `narrowing`.
The last products, which give the logits, keep 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ort_sim_backend.lowering.kernels import INT8_ACTIVATIONS
from qeff_framework.lowering import (
    CompressedProducts,
    ConstantProduct,
    GraphEditor,
    MoENode,
    QuantizedMoENode,
    WeightBlocks,
    constant_products,
    dialect_nodes,
)

#: What `LayerProducts` leaves in the `meta` of a node: the `ConstantProduct` that it was.
PRODUCT = "ort_sim.product"

_ATTRIBUTES = {"accuracy_level": INT8_ACTIVATIONS}


def compressed_products(blocks: WeightBlocks, *, narrowable: bool = False) -> tuple[CompressedProducts, ...]:
    """The passes; they find the products that choose experts by the mixtures, so these must be there yet.

    Args:
        blocks: how weights are cut.
        narrowable: the products of the layers may be given fewer bits later.
    """
    if not narrowable:
        return (CompressedProducts(lambda length: blocks, excluded=_routers, attributes=_ATTRIBUTES),)
    return (
        CompressedLastProducts(lambda length: blocks, excluded=_all_but_last, attributes=_ATTRIBUTES),
        LayerProducts(lambda length: blocks, excluded=_routers, attributes=_ATTRIBUTES),
    )


class CompressedLastProducts(CompressedProducts):
    """Compresses the products that give logits."""

    name = "CompressedLastProducts"
    version = "2"


class LayerProducts(CompressedProducts):
    """Compresses products and remembers what each was."""

    name = "LayerProducts"
    version = "1"

    def lower(self, edit: GraphEditor, product: ConstantProduct, blocks: WeightBlocks) -> ir.Value:
        """See `CompressedProducts.lower`."""
        result = super().lower(edit, product, blocks)
        (node,) = (node for node in edit.written if node.op_type == "MatMulNBits")
        node.meta[PRODUCT] = product
        return result


def _routers(model: ir.Model) -> set[ir.Node]:
    """The last product before each choice of experts."""
    mixtures: list[MoENode | QuantizedMoENode] = [
        *dialect_nodes(model, MoENode),
        *dialect_nodes(model, QuantizedMoENode),
    ]
    return {
        product for mixture in mixtures for product in _nearest_products([mixture.expert_ids, mixture.expert_weights])
    }


def _all_but_last(model: ir.Model) -> set[ir.Node]:
    """Every product whose result another one reads."""
    logits = [value for value in model.graph.outputs if value.name == "logits"]
    return {product.node for product in constant_products(model)} - _nearest_products(logits)


def _nearest_products(values: Sequence[ir.Value]) -> set[ir.Node]:
    """The products that `values` are computed from with no other product between."""
    found: set[ir.Node] = set()
    seen, waiting = set[ir.Node](), list(values)
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if ConstantProduct.of(node) is not None:
            found.add(node)
        else:
            waiting.extend(value for value in node.inputs if value is not None)
    return found
