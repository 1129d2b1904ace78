"""``Attention`` over two ``KVUpdate`` and a ``CausalMask`` becomes one GroupQueryAttention that writes its cache in place.

The kernel does what it is documented to do only when past and present are the same buffer, and `windows` says what else it asks
for. With them the result equals the dialect's, and every slot that no token names keeps its content bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from ort_sim_backend.lowering.graph import (
    CONTRIB,
    Writer,
    dialect_nodes,
    like,
    made_by,
    number,
    operand,
    readers,
    static_dim,
)
from ort_sim_backend.lowering.windows import Windows, describe_windows

#: The kernel refuses other head sizes, but only when it runs.
_HEAD_DIM_MULTIPLE = 8


class GroupQueryAttention:
    """Lowers each attention whose cache nobody else reads and whose mask is causal or a causal window."""

    name = "GroupQueryAttention"
    version = "2"

    def __call__(self, subject: ir.Model) -> bool:
        """Says whether an attention was lowered."""
        shared = _Shared()
        matches = [_match(node) for node in dialect_nodes(subject, "Attention", "AttentionSinks")]
        for match in matches:
            if match is not None:
                _lower(match, shared)
        return any(matches)


@dataclass(frozen=True, kw_only=True)
class _Match:
    attention: ir.Node
    key_update: ir.Node
    value_update: ir.Node
    position_ids: ir.Value
    query_heads: int
    key_heads: int
    head_dim: int
    #: Slots that a token sees, itself included; 0 for all.
    window: int


def _match(attention: ir.Node) -> _Match | None:
    key_update, value_update = (made_by(operand(attention, index), "KVUpdate") for index in (1, 2))
    mask = made_by(operand(attention, 3), "CausalMask")
    if key_update is None or value_update is None or mask is None:
        return None
    if key_update is value_update:  # the kernel writes two caches
        return None
    position_ids = operand(mask, 0)
    if {operand(key_update, 2), operand(value_update, 2)} != {position_ids}:
        return None
    if number(mask, "chunk", 0) != 0 or not _counts_from_zero(operand(mask, 1)):
        return None
    if number(attention, "scale", 0.0) == 0.0:  # the kernel reads 0 as "not given"
        return None
    if not _is_private(key_update, attention) or not _is_private(value_update, attention):
        return None
    sizes = _sizes(operand(attention, 0), key_update, value_update)
    if sizes is None:
        return None
    query_heads, key_heads, head_dim = sizes
    return _Match(
        attention=attention,
        key_update=key_update,
        value_update=value_update,
        position_ids=position_ids,
        query_heads=query_heads,
        key_heads=key_heads,
        head_dim=head_dim,
        window=int(number(mask, "window", 0)),
    )


def _is_private(update: ir.Node, attention: ir.Node) -> bool:
    """The cache is a retained state, read by its update alone, and the updated one by this attention alone.

    Only then can the kernel overwrite it: another reader might run after the kernel, or expect the update before it.
    """
    cache, updated = operand(update, 0), update.outputs[0]
    is_state = cache.is_graph_input() and updated.is_graph_output()
    return is_state and readers(cache) == {update} and readers(updated) == {attention}


def _counts_from_zero(kv_positions: ir.Value) -> bool:
    """Slot numbers are 0, 1, 2, ... as the kernel assumes."""
    node = kv_positions.producer()
    if node is None or node.op_type != "Range":
        return False
    start, step = (ir.convenience.get_const_tensor(operand(node, index)) for index in (0, 2))
    return start is not None and step is not None and (start.numpy().item(), step.numpy().item()) == (0, 1)


def _sizes(query: ir.Value, key_update: ir.Node, value_update: ir.Node) -> tuple[int, int, int] | None:
    """Query heads, key heads and head size, when keys and values agree in them and the kernel takes them and the dtype."""
    states = [operand(update, index) for update in (key_update, value_update) for index in (0, 1)]
    if {value.dtype for value in (query, *states)} != {ir.DataType.FLOAT}:
        return None
    query_heads, head_dim = static_dim(query, 1), static_dim(query, 3)
    shapes = {(static_dim(state, 1), static_dim(state, 3)) for state in states}
    if query_heads is None or head_dim is None or len(shapes) != 1:
        return None
    key_heads, key_dim = shapes.pop()
    if key_heads is None or key_dim != head_dim or query_heads % key_heads or head_dim % _HEAD_DIM_MULTIPLE:
        return None
    return query_heads, key_heads, head_dim


@dataclass(frozen=True)
class _Shared:
    """Index tensors that are computed once a graph."""

    windows: dict[tuple[ir.Value, object], Windows] = field(default_factory=dict)
    cache_slots: dict[tuple[ir.Value, int], ir.Value] = field(default_factory=dict)


def _lower(match: _Match, shared: _Shared) -> None:
    attention, key_update, value_update = match.attention, match.key_update, match.value_update
    write = Writer(attention)
    past_key, past_value = operand(key_update, 0), operand(value_update, 0)
    windows = _windows(write, match.position_ids, past_key, shared)
    cache_slot = _slots_of_heads(write, windows, match.key_heads, shared)
    sinks = operand(attention, 4) if attention.op_type == "AttentionSinks" else None
    inputs: list[ir.Value | None] = [
        _by_slot(write, _flat(write, operand(attention, 0)), windows),
        _window_content(write, key_update, windows, cache_slot),
        _window_content(write, value_update, windows, cache_slot),
        past_key,
        past_value,
        windows.last_slot,
        windows.total,
        *[None] * 4,  # cos_cache, sin_cache, position_ids, attention_bias
        sinks,
        *[None] * 4,  # k_scale, v_scale, q_norm_weight, k_norm_weight
        windows.length,
    ]
    by_slot, present_key, present_value = ir.Value(), like(key_update.outputs[0]), like(value_update.outputs[0])
    attributes = {
        "num_heads": match.query_heads,
        "kv_num_heads": match.key_heads,
        "scale": number(attention, "scale", 0.0),
        "softcap": number(attention, "softcap", 0.0),
        "local_window_size": match.window or -1,
    }
    write.ops("GroupQueryAttention", inputs, [by_slot, present_key, present_value], CONTRIB, attributes)
    by_token = write.op("GatherND", by_slot, windows.slot_of_token, batch_dims=1)
    by_head = write.op("Reshape", by_token, write.vector(0, 0, match.query_heads, match.head_dim))
    attended = like(attention.outputs[0])
    write.ops("Transpose", [by_head], [attended], "", {"perm": (0, 2, 1, 3)})
    write.replace(attention, [attended])
    write.replace(key_update, [present_key])
    write.replace(value_update, [present_value])


def _windows(write: Writer, position_ids: ir.Value, cache: ir.Value, shared: _Shared) -> Windows:
    capacity = cache.shape[2] if cache.shape is not None else cache
    known = position_ids, capacity
    if known not in shared.windows:
        shared.windows[known] = describe_windows(write, position_ids, cache)
    return shared.windows[known]


def _slots_of_heads(write: Writer, windows: Windows, heads: int, shared: _Shared) -> ir.Value:
    """Slot numbers for every head, ``[B, H, S, 1]``."""
    known = windows.cache_slot, heads
    if known not in shared.cache_slots:
        shared.cache_slots[known] = write.op("Expand", windows.cache_slot, write.vector(1, heads, 1, 1))
    return shared.cache_slots[known]


def _flat(write: Writer, states: ir.Value) -> ir.Value:
    """``[B, H, S, D]`` as ``[B, S, H * D]``."""
    by_token = write.op("Transpose", states, perm=(0, 2, 1, 3))
    return write.op("Reshape", by_token, write.vector(0, 0, -1))


def _by_slot(write: Writer, tokens: ir.Value, windows: Windows) -> ir.Value:
    """Tokens ``[B, S, N]`` in the order of the window's slots."""
    return write.op("GatherND", tokens, windows.token_of_slot, batch_dims=1)


def _window_content(write: Writer, update: ir.Node, windows: Windows, cache_slot: ir.Value) -> ir.Value:
    """What the window holds after the step, ``[B, S, H * D]``: new tokens where there are some, else what the cache holds."""
    tokens = _by_slot(write, _flat(write, operand(update, 1)), windows)
    held = _flat(write, write.op("GatherND", operand(update, 0), cache_slot, batch_dims=2))
    return write.op("Where", windows.written, tokens, held)
