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
        query_heads, key_heads = static_dim(node.query, 1), static_dim(node.key, 1)
        if query_heads is None or key_heads is None:
            return None

        def stacked(value: ir.Value) -> ir.Value:
            return value if query_heads == key_heads else edit.reshape(value, (0, key_heads, -1, 0))

        def unstacked(value: ir.Value) -> ir.Value:
            return value if query_heads == key_heads else edit.reshape(value, (0, query_heads, -1, 0))

        open_to_all = hides_nothing(node)
        key, value = (node.key, node.value) if open_to_all else self._cleared(edit, node)
        scaled = edit.op("Mul", node.query, edit.scalar_like(node.scale, node.query))
        transposed = edit.op("Transpose", key, perm=(0, 1, 3, 2))
        scores = unstacked(edit.op("MatMul", stacked(scaled), transposed))
        if node.softcap:
            cap = edit.scalar_like(node.softcap, node.query)
            scores = edit.op("Mul", edit.op("Tanh", edit.op("Div", scores, cap)), cap)
        visible = scores if open_to_all else self._masked(edit, node, scores)
        weights = _softmax(edit, visible, node.sinks)
        return unstacked(edit.op("MatMul", stacked(weights), value))

    def _cleared(self, edit: GraphEditor, node: AttentionNode) -> tuple[ir.Value, ir.Value]:
        """Keys and values without what no token sees."""
        if not self._mask.clears_unseen:
            return node.key, node.value

        def make() -> ir.Value:
            is_bias = node.op == Op.ATTENTION_BIAS
            mask = edit.op("Greater", node.mask, edit.scalar_like(FLOAT32_MIN / 2, node.mask)) if is_bias else node.mask
            seen = edit.op("ReduceMax", edit.cast(mask, ir.DataType.INT32), edit.int64s(1, 2), keepdims=0)
            return edit.cast(edit.op("Unsqueeze", seen, edit.int64s(1, 3)), ir.DataType.BOOL)

        seen: ir.Value = edit.once(("seen", node.mask), make)
        nothing = edit.scalar_like(0.0, node.value)
        return edit.op("Where", seen, node.key, nothing), edit.op("Where", seen, node.value, nothing)

    def _masked(self, edit: GraphEditor, node: AttentionNode, scores: ir.Value) -> ir.Value:
        if node.op == Op.ATTENTION_BIAS:
            return edit.op("Add", scores, node.mask)
        hidden = edit.scalar_like(self._mask.hidden, node.query)
        if self._mask.form == "select":
            return edit.op("Where", node.mask, scores, hidden)
        zero = edit.scalar_like(0.0, node.query)
        bias = edit.once(("bias", node.mask, node.query.dtype), lambda: edit.op("Where", node.mask, zero, hidden))
        return edit.op("Add", scores, bias)


def _softmax(edit: GraphEditor, scores: ir.Value, sinks: ir.Value | None) -> ir.Value:
    """A softmax in which ``sinks [Hq]`` take part of the probability, as one more column that is cut off afterwards."""
    if sinks is None:
        return edit.op("Softmax", scores, axis=-1)
    rows = edit.op("Concat", edit.op("Shape", scores, end=3), edit.int64s(1), axis=0)
    column = edit.op("Expand", edit.op("Reshape", sinks, edit.int64s(1, -1, 1, 1)), rows)
    weights = edit.op("Softmax", edit.op("Concat", scores, column, axis=3), axis=-1)
    return edit.op("Slice", weights, edit.int64s(0), edit.int64s(-1), edit.int64s(3))
