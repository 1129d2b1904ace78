"""A product with a constant matrix becomes ``MatMulNBits``, which keeps the matrix in blocks of 8 or 4 bits.

A decode step reads every weight once, so what it takes goes by their size. The kernel makes 8-bit numbers of the activations as
well, in blocks of their own; with float32 activations it is slower than the plain product.

The product that chooses a mixture's experts stays as it is: it is small, and another expert is another result.
"""

from __future__ import annotations

import onnx_ir as ir

from ort_sim_backend.lowering.kernels import INT8_ACTIVATIONS
from qeff_framework.lowering import CompressedProducts, ConstantProduct, MoENode, WeightBlocks, dialect_nodes


def compressed_products(blocks: WeightBlocks) -> CompressedProducts:
    """The pass; it finds the products that choose experts by the mixtures, so these must be there yet."""
    return CompressedProducts(lambda length: blocks, excluded=_routers, attributes={"accuracy_level": INT8_ACTIVATIONS})


def _routers(model: ir.Model) -> set[ir.Node]:
    """The last product before each choice of experts."""
    found: set[ir.Node] = set()
    for mixture in dialect_nodes(model, MoENode):
        seen, waiting = set[ir.Node](), [mixture.expert_ids, mixture.expert_weights]
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
