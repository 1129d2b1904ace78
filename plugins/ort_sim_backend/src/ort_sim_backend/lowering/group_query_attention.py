"""``Attention`` over two ``KVUpdate`` and a ``CausalMask`` becomes one GroupQueryAttention that writes its cache in place.

The tokens of a row stand in front of its padding, which is what the kernel asks for (`query_seqlens`). It also wants room for
the whole chunk, padding included, behind the row's first slot, though it writes the slots of the tokens alone: the session's
buffers are that much longer than `ctx_len`. Past and present must be the same buffer. Then the result equals the dialect's, and
every slot that no token names keeps its content bit for bit.

Where a token sees a window of slots, the kernel also works with a cache of that many slots. It holds the last tokens of a row,
the oldest one in front, so tokens can be appended to it and not taken back.
"""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ort_sim_backend.lowering.kernels import CONTRIB
from qeff_framework.lowering import (
    DOMAIN,
    AttentionNode,
    CausalMaskNode,
    GraphEditor,
    GraphPass,
    KVGatherNode,
    KVUpdateNode,
    RMSNormNode,
    constant_array,
    dialect_nodes,
    made_by,
    operand,
    readers,
    same_dim,
    static_dim,
)

#: The kernel refuses other head sizes, but only when it runs.
_HEAD_DIM_MULTIPLE = 8
#: ``[B, H, S, D]`` to ``[B, S, H, D]`` and back.
_HEADS_LAST = (0, 2, 1, 3)
#: Axis of a cache ``[B, H, C, D]``.
_SLOTS = 2
#: Attribute of the kernel: the cache has the length of the window.
_WINDOWED = "sliding_window_cache"


class GroupQueryAttention(GraphPass):
    """Lowers each attention whose cache nobody else reads and whose mask is causal or a causal window."""

    name = "GroupQueryAttention"
    version = "7"

    def __init__(self, *, ctx_len: int | None = None) -> None:
        """Caches of windows shorter than `ctx_len` get the length of the window; without it all caches keep theirs."""
        self._ctx_len = ctx_len

    def run(self, model: ir.Model) -> bool:
        """Says whether an attention was lowered."""
        shared: dict[Hashable, Any] = {}
        candidates = (_match(node) for node in dialect_nodes(model, AttentionNode))
        found = [match for match in candidates if match is not None and not match.gathers]
        # Read first: a cache of a window loses this size.
        contexts = {match.key_update.cache.shape[_SLOTS] for match in found if match.key_update.cache.shape is not None}
        for match in found:
            is_short = self._ctx_len is not None and 0 < match.window < self._ctx_len
            _lower(GraphEditor(model, match.attention.node, shared), match, windowed=is_short)
        if found:
            _measure_other_inputs(model, contexts)
        return bool(found)


def _measure_other_inputs(model: ir.Model, contexts: AbstractSet[int | ir.SymbolicDim]) -> None:
    """Takes the size of the context from an input whose buffer is exactly as long, where there is one.

    The buffers of the kernel's caches are longer (`in_place.states_with_room`), or as short as a window. Masks of other
    attention, and caches that this attention reads, are not: a mask as long as the kernel's buffer would not fit them.
    `contexts` are the sizes that the kernel's caches had before they were lowered.
    """
    of_kernel = [value for value in model.graph.inputs if _has_kernel_buffer(value)]
    exact = next(
        (
            (value, axis)
            for value in model.graph.inputs
            if value not in of_kernel
            for axis, size in enumerate(value.shape or ())
            if size in contexts
        ),
        None,
    )
    if exact is None:
        return
    value, axis = exact
    for cache in of_kernel:
        for node in [use.node for use in cache.uses()]:
            span = (node.attributes.get_int("start", 0), node.attributes.get_int("end", None))
            if node.op_type == "Shape" and span == (_SLOTS, _SLOTS + 1):
                node.replace_input_with(0, value)
                node.attributes["start"] = ir.AttrInt64("start", axis)
                node.attributes["end"] = ir.AttrInt64("end", axis + 1)


def _has_kernel_buffer(value: ir.Value) -> bool:
    return any(node.op_type == "GroupQueryAttention" for node in readers(value))


