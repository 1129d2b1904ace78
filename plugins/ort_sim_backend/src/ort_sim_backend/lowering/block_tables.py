"""Rows of a table in blocks of few bits, as numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qeff_framework.lowering import GraphEditor

#: What `rows_of_table` leaves in the `meta` of the nodes that look rows up.
LOOKUP = "ort_sim.lookup"


def rows_of_table(
    edit: GraphEditor, levels: ir.Value, scales: ir.Value, rows: ir.Value, *, bits: int, length: int
) -> ir.Value:
    """The rows that `rows` ``[...]`` names: float32 ``[..., length]``.

    Args:
        edit: where it is written.
        levels: ``[N, blocks, bytes]``, around the middle.
        scales: ``[N, blocks]``
        rows: int64.
        bits: of a level.
        length: numbers of a row, which fill its blocks.
    """
    parts = [edit.op("Gather", part, rows, axis=0) for part in (levels, scales)]
    for part in parts:
        if (lookup := part.producer()) is not None:
            lookup.meta[LOOKUP] = True
    numbers = _numbers(edit, parts[0], bits)
    factors = edit.op("Unsqueeze", parts[1], edit.int64s(-1))
    shape = edit.op("Concat", edit.op("Shape", rows), edit.int64s(length), axis=0)
    return edit.op("Reshape", edit.op("Mul", numbers, factors), shape)


def _numbers(edit: GraphEditor, levels: ir.Value, bits: int) -> ir.Value:
    """Levels ``[..., bytes]`` as float32 ``[..., size]`` around zero."""
    middle = edit.array(np.array(2 ** (bits - 1), np.float32))
    if bits == 8:
        return edit.op("Sub", edit.cast(levels, ir.DataType.FLOAT), middle)
    # Of two levels in a byte the first has the low bits.
    low = edit.op("BitwiseAnd", levels, edit.array(np.array(15, np.uint8)))
    high = edit.op("BitShift", levels, edit.array(np.array(4, np.uint8)), direction="RIGHT")
    pairs = edit.op("Concat", *(edit.op("Unsqueeze", each, edit.int64s(-1)) for each in (low, high)), axis=-1)
    flat = edit.op("Shape", levels, start=0, end=-1)
    whole = edit.op("Reshape", pairs, edit.op("Concat", flat, edit.int64s(-1), axis=0))
    return edit.op("Sub", edit.cast(whole, ir.DataType.FLOAT), middle)
