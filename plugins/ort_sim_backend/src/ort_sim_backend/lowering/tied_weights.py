"""A product with the transpose of a weight that is also read as it is becomes one FusedMatMul, which transposes while it reads.

Such is the output layer of a model that shares its weight with the embedding, often the largest weight there is. ONNX Runtime
would compute the transpose at compile time and store it as a second weight: 1.74 GB instead of 1.07 GB for Gemma 3 270M.
"""

from __future__ import annotations

import onnx_ir as ir

from ort_sim_backend.lowering.kernels import CONTRIB
from qeff_framework.lowering import GraphEditor, GraphPass, constant_products


class TiedWeights(GraphPass):
    """Lowers each ``MatMul`` whose right side is the transpose of a weight with other readers."""

    name = "TiedWeights"
    version = "2"

    def run(self, model: ir.Model) -> bool:
        """Says whether a product was lowered."""
        found = [
            product
            for product in constant_products(model)
            if product.node.op_type == "MatMul" and product.transposed and len(product.weight.uses()) > 1
            if product.weight.dtype == ir.DataType.FLOAT
        ]
        for product in found:
            edit = GraphEditor(model, product.node)
            # The node's own input: the left side may be the result of a product that was replaced meanwhile.
            fused = edit.op("FusedMatMul", product.node.inputs[0], product.weight, domain=CONTRIB, transB=1)
            edit.replace(product.node, fused)
        return bool(found)
