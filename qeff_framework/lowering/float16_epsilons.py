"""Constants that keep a divisor above zero stay above zero in float16."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qeff_framework.lowering.editor import GraphEditor
from qeff_framework.lowering.passes import GraphPass
from qeff_framework.lowering.values import constant_array, is_weight
from qeff_framework.lowering.weights import weight_of

#: Half the smallest float16 above zero: what is below is rounded to zero.
_LOST: Final = 2.0**-25
#: The smallest normal number. A device may take smaller ones for zero.
_SMALLEST: Final = 2.0**-14
#: Where such a constant stands: a term of a sum, or the lower end of a range.
_INPUTS: Final = {"Add": (0, 1), "Max": (0, 1), "Clip": (1,)}


class Float16Epsilons(GraphPass):
    """Raises single constants such as 1e-15, where they are added or are a lower bound, to the smallest normal float16.

    Otherwise a device that computes in float16 divides zero by zero where torch, in float32, gets zero.
    """

    name = "Float16Epsilons"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether a constant was raised."""
        changed = False
        for node in list(model.graph.all_nodes()):
            for number in () if node.domain else _INPUTS.get(node.op_type, ()):
                value = node.inputs[number] if number < len(node.inputs) else None
                content = None if value is None or _is_large(value) else constant_array(value)
                if content is not None and _is_lost(content):
                    raised = np.full_like(content, _SMALLEST)
                    node.replace_input_with(number, GraphEditor(model, node).array(raised))
                    changed = True
        return changed


def _is_large(value: ir.Value) -> bool:
    """Weights are not read."""
    return is_weight(value) and weight_of(value).size != 1


def _is_lost(content: NDArray[Any]) -> bool:
    return content.size == 1 and content.dtype.kind == "f" and 0 < float(content.item()) < _LOST
