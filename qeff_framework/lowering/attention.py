"""``Attention``, ``AttentionBias`` and ``AttentionSinks`` become matrix products without branches.

The bodies of the dialect work out shapes and choose branches at run time. Here heads and sizes are known, so every target shape
is a constant. Query heads that share a key head are stacked along the token axis: keys and values are not repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from qeff_framework.dialect.names import Op
from qeff_framework.lowering.editor import GraphEditor
from qeff_framework.lowering.nodes import AttentionNode
from qeff_framework.lowering.passes import DialectPass
from qeff_framework.lowering.values import constant_array, operand, static_dim

#: Lowest finite numbers of the types that devices compute in.
FLOAT16_MIN = float(np.finfo(np.float16).min)
FLOAT32_MIN = float(np.finfo(np.float32).min)


@dataclass(frozen=True, kw_only=True)
class MaskPolicy:
    """How attention hides the slots that a bool mask excludes.

    ``"select"`` puts `hidden` in the place of their scores. ``"add"`` adds it to them, through a float bias that all layers with
    the same mask share. `hidden` must be finite in the type of the device, so that a row without a visible slot stays a number.
    """

    form: Literal["select", "add"] = "select"
    hidden: float = FLOAT32_MIN
    #: Keys and values of slots that no token of the step sees become zeros, as the dialect says: their probability is zero, and
    #: zero times infinity is NaN. False where nothing but numbers can be in the caches, which saves a copy of them in each layer.
    clears_unseen: bool = True


#: What repeats or renames the entries of its first input.
_REPEATING = ("Expand", "Identity", "Reshape", "Squeeze", "Tile", "Transpose", "Unsqueeze")


def hides_nothing(node: AttentionNode) -> bool:
    """Whether the mask is known to show every slot to every token, as in models of pictures. Never with sinks or a bias."""
    if node.op != Op.ATTENTION:
        return False
    value = node.mask
    while (producer := value.producer()) is not None and not producer.domain and producer.op_type in _REPEATING:
        value = operand(producer, 0)
    mask = constant_array(value)
    return mask is not None and bool(mask.all())


class AttentionOps(DialectPass[AttentionNode]):
    """Lowers every attention whose numbers of heads are known; other sizes may be symbolic."""

    name = "AttentionOps"
    version = "3"
    node_type = AttentionNode

    def __init__(self, mask: MaskPolicy) -> None:
        self._mask = mask
        self.version = f"{self.version} ({mask.form} {mask.hidden:g}{' clears' if mask.clears_unseen else ''})"

    def lower(self, node: AttentionNode, edit: GraphEditor) -> ir.Value | None:
        """``[B,Hq,S,Dv]``."""
        heads = Heads.of(node)
        if heads is None:
            return None
        query = edit.op("Mul", node.query, edit.scalar_like(node.scale, node.query))
        key, value = node.key, node.value
        mask = None if hides_nothing(node) else node.mask
        if mask is not None and self._mask.clears_unseen:
            key, value = cleared(edit, node, mask, key), cleared(edit, node, mask, value)
        scores = masked_scores(edit, node, heads, self._mask, query=query, key=key, mask=mask)
        return heads.product(edit, _softmax(edit, scores, node.sinks), value)


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Numbers of heads of an attention. Query heads that share a key head are stacked along the token axis of products."""

    query: int
    key: int

    @classmethod
    def of(cls, node: AttentionNode) -> Heads | None:
        """`None` when a number is not known."""
        query, key = static_dim(node.query, 1), static_dim(node.key, 1)
        return None if query is None or key is None else cls(query=query, key=key)

    def product(self, edit: GraphEditor, left: ir.Value, right: ir.Value) -> ir.Value:
        """``left [B,Hq,S,X]`` times ``right [B,Hkv,X,Y]``: ``[B,Hq,S,Y]``."""
        if self.query == self.key:
            return edit.op("MatMul", left, right)
        stacked = edit.op("MatMul", edit.reshape(left, (0, self.key, -1, 0)), right)
        return edit.reshape(stacked, (0, self.query, -1, 0))


def masked_scores(
    edit: GraphEditor,
    node: AttentionNode,
    heads: Heads,
    policy: MaskPolicy,
    *,
    query: ir.Value,
    key: ir.Value,
    mask: ir.Value | None,
) -> ir.Value:
    """Scores of the scaled ``query [B,Hq,S,D]`` and of ``key [B,Hkv,L,D]``, capped and masked: ``[B,Hq,S,L]``.

    `key` and ``mask [B|1,1|Hq,S,L]`` are those of `node`, or the same part of both; no mask hides nothing.
    """
    scores = heads.product(edit, query, edit.op("Transpose", key, perm=(0, 1, 3, 2)))
    if node.softcap:
        cap = edit.scalar_like(node.softcap, node.query)
        scores = edit.op("Mul", edit.op("Tanh", edit.op("Div", scores, cap)), cap)
    if mask is None:
        return scores
    if node.op == Op.ATTENTION_BIAS:
        return edit.op("Add", scores, mask)
    hidden = edit.scalar_like(policy.hidden, node.query)
    if policy.form == "select":
        return edit.op("Where", mask, scores, hidden)
    zero = edit.scalar_like(0.0, node.query)
    bias = edit.once(("bias", mask, node.query.dtype), lambda: edit.op("Where", mask, zero, hidden))
    return edit.op("Add", scores, bias)


def cleared(edit: GraphEditor, node: AttentionNode, mask: ir.Value, states: ir.Value) -> ir.Value:
    """``states [B,Hkv,L,D]`` with zeros in the slots that no token sees by ``mask [B|1,1|Hq,S,L]``, a part of that of `node`."""

    def make() -> ir.Value:
        is_bias = node.op == Op.ATTENTION_BIAS
        sees = edit.op("Greater", mask, edit.scalar_like(FLOAT32_MIN / 2, mask)) if is_bias else mask
        seen = edit.op("ReduceMax", edit.cast(sees, ir.DataType.INT32), edit.int64s(1, 2), keepdims=0)
        return edit.cast(edit.op("Unsqueeze", seen, edit.int64s(1, 3)), ir.DataType.BOOL)

    return edit.op("Where", edit.once(("seen", mask), make), states, edit.scalar_like(0.0, states))


def _softmax(edit: GraphEditor, scores: ir.Value, sinks: ir.Value | None) -> ir.Value:
    """A softmax in which ``sinks [Hq]`` take part of the probability, as one more column that is cut off afterwards."""
    if sinks is None:
        return edit.op("Softmax", scores, axis=-1)
    rows = edit.op("Concat", edit.op("Shape", scores, end=3), edit.int64s(1), axis=0)
    column = edit.op("Expand", edit.op("Reshape", sinks, edit.int64s(1, -1, 1, 1)), rows)
    weights = edit.op("Softmax", edit.op("Concat", scores, column, axis=3), axis=-1)
    return edit.op("Slice", weights, edit.int64s(0), edit.int64s(-1), edit.int64s(3))
