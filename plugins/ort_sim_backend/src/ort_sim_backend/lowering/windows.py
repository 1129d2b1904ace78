"""Where the tokens of a chunk lie in the cache, as index tensors that every layer shares.

GroupQueryAttention takes a chunk whose valid tokens come first and go to consecutive slots, and wants room for the whole chunk,
padding included, behind its first slot. The portable graph promises neither: padding (position -1) may stand anywhere in a row, a
row may be all padding, and the last chunk may end at the last slot. So each row gets a *window* of S slots that holds all its
positions, moved back where it would pass the end of the cache. Slots of the window that no token names are filled with what the
cache holds there: writing them changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qeff_framework.lowering import GraphEditor

_NEVER = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Index tensors of one step; B rows, S tokens a row, windows of S slots."""

    #: Bool ``[B, S, 1]``: the window's slot is named by a token.
    written: ir.Value
    #: ``[B, S, 1]``: the token that names the window's slot, 0 where there is none.
    token_of_slot: ir.Value
    #: ``[B, S, 1]``: the token's place in the window; for padding some place that is computed.
    slot_of_token: ir.Value
    #: ``[B, 1, S, 1]``: number of the window's slot in the cache.
    cache_slot: ir.Value
    #: int32 ``[B]``: slots that the row uses after the step, minus one.
    last_slot: ir.Value
    #: int32 ``[B]``: slots of the window up to the last token.
    length: ir.Value
    #: int32 scalar: the most slots that a row uses, at least S.
    total: ir.Value


def describe_windows(edit: GraphEditor, position_ids: ir.Value, cache: ir.Value) -> Windows:
    """Computes the windows of ``position_ids [B, S]`` in ``cache [B, H, C, D]``.

    The positions of a row must be distinct and lie within S slots; a row without any gets a window of slot 0 alone, which makes
    its output finite. C is at least S.
    """
    zero, one, minus_one = edit.int64(0), edit.int64(1), edit.int64(-1)
    row_axis, column_axis = edit.int64s(1), edit.int64s(2)
    chunk = edit.dim(position_ids, 1)
    tokens = edit.op("Range", zero, edit.op("Squeeze", chunk), one)
    valid = edit.op("GreaterOrEqual", position_ids, zero)

    end = edit.op("Add", edit.op("ReduceMax", position_ids, row_axis), one)
    used = edit.op("Max", end, one)
    valid_positions = edit.op("Where", valid, position_ids, edit.int64(_NEVER))
    # In a row of padding `end` is 0, which is then the first slot as well.
    first = edit.op("Min", edit.op("ReduceMin", valid_positions, row_axis), end)
    latest_start = edit.op("Sub", edit.dim(cache, 2), chunk)
    start = edit.op("Min", first, latest_start)
    length = edit.op("Sub", used, start)
    last_place = edit.op("Sub", length, one)

    place = edit.op("Sub", position_ids, start)
    place_or_last = edit.op("Where", valid, place, last_place)
    slot_of_token = edit.op("Max", place_or_last, zero)

    # Inverts place -> token. Padding repeats the entry of the row's last token; in a row of padding it writes "none".
    last_token = edit.op("ArgMax", position_ids, axis=1, keepdims=1)
    is_empty = edit.op("Equal", end, zero)
    last_token_or_none = edit.op("Where", is_empty, minus_one, last_token)
    sources = edit.op("Where", valid, tokens, last_token_or_none)
    nobody = edit.op("Expand", minus_one, edit.op("Shape", position_ids))
    token = edit.op("ScatterElements", nobody, slot_of_token, sources, axis=1)

    cache_slot = edit.op("Add", start, tokens)
    most = edit.op("ReduceMax", edit.op("Max", used, chunk), keepdims=0)
    return Windows(
        written=edit.op("Unsqueeze", edit.op("GreaterOrEqual", token, zero), column_axis),
        token_of_slot=edit.op("Unsqueeze", edit.op("Max", token, zero), column_axis),
        slot_of_token=edit.op("Unsqueeze", slot_of_token, column_axis),
        cache_slot=edit.op("Unsqueeze", cache_slot, edit.int64s(1, 3)),
        last_slot=edit.cast(edit.op("Squeeze", edit.op("Sub", used, one), row_axis), ir.DataType.INT32),
        length=edit.cast(edit.op("Squeeze", length, row_axis), ir.DataType.INT32),
        total=edit.cast(most, ir.DataType.INT32),
    )