@dataclass(frozen=True, kw_only=True)
class Match:
    """Attention that the kernel computes."""

    attention: AttentionNode
    key_update: KVUpdateNode
    value_update: KVUpdateNode
    #: The reads of keys and values by a batch index; empty where the cache has the rows of the step.
    gathers: tuple[KVGatherNode, ...]
    query_heads: int
    key_heads: int
    head_dim: int
    #: Slots that a token sees, itself included; 0 for all.
    window: int


def is_windowed(node: ir.Node) -> bool:
    """Whether the kernel keeps a window of tokens."""
    return bool(node.attributes.get_int(_WINDOWED, 0))


def matches(model: ir.Model) -> list[Match]:
    """Attention over rows of a cache that a batch index names, which the kernel would compute over those rows alone."""
    found = (_match(node) for node in dialect_nodes(model, AttentionNode))
    return [match for match in found if match is not None and match.gathers]


def _match(attention: AttentionNode) -> Match | None:
    gathers = _whole_gathers(attention)
    key, value = (gather.cache for gather in gathers) if gathers else (attention.key, attention.value)
    key_update, value_update = KVUpdateNode.making(key), KVUpdateNode.making(value)
    mask = CausalMaskNode.making(attention.mask)
    if key_update is None or value_update is None or mask is None:
        return None
    if key_update.node is value_update.node:  # the kernel writes two caches
        return None
    indices = {update.batch_index for update in (key_update, value_update)}
    indices |= {gather.batch_index for gather in gathers}
    if len(indices) > 1 or (None in indices) == bool(gathers):
        return None
    if not key_update.position_ids is value_update.position_ids is mask.position_ids:
        return None
    if mask.chunk or not _counts_from_zero(mask.kv_positions):
        return None
    if attention.scale == 0.0:  # the kernel reads 0 as "not given"
        return None
    users = [gather.node for gather in gathers] or [attention.node] * 2
    if not all(map(_is_private, (key_update, value_update), users)):
        return None
    if any(readers(gather.output) != {attention.node} for gather in gathers):
        return None
    sizes = _sizes(attention.query, key_update, value_update)
    if sizes is None:
        return None
    query_heads, key_heads, head_dim = sizes
    return Match(
        gathers=gathers,
        attention=attention,
        key_update=key_update,
        value_update=value_update,
        query_heads=query_heads,
        key_heads=key_heads,
        head_dim=head_dim,
        window=mask.window,
    )


def _whole_gathers(attention: AttentionNode) -> tuple[KVGatherNode, ...]:
    """What reads all slots of rows of the two caches; empty unless both are read in this way."""
    found = [KVGatherNode.making(value) for value in (attention.key, attention.value)]
    whole = [
        gather
        for gather in found
        if gather is not None and gather.batch_index is not None and same_dim(gather.cache, 2, gather.kv_positions, 0)
    ]
    return tuple(whole) if len(whole) == len(found) else ()


def _is_private(update: KVUpdateNode, user: ir.Node) -> bool:
    """The cache is a retained state, read by its update alone, and the updated one by `user` alone.

    Only then can the kernel overwrite it: another reader might run after the kernel, or expect the update before it.
    """
    is_state = update.cache.is_graph_input() and update.output.is_graph_output()
    return is_state and readers(update.cache) == {update.node} and readers(update.output) == {user}


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


