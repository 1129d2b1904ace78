"""``KVUpdate`` and ``KVUpdateCB`` become a ScatterND that writes the new tokens and nothing else.

It carries the caches that no GroupQueryAttention took: of models with other attention, where several layers read one cache, or
where a step has other rows than the cache (the kernel takes one cache row for each row of the step).
With cache and result in the same buffer ONNX Runtime writes S slots a step; the op's body would copy all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ort_sim_backend.lowering.graph import Writer, dialect_nodes, like, operand, static_dim


class ScatterCache:
    """Lowers every update with a known number of heads."""

    name = "ScatterCache"
    version = "2"

    def __call__(self, subject: ir.Model) -> bool:
        """Says whether an update was lowered."""
        shared: dict[tuple[ir.Value, int, ir.Value | None], _Targets] = {}
        lowered = False
        for update in dialect_nodes(subject, "KVUpdate", "KVUpdateCB"):
            heads = static_dim(operand(update, 0), 1)
            if heads is not None:
                _lower(update, heads, shared)
                lowered = True
        return lowered


@dataclass(frozen=True, kw_only=True)
class _Targets:
    """Where the tokens go; B rows, H heads, S tokens a row."""

    #: ``[B, H, S, 1]``: the token that is written; padding repeats the row's last token.
    token: ir.Value
    #: ``[B, H, S, 3]``: cache row, head and slot, which is 0 in a row of padding.
    index: ir.Value
    #: Bool ``[B, 1, 1, 1]``: the row has a token.
    written: ir.Value


def _lower(update: ir.Node, heads: int, shared: dict[tuple[ir.Value, int, ir.Value | None], _Targets]) -> None:
    write = Writer(update)
    cache, states, position_ids = (operand(update, index) for index in range(3))
    batch_index = operand(update, 3) if update.op_type == "KVUpdateCB" else None
    known = position_ids, heads, batch_index
    if known not in shared:
        shared[known] = _describe_targets(write, position_ids, heads, batch_index)
    targets = shared[known]
    tokens = write.op("GatherND", states, targets.token, batch_dims=2)
    held = write.op("GatherND", cache, targets.index)
    content = write.op("Where", targets.written, tokens, held)
    updated = like(update.outputs[0])
    write.ops("ScatterND", [cache, targets.index, content], [updated], "", {})
    write.replace(update, [updated])


def _describe_targets(write: Writer, position_ids: ir.Value, heads: int, batch_index: ir.Value | None) -> _Targets:
    """Targets of ``position_ids [B, S]`` in the cache rows ``batch_index [B, 1]``, by default 0 .. B-1.

    Duplicates in one scatter may land in any order, so padding repeats a write that is made anyway: the last token's. In a row
    without tokens it writes to slot 0 what slot 0 holds.
    """
    zero, one = write.scalar(0), write.scalar(1)
    batch, chunk = write.dim(position_ids, 0), write.dim(position_ids, 1)
    valid = write.op("GreaterOrEqual", position_ids, zero)
    numbers = write.op("Range", zero, write.op("Squeeze", chunk), one)
    last_token = write.op("ArgMax", position_ids, axis=1, keepdims=1)
    last_position = write.op("ReduceMax", position_ids, write.vector(1))
    token_of_row = write.op("Where", valid, numbers, last_token)
    slot_of_row = write.op("Max", write.op("Where", valid, position_ids, last_position), zero)

    shape = write.op("Concat", batch, write.vector(heads), chunk, write.vector(1), axis=0)
    if batch_index is None:
        rows = write.op("Range", zero, write.op("Squeeze", batch), one)
    else:
        rows = write.op("Reshape", batch_index, write.vector(-1))
    row = _expand(write, rows, (1, 2, 3), shape)
    head = _expand(write, write.op("Range", zero, write.scalar(heads), one), (0, 2, 3), shape)
    slot = _expand(write, slot_of_row, (1, 3), shape)
    return _Targets(
        token=_expand(write, token_of_row, (1, 3), shape),
        index=write.op("Concat", row, head, slot, axis=-1),
        written=write.op("GreaterOrEqual", write.op("Unsqueeze", last_position, write.vector(2, 3)), zero),
    )


def _expand(write: Writer, value: ir.Value, new_axes: tuple[int, ...], shape: ir.Value) -> ir.Value:
    return write.op("Expand", write.op("Unsqueeze", value, write.vector(*new_axes)), shape)
