"""A product with a constant matrix becomes ``MatMulNBits``, which keeps the matrix in blocks of 8 or 4 bits.

A decode step reads every weight once, so what it takes goes by their size. The kernel makes 8-bit numbers of the activations as
well, in blocks of their own; with float32 activations it is slower than the plain product.

The product that chooses a mixture's experts stays as it is: it is small, and another expert is another result.

All products get 8 bits here. Which of them bear 4 bits is measured with this model by the compile stage, `narrowing`. The last
products, which give the logits, do not; those of chosen tokens of each row for a large vocabulary are made ranked products there.
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
    made_by,
    operand,
)

#: What `LayerProducts` leaves in the `meta` of a node: the `ConstantProduct` that it was.
PRODUCT = "ort_sim.product"
#: What `CompressedLastProducts` leaves in the `meta` of a node that may become a ranked product: what it was.
LAST_PRODUCT = "ort_sim.last_product"
#: What a program makes of its logits where it does not return them: a sampler's results.
_RESULTS = ("logits", "next_tokens", "probs")
#: Smaller vocabularies are not ranked.
_LARGE_VOCABULARY = 1 << 14

_ATTRIBUTES = {"accuracy_level": INT8_ACTIVATIONS}


def compressed_products(blocks: WeightBlocks) -> tuple[CompressedLastProducts, LayerProducts]:
    """The passes; they find the products that choose experts by the mixtures, so these must be there yet."""
    return (
        CompressedLastProducts(lambda length: blocks, excluded=_all_but_last, attributes=_ATTRIBUTES),
        LayerProducts(lambda length: blocks, excluded=_routers, attributes=_ATTRIBUTES),
    )


class CompressedLastProducts(CompressedProducts):
    """Compresses the products that give logits, and remembers what those were that may be ranked."""

    name = "CompressedLastProducts"
    version = "5"

    def lower(self, edit: GraphEditor, product: ConstantProduct, blocks: WeightBlocks) -> ir.Value:
        """See `CompressedProducts.lower`."""
        result = super().lower(edit, product, blocks)
        length, vocabulary = product.sizes
        if (
            vocabulary >= _LARGE_VOCABULARY
            and length % blocks.size == 0
            # It would change the order.
            and product.bias is None
            and product.node.graph is edit.model.graph
            and tokens_of(product.left) is not None
        ):
            _product_in(edit).meta[LAST_PRODUCT] = product
        return result


def tokens_of(chosen: ir.Value) -> ir.Value | None:
    """``[B, S, K]``, of which `chosen` ``[B, N, K]`` is some tokens of each row; `None` if it is something else."""
    choice = made_by(chosen, "GatherElements")
    if choice is None or choice.attributes.get_int("axis", 0) != 1:
        return None
    return operand(choice, 0) if chosen.shape is not None and len(chosen.shape) == 3 else None


class LayerProducts(CompressedProducts):
    """Compresses products and remembers what each was."""

    name = "LayerProducts"
    version = "1"

    def lower(self, edit: GraphEditor, product: ConstantProduct, blocks: WeightBlocks) -> ir.Value:
        """See `CompressedProducts.lower`."""
        result = super().lower(edit, product, blocks)
        _product_in(edit).meta[PRODUCT] = product
        return result


def _product_in(edit: GraphEditor) -> ir.Node:
    (node,) = (node for node in edit.written if node.op_type == "MatMulNBits")
    return node


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
    results = [value for value in model.graph.outputs if value.name in _RESULTS]
    return {product.node for product in constant_products(model)} - _nearest_products(results)


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
