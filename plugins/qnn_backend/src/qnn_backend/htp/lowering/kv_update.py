"""``KVUpdate`` becomes a product with a one-hot matrix of the positions.

The product is exact in float16: each row has a single 1. A padding position equals no slot, so it writes nothing. (A scatter
would count its -1 from the end and overwrite the last slot.) Tokens of padding become zeros first: they may have overflowed, and
zero times infinity would be NaN in the slots of the other tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qnn_backend.htp.lowering.graph import FLOAT, INT32, Writer, dialect_nodes, known_sizes, operand


class KVUpdateOps:
    """Lowers every ``KVUpdate``; the one-hot matrices are computed once for all layers."""

    name = "KVUpdateOps"
    version = "2"

    def __call__(self, model: ir.Model) -> bool:
        """Says whether an update was lowered."""
        updates = dialect_nodes(model, "KVUpdate")
        slots: dict[tuple[ir.Value, int], _Slots] = {}
        for update in updates:
            cache, new, position_ids = (operand(update, index) for index in range(3))
            write = Writer(model, update)
            key = (position_ids, known_sizes(cache)[2])
            if key not in slots:
                slots[key] = _slots(write, position_ids, key[1])
            shape = known_sizes(cache)
            if (is_token := slots[key].is_token) is not None:
                new = write.op("Where", is_token, new, write.float(0.0), shape=known_sizes(new))
            candidates = write.op("MatMul", slots[key].tokens, new, shape=shape)
            write.replace(update, write.op("Where", slots[key].written, candidates, cache, shape=shape))
        return bool(updates)


@dataclass(frozen=True, kw_only=True)
class _Slots:
    #: ``[B, 1, C, S]``: 1.0 where the token goes into the slot.
    tokens: ir.Value
    #: bool ``[B, 1, C, 1]``: some token goes into the slot.
    written: ir.Value
    #: bool ``[B, 1, S, 1]``: what is no padding. `None` in a step of one token: if it is padding, its product is written nowhere.
    is_token: ir.Value | None = None


def _slots(write: Writer, position_ids: ir.Value, capacity: int) -> _Slots:
    rows, tokens = known_sizes(position_ids)
    shape, column = (rows, 1, capacity, tokens), (rows, 1, capacity, 1)
    narrow = write.op("Cast", position_ids, to=INT32, shape=(rows, tokens), dtype=ir.DataType.INT32)
    positions = write.reshape(narrow, (rows, 1, 1, tokens))
    numbers = write.array(np.arange(capacity, dtype=np.int32).reshape(1, 1, capacity, 1))
    hits = write.op("Equal", positions, numbers, shape=shape, dtype=ir.DataType.BOOL)
    selection = write.op("Cast", hits, to=FLOAT, shape=shape)
    if tokens == 1:
        return _Slots(tokens=selection, written=hits)
    count = write.op("ReduceMax", selection, write.ints(3), keepdims=1, shape=column)
    written = write.op("Greater", count, write.float(0.5), shape=column, dtype=ir.DataType.BOOL)
    column = (rows, 1, tokens, 1)
    zero = write.array(np.array(0, np.int32))
    by_token = write.reshape(narrow, column)
    is_token = write.op("GreaterOrEqual", by_token, zero, shape=column, dtype=ir.DataType.BOOL)
    return _Slots(tokens=selection, written=written, is_token=is_token)
