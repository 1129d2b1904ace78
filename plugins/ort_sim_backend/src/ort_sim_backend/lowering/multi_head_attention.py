"""``Attention`` of the tokens of a step with each other becomes one MultiHeadAttention, as in models of pictures and in encoders.

Where the mask hides nothing, the kernel never holds all scores at once; the mask of the dialect would be compared with each
score, and the scores of a picture of 1024 patches are a million numbers for each head. Otherwise the mask is a bias, which the
kernel's product of queries and keys begins with. Values that no token sees become zeros first, as the dialect says.

Attention that reads a cache stays: the kernel would want the cache in another order of axes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ort_sim_backend.lowering.group_query_attention import is_token_major, token_major
from ort_sim_backend.lowering.kernels import CONTRIB
from qeff_framework.lowering import (
    FLOAT32_MIN,
    AttentionNode,
    DialectPass,
    GraphEditor,
    Op,
    hides_nothing,
    same_dim,
    static_dim,
)

#: ``[B, S, H, D]`` to ``[B, H, S, D]``.
_HEADS_FIRST = (0, 2, 1, 3)


class MultiHeadAttention(DialectPass[AttentionNode]):
    """Lowers attention of float32 with as many heads of keys as of queries."""

    name = "MultiHeadAttention"
    version = "3"
    node_type = AttentionNode

    def lower(self, node: AttentionNode, edit: GraphEditor) -> ir.Value | None:
        """``[B,H,S,Dv]``."""
        states = (node.query, node.key, node.value)
        heads = {static_dim(each, 1) for each in states}
        if {each.dtype for each in states} != {ir.DataType.FLOAT} or len(heads) != 1 or None in heads:
            return None
        # The kernel reads a scale of 0 as "not given".
        if node.softcap or node.scale == 0.0 or node.sinks is not None:
            return None
        is_open = hides_nothing(node)
        if not is_open and not (all(is_token_major(each) for each in states) and _is_full(node)):
            return None
        (count,) = heads
        query, key, value = (token_major(edit, each) for each in states)
        more: list[ir.Value | None] = []
        if not is_open:
            sees = _mask(edit, node)
            value = edit.op("Where", _seen(edit, sees), value, edit.array(np.zeros((), np.float32)))
            more = [None, None, _bias(edit, node, sees)]
        attended = edit.op(
            "MultiHeadAttention", query, key, value, *more, domain=CONTRIB, num_heads=count, scale=node.scale
        )
        attended.type, head_dim = node.query.type, static_dim(node.value, 3)
        if node.query.shape is not None and head_dim is not None:
            batch, _, tokens, _ = node.query.shape
            attended.shape = ir.Shape([batch, tokens, (count or 0) * head_dim])
        by_head = edit.op("Reshape", attended, edit.int64s(0, 0, count or 0, -1))
        return edit.op("Transpose", by_head, perm=_HEADS_FIRST)


def _is_full(node: AttentionNode) -> bool:
    """The mask names each token and each slot: the kernel repeats rows and heads alone."""
    has_axes = node.mask.shape is not None and len(node.mask.shape) == len(_HEADS_FIRST)
    return has_axes and same_dim(node.mask, 2, node.query, 2) and same_dim(node.mask, 3, node.key, 2)


def _mask(edit: GraphEditor, node: AttentionNode) -> ir.Value:
    """Which slots each token sees: bool ``[B|1, H|1, S, L]``."""
    if node.op != Op.ATTENTION_BIAS:
        return node.mask
    hiding = edit.array(np.array(FLOAT32_MIN / 2, np.float32))
    sees: ir.Value = edit.once(("sees", node.mask), lambda: edit.op("Greater", node.mask, hiding))
    return sees


def _bias(edit: GraphEditor, node: AttentionNode, sees: ir.Value) -> ir.Value:
    """What is added to the scores."""
    shown = node.mask if node.op == Op.ATTENTION_BIAS else edit.array(np.zeros((), np.float32))
    lowest = edit.array(np.array(FLOAT32_MIN, np.float32))
    bias: ir.Value = edit.once(("bias", node.mask), lambda: edit.op("Where", sees, shown, lowest))
    return bias


def _seen(edit: GraphEditor, sees: ir.Value) -> ir.Value:
    """Whether any token sees a slot: bool ``[B|1, L, 1]``."""

    def make() -> ir.Value:
        most = edit.op("ReduceMax", edit.cast(sees, ir.DataType.INT32), edit.int64s(1, 2), keepdims=0)
        return edit.cast(edit.op("Unsqueeze", most, edit.int64s(2)), ir.DataType.BOOL)

    seen: ir.Value = edit.once(("seen", sees), make)
    return seen
