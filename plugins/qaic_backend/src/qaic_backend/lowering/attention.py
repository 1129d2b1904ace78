"""``Attention``, ``AttentionBias`` and ``AttentionSinks`` become matrix products with static shapes.

The bodies of the dialect work out shapes and choose branches at run time. Here heads and sizes are known, so every target shape
is a constant and no branch is left. Query heads that share a key head are stacked along the token axis: keys and values are not
repeated.
"""

from __future__ import annotations

import onnx_ir as ir

from qaic_backend.lowering.graph import FLOAT16_MAX, Writer, dialect_nodes, inputs_of, number, static_dim


class AttentionOps:
    """Lowers every attention with a known number of heads."""

    name = "AttentionOps"
    version = "1"

    def __call__(self, model: ir.Model) -> bool:
        """Says whether an attention was lowered."""
        lowered = False
        for node in dialect_nodes(model, "Attention", "AttentionBias", "AttentionSinks"):
            query, key, value, mask, *sinks = inputs_of(node)
            query_heads, key_heads = static_dim(query, 1), static_dim(key, 1)
            if query_heads is None or key_heads is None:
                continue
            write = Writer()
            heads = _Heads(write, query_heads, key_heads)
            scores = _scores(write, node, query, key, heads)
            if node.op_type == "AttentionBias":
                weights = write.op("Softmax", write.op("Add", scores, mask), axis=-1)
            else:
                # Also finite in FP16, so that a row without a visible slot stays a number.
                lowest = write.number_like(-FLOAT16_MAX, query)
                visible = write.op("Where", mask, scores, lowest)
                weights = _with_sinks(write, visible, *sinks) if sinks else write.op("Softmax", visible, axis=-1)
            write.replace(node, heads.unstack(write.op("MatMul", heads.stack(weights), value)))
            lowered = True
        return lowered


class _Heads:
    """Stacks query heads over their key head and back. 0 keeps a dimension, -1 takes what is left."""

    def __init__(self, write: Writer, query_heads: int, key_heads: int) -> None:
        self._write = write
        self._query_heads, self._key_heads = query_heads, key_heads

    def stack(self, value: ir.Value) -> ir.Value:
        return self._reshape(value, self._key_heads)

    def unstack(self, value: ir.Value) -> ir.Value:
        return self._reshape(value, self._query_heads)

    def _reshape(self, value: ir.Value, heads: int) -> ir.Value:
        if self._query_heads == self._key_heads:
            return value
        return self._write.op("Reshape", value, self._write.ints(0, heads, -1, 0))


def _scores(write: Writer, node: ir.Node, query: ir.Value, key: ir.Value, heads: _Heads) -> ir.Value:
    scaled = write.op("Mul", query, write.number_like(number(node, "scale", 1.0), query))
    transposed = write.op("Transpose", key, perm=[0, 1, 3, 2])
    scores = heads.unstack(write.op("MatMul", heads.stack(scaled), transposed))
    softcap = number(node, "softcap")
    if not softcap:
        return scores
    cap = write.number_like(softcap, query)
    return write.op("Mul", write.op("Tanh", write.op("Div", scores, cap)), cap)


def _with_sinks(write: Writer, scores: ir.Value, sinks: ir.Value) -> ir.Value:
    """A softmax in which ``sinks [Hq]`` take part of the probability."""
    last_axis = write.ints(3)
    sink = write.op("Reshape", sinks, write.ints(1, -1, 1, 1))
    maximum = write.op("Max", write.op("ReduceMax", scores, last_axis), sink)
    exponentials = write.op("Exp", write.op("Sub", scores, maximum))
    sink_exponential = write.op("Exp", write.op("Sub", sink, maximum))
    total = write.op("Add", write.op("ReduceSum", exponentials, last_axis), sink_exponential)
    return write.op("Div", exponentials, total)
