"""``RMSNorm`` becomes ONNX Runtime's SimplifiedLayerNormalization, one kernel instead of the body's ten nodes.

ONNX Runtime keeps the op in the standard domain. It computes in float32 whatever the input is (``stash_type``), as the dialect
asks. Its own fusions recognise the op, so a residual sum in front of it is fused as well.
"""

from __future__ import annotations

import onnx_ir as ir

from ort_sim_backend.lowering.graph import Writer, dialect_nodes, like, number, operand


class SimplifiedRMSNorm:
    """Lowers every ``RMSNorm`` whose weight has the input's dtype."""

    name = "SimplifiedRMSNorm"
    version = "1"

    def __call__(self, subject: ir.Model) -> bool:
        """Says whether a norm was lowered."""
        norms = [norm for norm in dialect_nodes(subject, "RMSNorm") if _has_one_dtype(norm)]
        for norm in norms:
            write, normed = Writer(norm), like(norm.outputs[0])
            attributes = {
                "axis": -1,
                "epsilon": number(norm, "epsilon", 0.0),
                "stash_type": ir.DataType.FLOAT.value,
            }
            write.ops("SimplifiedLayerNormalization", norm.inputs, [normed], "", attributes)
            write.replace(norm, [normed])
        return bool(norms)


def _has_one_dtype(norm: ir.Node) -> bool:
    hidden, weight = operand(norm, 0).dtype, operand(norm, 1).dtype
    return hidden is not None and hidden == weight
