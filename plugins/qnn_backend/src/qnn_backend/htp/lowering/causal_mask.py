"""``CausalMask`` becomes comparisons of 32-bit positions, and those of its limits only that it has."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qnn_backend.htp.lowering.graph import Writer, constant, dialect_nodes, known_sizes, number, operand


class CausalMaskOps:
    """Lowers every ``CausalMask``."""

    name = "CausalMaskOps"
    version = "1"

    def __call__(self, model: ir.Model) -> bool:
        """Says whether a mask was lowered."""
        masks = dialect_nodes(model, "CausalMask")
        for mask in masks:
            write = Writer(model, mask)
            write.replace(mask, _visible(write, mask))
        return bool(masks)


def _visible(write: Writer, mask: ir.Node) -> ir.Value:
    position_ids, slots = operand(mask, 0), operand(mask, 1)
    rows, tokens = known_sizes(position_ids)
    window, chunk = int(number(mask, "window")), int(number(mask, "chunk"))
    shape, column = (rows, 1, tokens, *known_sizes(slots)), (rows, 1, tokens, 1)
    narrow = write.op("Cast", position_ids, to=ir.DataType.INT32.value, shape=(rows, tokens), dtype=ir.DataType.INT32)
    # Padding sees slot 0, so that no row of a softmax is empty.
    positions = write.op(
        "Max", narrow, write.array(np.array(0, np.int32)), shape=(rows, tokens), dtype=ir.DataType.INT32
    )
    query = write.reshape(positions, column)
    slot_numbers = constant(slots)
    if slot_numbers is None:
        keys = write.op("Cast", slots, to=ir.DataType.INT32.value, shape=known_sizes(slots), dtype=ir.DataType.INT32)
    else:
        keys = write.array(slot_numbers.astype(np.int32))

    def integer(op_type: str, left: ir.Value, right: ir.Value, result: tuple[int, ...]) -> ir.Value:
        return write.op(op_type, left, right, shape=result, dtype=ir.DataType.INT32)

    def truth(op_type: str, left: ir.Value, right: ir.Value) -> ir.Value:
        return write.op(op_type, left, right, shape=shape, dtype=ir.DataType.BOOL)

    visible = truth("LessOrEqual", keys, query)
    if window:
        oldest = integer("Sub", query, write.array(np.array(window, np.int32)), column)
        visible = truth("And", visible, truth("Greater", keys, oldest))
    if chunk:
        size = write.array(np.array(chunk, np.int32))
        own = integer("Div", query, size, column)
        theirs = integer("Div", keys, size, known_sizes(slots))
        visible = truth("And", visible, truth("Equal", own, theirs))
    return visible
