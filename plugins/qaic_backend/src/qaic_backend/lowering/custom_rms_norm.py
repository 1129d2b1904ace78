"""``RMSNorm`` becomes ``CustomRMSNorm``, which the compiler maps to a kernel of its own.

That kernel keeps the sum of squares out of FP16, where hidden states above 256 would overflow.
"""

from __future__ import annotations

import onnx_ir as ir

from qaic_backend.lowering.graph import NATIVE_FUNCTIONS, Writer, attach_function, dialect_nodes, inputs_of, number

_BODY = """
CustomRMSNorm <epsilon: float> (hidden_states, weight) => (result)
{
    last_axis = Constant <value_ints = [-1]> ()
    two = Constant <value_float = 2.0> ()
    margin = Constant <value_float: float = @epsilon> ()
    squares = Pow (hidden_states, two)
    mean = ReduceMean <keepdims = 1> (squares, last_axis)
    shifted = Add (mean, margin)
    root = Sqrt (shifted)
    unit = Div (hidden_states, root)
    result = Mul (unit, weight)
}
"""


class CustomRMSNorm:
    """Lowers every ``RMSNorm`` in float32; others keep the body that converts them."""

    name = "CustomRMSNorm"
    version = "1"

    def __call__(self, model: ir.Model) -> bool:
        """Says whether a norm was lowered."""
        lowered = False
        for norm in dialect_nodes(model, "RMSNorm"):
            hidden, weight = inputs_of(norm)
            if not hidden.dtype == weight.dtype == ir.DataType.FLOAT:
                continue
            write = Writer()
            epsilon = number(norm, "epsilon")
            write.replace(norm, write.op("CustomRMSNorm", hidden, weight, domain=NATIVE_FUNCTIONS, epsilon=epsilon))
            lowered = True
        if lowered:
            attach_function(model, NATIVE_FUNCTIONS, _BODY)
        return lowered
