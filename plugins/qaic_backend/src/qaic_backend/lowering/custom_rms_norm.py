"""``RMSNorm`` becomes ``CustomRMSNorm``, which the compiler maps to a kernel of its own.

That kernel keeps the sum of squares out of FP16, where hidden states above 256 would overflow.
"""

from __future__ import annotations

import onnx_ir as ir

from qaic_backend.lowering.device import NATIVE_FUNCTIONS
from qeff_framework.lowering import DialectPass, GraphEditor, RMSNormNode

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


class CustomRMSNorm(DialectPass[RMSNormNode]):
    """Lowers every ``RMSNorm`` in float32; others keep the body that converts them."""

    name = "CustomRMSNorm"
    version = "2"
    node_type = RMSNormNode

    def lower(self, node: RMSNormNode, edit: GraphEditor) -> ir.Value | None:
        """A call of the function."""
        if not node.hidden.dtype == node.weight.dtype == ir.DataType.FLOAT:
            return None
        return edit.call(_BODY, NATIVE_FUNCTIONS, node.hidden, node.weight, epsilon=node.epsilon)
