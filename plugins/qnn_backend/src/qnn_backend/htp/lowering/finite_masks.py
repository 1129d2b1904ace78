"""Very negative constants, which stand for "not visible", are moved to a number that the precision can hold.

In float16 the lowest float32 is -inf. In a quantised graph it takes the whole range, and every other score becomes zero.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qnn_backend.htp.lowering.graph import shared_constant, sizes

#: Nothing that a model computes with is as low as this.
_THRESHOLD = -1e4
#: Larger constants are weights, and need not be read.
_MAX_ELEMENTS = 1 << 22


class FiniteMasks:
    """Raises constants below -1e4 to `lowest`."""

    name = "FiniteMasks"
    version = "1"

    def __init__(self, lowest: float) -> None:
        self._lowest = np.float32(lowest)
        self.version = f"1 ({lowest:g})"

    def __call__(self, model: ir.Model) -> bool:
        """Says whether a constant was raised."""
        changed = False
        for value in list(model.graph.initializers.values()):
            shape = sizes(value)
            if value.dtype != ir.DataType.FLOAT or shape is None or int(np.prod(shape)) > _MAX_ELEMENTS:
                continue
            tensor = value.const_value
            content = None if tensor is None else tensor.numpy()
            if content is None or not (content < _THRESHOLD).any():
                continue
            finite = np.where(content < _THRESHOLD, self._lowest, content).astype(np.float32)
            value.replace_all_uses_with(shared_constant(model, finite))
            changed = True
        return changed
