"""``CausalMask`` becomes the comparisons that its limits need, and no others."""

from __future__ import annotations

import onnx_ir as ir

from qaic_backend.lowering.graph import Writer, dialect_nodes, inputs_of, number


class CausalMaskOps:
    """Lowers every ``CausalMask``."""

    name = "CausalMaskOps"
    version = "1"

    def __call__(self, model: ir.Model) -> bool:
        """Says whether a mask was lowered."""
        masks = dialect_nodes(model, "CausalMask")
        for mask in masks:
            position_ids, kv_positions = inputs_of(mask)
            write = Writer()
            write.replace(mask, _visible(write, mask, position_ids, kv_positions))
        return bool(masks)


def _visible(write: Writer, mask: ir.Node, position_ids: ir.Value, kv_positions: ir.Value) -> ir.Value:
    # Padding sees slot 0, so that no row of a softmax is empty.
    positions = write.op("Max", position_ids, write.int(0))
    query = write.op("Unsqueeze", positions, write.ints(1, 3))
    visible = write.op("LessOrEqual", kv_positions, query)
    if window := int(number(mask, "window")):
        oldest = write.op("Sub", query, write.int(window))
        visible = write.op("And", visible, write.op("Greater", kv_positions, oldest))
    if chunk := int(number(mask, "chunk")):
        size = write.int(chunk)
        same = write.op("Equal", write.op("Div", query, size), write.op("Div", kv_positions, size))
        visible = write.op("And", visible, same)
    return visible
