"""``Attention``, ``AttentionBias`` and ``AttentionSinks`` become matrix products with static shapes of rank 4.

Query heads that share a key head are stacked along the token axis, so keys and values are not repeated. A bool mask becomes a
float bias once a graph, not once a layer.
"""

from __future__ import annotations

import onnx_ir as ir

from qnn_backend.htp.lowering.graph import Writer, dialect_nodes, known_sizes, number, operand


class AttentionOps:
    """Lowers every attention. `masked` is what is added to the score of a slot that a token must not see."""

    name = "AttentionOps"
    version = "1"

    def __init__(self, masked: float) -> None:
        self._masked = masked
        self.version = f"1 ({masked:g})"

    def __call__(self, model: ir.Model) -> bool:
        """Says whether an attention was lowered."""
        nodes = dialect_nodes(model, "Attention", "AttentionBias", "AttentionSinks")
        biases: dict[ir.Value, ir.Value] = {}
        for node in nodes:
            write = Writer(model, node)
            mask = operand(node, 3)
            if node.op_type == "AttentionBias":
                bias = mask
            else:
                if mask not in biases:
                    biases[mask] = write.op(
                        "Where", mask, write.float(0.0), write.float(self._masked), shape=known_sizes(mask)
                    )
                bias = biases[mask]
            write.replace(node, _attend(write, node, bias))
        return bool(nodes)


def _attend(write: Writer, node: ir.Node, bias: ir.Value) -> ir.Value:
    query, key, value = (operand(node, index) for index in range(3))
    rows, query_heads, tokens, head_dim = known_sizes(query)
    _, key_heads, slots, _ = known_sizes(key)
    value_dim = known_sizes(value)[3]
    stacked = query_heads // key_heads * tokens
    shape = (rows, query_heads, tokens, slots)

    scaled = write.op("Mul", query, write.float(number(node, "scale", 1.0)), shape=known_sizes(query))
    rows_of_keys = write.op("Transpose", key, perm=[0, 1, 3, 2], shape=(rows, key_heads, head_dim, slots))
    grouped = write.reshape(scaled, (rows, key_heads, stacked, head_dim))
    scores = write.reshape(write.op("MatMul", grouped, rows_of_keys, shape=(rows, key_heads, stacked, slots)), shape)
    if softcap := number(node, "softcap"):
        cap = write.float(softcap)
        bounded = write.op("Tanh", write.op("Div", scores, cap, shape=shape), shape=shape)
        scores = write.op("Mul", bounded, cap, shape=shape)
    visible = write.op("Add", scores, bias, shape=shape)
    if node.op_type == "AttentionSinks":
        weights = _softmax_with_sinks(write, visible, operand(node, 4))
    else:
        weights = write.op("Softmax", visible, axis=-1, shape=shape)
    grouped = write.reshape(weights, (rows, key_heads, stacked, slots))
    result = write.op("MatMul", grouped, value, shape=(rows, key_heads, stacked, value_dim))
    return write.reshape(result, (rows, query_heads, tokens, value_dim))


def _softmax_with_sinks(write: Writer, scores: ir.Value, sinks: ir.Value) -> ir.Value:
    """A softmax with one more column, ``sinks [Hq]``, that is cut off afterwards."""
    shape = known_sizes(scores)
    rows, heads, tokens, slots = shape
    column = write.op(
        "Expand",
        write.reshape(sinks, (1, heads, 1, 1)),
        write.ints(rows, heads, tokens, 1),
        shape=(rows, heads, tokens, 1),
    )
    wide = (rows, heads, tokens, slots + 1)
    weights = write.op("Softmax", write.op("Concat", scores, column, axis=3, shape=wide), axis=-1, shape=wide)
    return write.op("Slice", weights, write.ints(0), write.ints(slots), write.ints(3), shape=shape)
