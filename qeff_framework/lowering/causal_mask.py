"""``CausalMask`` becomes the comparisons that its limits need, and no others."""

from __future__ import annotations

import onnx_ir as ir

from qeff_framework.lowering.editor import GraphEditor
from qeff_framework.lowering.nodes import CausalMaskNode
from qeff_framework.lowering.passes import DialectPass


class CausalMaskOps(DialectPass[CausalMaskNode]):
    """Lowers every ``CausalMask``. Positions are compared as `dtype`: int64, or int32 for devices without 64-bit integers."""

    name = "CausalMaskOps"
    version = "2"
    node_type = CausalMaskNode

    def __init__(self, dtype: ir.DataType = ir.DataType.INT64) -> None:
        self._dtype = dtype

    def lower(self, node: CausalMaskNode, edit: GraphEditor) -> ir.Value:
        """Bool ``[B,1,S,C]``."""

        def number(value: int) -> ir.Value:
            return edit.cast(edit.int64(value), self._dtype)

        # Padding sees slot 0, so that no row of a softmax is empty.
        positions = edit.op("Max", edit.cast(node.position_ids, self._dtype), number(0))
        query = edit.op("Unsqueeze", positions, edit.int64s(1, 3))
        slots = edit.cast(node.kv_positions, self._dtype)
        visible = edit.op("LessOrEqual", slots, query)
        if node.window:
            oldest = edit.op("Sub", query, number(node.window))
            visible = edit.op("And", visible, edit.op("Greater", slots, oldest))
        if node.chunk:
            size = number(node.chunk)
            same_chunk = edit.op("Equal", edit.op("Div", query, size), edit.op("Div", slots, size))
            visible = edit.op("And", visible, same_chunk)
        return visible
