"""``Attention`` over two ``KVUpdate`` and a ``CausalMask`` becomes one GroupQueryAttention that writes its cache in place.

The kernel does what it is documented to do only when past and present are the same buffer, and `windows` says what else it asks
for. With them the result equals the dialect's, and every slot that no token names keeps its content bit for bit.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ort_sim_backend.lowering.kernels import CONTRIB
from ort_sim_backend.lowering.windows import Windows, describe_windows
from qeff_framework.lowering import (
    AttentionNode,
    CausalMaskNode,
    GraphEditor,
    GraphPass,
    KVUpdateNode,
    constant_array,
    dialect_nodes,
    made_by,
    operand,
    readers,
    static_dim,
)

#: The kernel refuses other head sizes, but only when it runs.
_HEAD_DIM_MULTIPLE = 8


class GroupQueryAttention(GraphPass):
    """Lowers each attention whose cache nobody else reads and whose mask is causal or a causal window."""

    name = "GroupQueryAttention"
    version = "3"

    def run(self, model: ir.Model) -> bool:
        """Says whether an attention was lowered."""
        shared: dict[Hashable, Any] = {}
        matches = [_match(node) for node in dialect_nodes(model, AttentionNode)]
        for match in matches:
            if match is not None:
                _lower(GraphEditor(model, match.attention.node, shared), match)
        return any(matches)


@dataclass(frozen=True, kw_only=True)
class _Match:
    attention: AttentionNode
    key_update: KVUpdateNode
    value_update: KVUpdateNode
    query_heads: int
    key_heads: int
    head_dim: int
    #: Slots that a token sees, itself included; 0 for all.
    window: int


def _match(attention: AttentionNode) -> _Match | None:
    key_update, value_update = KVUpdateNode.making(attention.key), KVUpdateNode.making(attention.value)
    mask = CausalMaskNode.making(attention.mask)
    if key_update is None or value_update is None or mask is None:
        return None
    if key_update.node is value_update.node:  # the kernel writes two caches
        return None
    if key_update.batch_index is not None or value_update.batch_index is not None:
        return None
    if not key_update.position_ids is value_update.position_ids is mask.position_ids:
        return None
    if mask.chunk or not _counts_from_zero(mask.kv_positions):
        return None
    if attention.scale == 0.0:  # the kernel reads 0 as "not given"
        return None
    if not _is_private(key_update, attention.node) or not _is_private(value_update, attention.node):
        return None
    sizes = _sizes(attention.query, key_update, value_update)
    if sizes is None:
        return None
    query_heads, key_heads, head_dim = sizes
    return _Match(
        attention=attention,
        key_update=key_update,
        value_update=value_update,
        query_heads=query_heads,
        key_heads=key_heads,
        head_dim=head_dim,
        window=mask.window,
    )


def _is_private(update: KVUpdateNode, attention: ir.Node) -> bool:
    """The cache is a retained state, read by its update alone, and the updated one by this attention alone.

    Only then can the kernel overwrite it: another reader might run after the kernel, or expect the update before it.
    """
    is_state = update.cache.is_graph_input() and update.output.is_graph_output()
    return is_state and readers(update.cache) == {update.node} and readers(update.output) == {attention}


def _counts_from_zero(kv_positions: ir.Value) -> bool:
    """Slot numbers are 0, 1, 2, ... as the kernel assumes."""
    node = made_by(kv_positions, "Range")
    if node is None:
        return False
    start, step = (constant_array(operand(node, index)) for index in (0, 2))
    return start is not None and step is not None and (start.item(), step.item()) == (0, 1)


def _sizes(query: ir.Value, key_update: KVUpdateNode, value_update: KVUpdateNode) -> tuple[int, int, int] | None:
    """Query heads, key heads and head size, when keys and values agree in them and the kernel takes them and the dtype."""
    states = [value for update in (key_update, value_update) for value in (update.cache, update.updates)]
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


def _lower(edit: GraphEditor, match: _Match) -> None:
    attention, key_update, value_update = match.attention, match.key_update, match.value_update
    windows = _windows(edit, key_update.position_ids, key_update.cache)
    cache_slot = _slots_of_heads(edit, windows, match.key_heads)
    inputs: list[ir.Value | None] = [
        _by_slot(edit, _flat(edit, attention.query), windows),
        _window_content(edit, key_update, windows, cache_slot),
        _window_content(edit, value_update, windows, cache_slot),
        key_update.cache,
        value_update.cache,
        windows.last_slot,
        windows.total,
        *[None] * 4,  # cos_cache, sin_cache, position_ids, attention_bias
        attention.sinks,
        *[None] * 4,  # k_scale, v_scale, q_norm_weight, k_norm_weight
        windows.length,
    ]
    attributes = {
        "num_heads": match.query_heads,
        "kv_num_heads": match.key_heads,
        "scale": attention.scale,
        "softcap": attention.softcap,
        "local_window_size": match.window or -1,
    }
    by_slot, *present = edit.ops("GroupQueryAttention", inputs, 3, CONTRIB, **attributes)
    by_token = edit.op("GatherND", by_slot, windows.slot_of_token, batch_dims=1)
    by_head = edit.op("Reshape", by_token, edit.int64s(0, 0, match.query_heads, match.head_dim))
    edit.replace(attention.node, edit.op("Transpose", by_head, perm=(0, 2, 1, 3)))
    for update, updated in zip((key_update, value_update), present, strict=True):
        edit.replace(update.node, updated)


def _windows(edit: GraphEditor, position_ids: ir.Value, cache: ir.Value) -> Windows:
    capacity = cache.shape[2] if cache.shape is not None else cache
    windows: Windows = edit.once(
        ("windows", position_ids, capacity), lambda: describe_windows(edit, position_ids, cache)
    )
    return windows


def _slots_of_heads(edit: GraphEditor, windows: Windows, heads: int) -> ir.Value:
    """Slot numbers for every head, ``[B, H, S, 1]``."""

    def make() -> ir.Value:
        return edit.op("Expand", windows.cache_slot, edit.int64s(1, heads, 1, 1))

    slots: ir.Value = edit.once(("slots", windows.cache_slot, heads), make)
    return slots


def _flat(edit: GraphEditor, states: ir.Value) -> ir.Value:
    """``[B, H, S, D]`` as ``[B, S, H * D]``."""
    by_token = edit.op("Transpose", states, perm=(0, 2, 1, 3))
    return edit.op("Reshape", by_token, edit.int64s(0, 0, -1))


def _by_slot(edit: GraphEditor, tokens: ir.Value, windows: Windows) -> ir.Value:
    """Tokens ``[B, S, N]`` in the order of the window's slots."""
    return edit.op("GatherND", tokens, windows.token_of_slot, batch_dims=1)


def _window_content(edit: GraphEditor, update: KVUpdateNode, windows: Windows, cache_slot: ir.Value) -> ir.Value:
    """What the window holds after the step, ``[B, S, H * D]``: new tokens where there are some, else what the cache holds."""
    tokens = _by_slot(edit, _flat(edit, update.updates), windows)
    held = _flat(edit, edit.op("GatherND", update.cache, cache_slot, batch_dims=2))
    return edit.op("Where", windows.written, tokens, held)
