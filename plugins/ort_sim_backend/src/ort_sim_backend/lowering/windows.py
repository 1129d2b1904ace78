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

from ort_sim_backend.lowering.graph import Writer

_INT32 = ir.DataType.INT32
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


def describe_windows(write: Writer, position_ids: ir.Value, cache: ir.Value) -> Windows:
    """Computes the windows of ``position_ids [B, S]`` in ``cache [B, H, C, D]``.

    The positions of a row must be distinct and lie within S slots; a row without any gets a window of slot 0 alone, which makes
    its output finite. C is at least S.
    """
    zero, one, minus_one = write.scalar(0), write.scalar(1), write.scalar(-1)
    row_axis, column_axis = write.vector(1), write.vector(2)
    chunk = write.dim(position_ids, 1)
    tokens = write.op("Range", zero, write.op("Squeeze", chunk), one)
    valid = write.op("GreaterOrEqual", position_ids, zero)

    end = write.op("Add", write.op("ReduceMax", position_ids, row_axis), one)
    used = write.op("Max", end, one)
    valid_positions = write.op("Where", valid, position_ids, write.scalar(_NEVER))
    # In a row of padding `end` is 0, which is then the first slot as well.
    first = write.op("Min", write.op("ReduceMin", valid_positions, row_axis), end)
    latest_start = write.op("Sub", write.dim(cache, 2), chunk)
    start = write.op("Min", first, latest_start)
    length = write.op("Sub", used, start)
    last_place = write.op("Sub", length, one)

    place = write.op("Sub", position_ids, start)
    place_or_last = write.op("Where", valid, place, last_place)
    slot_of_token = write.op("Max", place_or_last, zero)

    # Inverts place -> token. Padding repeats the entry of the row's last token; in a row of padding it writes "none".
    last_token = write.op("ArgMax", position_ids, axis=1, keepdims=1)
    is_empty = write.op("Equal", end, zero)
    last_token_or_none = write.op("Where", is_empty, minus_one, last_token)
    sources = write.op("Where", valid, tokens, last_token_or_none)
    nobody = write.op("Expand", minus_one, write.op("Shape", position_ids))
    token = write.op("ScatterElements", nobody, slot_of_token, sources, axis=1)

    cache_slot = write.op("Add", start, tokens)
    most = write.op("ReduceMax", write.op("Max", used, chunk), keepdims=0)
    return Windows(
        written=write.op("Unsqueeze", write.op("GreaterOrEqual", token, zero), column_axis),
        token_of_slot=write.op("Unsqueeze", write.op("Max", token, zero), column_axis),
        slot_of_token=write.op("Unsqueeze", slot_of_token, column_axis),
        cache_slot=write.op("Unsqueeze", cache_slot, write.vector(1, 3)),
        last_slot=_int32(write, write.op("Squeeze", write.op("Sub", used, one), row_axis)),
        length=_int32(write, write.op("Squeeze", length, row_axis)),
        total=_int32(write, most),
    )


def _int32(write: Writer, value: ir.Value) -> ir.Value:
    return write.op("Cast", value, to=_INT32.value)