def _lower(edit: GraphEditor, match: Match, *, windowed: bool) -> None:
    attention, key_update, value_update = match.attention, match.key_update, match.value_update
    if windowed:
        for value in (key_update.cache, key_update.output, value_update.cache, value_update.output):
            value.shape = ir.Shape(
                [match.window if axis == _SLOTS else dim for axis, dim in enumerate(value.shape or ())]
            )
    rows: Rows = edit.once(("rows", key_update.position_ids), lambda: describe_rows(edit, key_update.position_ids))
    inputs: list[ir.Value | None] = [
        token_major(edit, attention.query),
        token_major(edit, key_update.updates),
        token_major(edit, value_update.updates),
        key_update.cache,
        value_update.cache,
        rows.last_slot,
        rows.most_slots,
        *[None] * 4,  # cos_cache, sin_cache, position_ids, attention_bias
        attention.sinks,
        *[None] * 4,  # k_scale, v_scale, q_norm_weight, k_norm_weight
        rows.tokens,
    ]
    attributes = {
        "num_heads": match.query_heads,
        "kv_num_heads": match.key_heads,
        "scale": attention.scale,
        "softcap": attention.softcap,
        "local_window_size": match.window or -1,
        **({_WINDOWED: 1} if windowed else {}),
    }
    attended, *present = edit.ops("GroupQueryAttention", inputs, 3, CONTRIB, **attributes)
    attended.type = attention.query.type
    if attention.query.shape is not None:
        batch, _, tokens, _ = attention.query.shape
        attended.shape = ir.Shape([batch, tokens, match.query_heads * match.head_dim])
    # The kernel leaves the rows of padding as the memory was: two runs would differ, and NaN cannot be ranked among experts.
    defined = edit.op("Where", rows.is_token, attended, edit.array(np.zeros((), np.float32)))
    defined.type, defined.shape = attended.type, attended.shape
    by_head = edit.op("Reshape", defined, edit.int64s(0, 0, match.query_heads, match.head_dim))
    edit.replace(attention.node, edit.op("Transpose", by_head, perm=_HEADS_LAST))
    for update, updated in zip((key_update, value_update), present, strict=True):
        edit.replace(update.node, updated)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What the kernel is told of the tokens of a step; B rows, S tokens a row, padding behind them."""

    #: int32 ``[B]``: the last slot that the row uses after the step. A row of padding says 0: it writes nothing and is not read.
    last_slot: ir.Value
    #: int32 ``[B]``: tokens of the row that are no padding.
    tokens: ir.Value
    #: Bool ``[B, S, 1]``.
    is_token: ir.Value
    #: int32 scalar: the most slots that a row uses, at least S.
    most_slots: ir.Value


def describe_rows(edit: GraphEditor, position_ids: ir.Value) -> Rows:
    """Reads the numbers off ``position_ids [B, S]``."""
    axis, zero = edit.int64s(1), edit.int64(0)
    last = edit.op("Max", edit.op("ReduceMax", position_ids, axis, keepdims=0), zero)
    is_token = edit.op("GreaterOrEqual", position_ids, zero)
    used = edit.op("Add", edit.op("ReduceMax", last, keepdims=0), edit.int64(1))
    most = edit.op("Max", used, edit.op("Squeeze", edit.dim(position_ids, 1)))
    return Rows(
        last_slot=edit.cast(last, ir.DataType.INT32),
        tokens=edit.op("ReduceSum", edit.cast(is_token, ir.DataType.INT32), axis, keepdims=0),
        is_token=edit.op("Unsqueeze", is_token, edit.int64s(2)),
        most_slots=edit.cast(most, ir.DataType.INT32),
    )


def token_major(edit: GraphEditor, states: ir.Value) -> ir.Value:
    """``[B, H, S, D]`` as ``[B, S, H * D]``."""
    node = states.producer()
    if node is not None and (node.domain, node.op_type) == (CONTRIB, "RotaryEmbedding") and len(node.inputs) == 4:
        # The kernel takes both layouts.
        return edit.op(node.op_type, token_major(edit, operand(node, 0)), *node.inputs[1:], domain=CONTRIB)
    return edit.op("Reshape", _heads_last(edit, states), edit.int64s(0, 0, -1))


def is_token_major(states: ir.Value) -> bool:
    """Whether ``[B, H, S, D]`` was computed as ``[B, S, H, D]``, so that `token_major` writes no transpose."""
    node, norm = states.producer(), RMSNormNode.making(states)
    if node is not None and (node.domain, node.op_type) == (CONTRIB, "RotaryEmbedding") and len(node.inputs) == 4:
        return is_token_major(operand(node, 0))
    if norm is not None:
        return is_token_major(norm.hidden)
    transpose = made_by(states, "Transpose")
    return transpose is not None and transpose.attributes.get_ints("perm") == _HEADS_LAST


def _heads_last(edit: GraphEditor, states: ir.Value) -> ir.Value:
    """``[B, H, S, D]`` as ``[B, S, H, D]``: without a transpose where the states were computed in that order."""
    transpose, norm = made_by(states, "Transpose"), RMSNormNode.making(states)
    if transpose is not None and transpose.attributes.get_ints("perm") == _HEADS_LAST:
        return operand(transpose, 0)
    if norm is not None:
        normed = edit.op(
            norm.node.op_type, _heads_last(edit, norm.hidden), norm.weight, domain=DOMAIN, epsilon=norm.epsilon
        )
        normed.type = norm.output.type
        return normed
    return edit.op("Transpose", states, perm=_HEADS_LAST)
