"""``RMSNorm`` becomes ONNX ``RMSNormalization``, which the compiler maps to a kernel of its own.

Composed of single ops in float16 it is wrong from hidden states of 256 on, whose squares leave the range, and with the weight
as the first operand of its last product the compiler gives up with a misleading message about memory.
"""

from __future__ import annotations

import onnx_ir as ir

from qnn_backend.htp.lowering.graph import Writer, dialect_nodes, known_sizes, number, operand


class FusedRMSNorm:
    """Lowers every ``RMSNorm`` in float32."""

    name = "FusedRMSNorm"
    version = "1"

    def __call__(self, model: ir.Model) -> bool:
        """Says whether a norm was lowered."""
        lowered = False
        for norm in dialect_nodes(model, "RMSNorm"):
            hidden, weight = operand(norm, 0), operand(norm, 1)
            if not hidden.dtype == weight.dtype == ir.DataType.FLOAT:
                continue
            write = Writer(model, norm)
            normed = write.op(
                "RMSNormalization", hidden, weight, axis=-1, epsilon=number(norm, "epsilon"), shape=known_sizes(hidden)
            )
            write.replace(norm, normed)
            lowered = True
        return lowered
