"""``Attention`` in which every token sees every slot becomes one MultiHeadAttention, which never holds all scores at once.

That is the attention of models of pictures. The mask of the dialect would be compared with each score, and the scores of a
picture of 1024 patches are a million numbers for each head.
"""

from __future__ import annotations

import onnx_ir as ir

from ort_sim_backend.lowering.group_query_attention import token_major
from ort_sim_backend.lowering.kernels import CONTRIB
from qeff_framework.lowering import AttentionNode, DialectPass, GraphEditor, hides_nothing, static_dim

#: ``[B, S, H, D]`` to ``[B, H, S, D]``.
_HEADS_FIRST = (0, 2, 1, 3)


class MultiHeadAttention(DialectPass[AttentionNode]):
    """Lowers attention of float32 with a mask that hides nothing and with as many heads of keys as of queries."""

    name = "MultiHeadAttention"
    version = "1"
    node_type = AttentionNode

    def lower(self, node: AttentionNode, edit: GraphEditor) -> ir.Value | None:
        """``[B,H,S,Dv]``."""
        states = (node.query, node.key, node.value)
        heads = {static_dim(each, 1) for each in states}
        if {each.dtype for each in states} != {ir.DataType.FLOAT} or len(heads) != 1 or None in heads:
            return None
        # The kernel reads a scale of 0 as "not given".
        if node.softcap or node.scale == 0.0 or not hides_nothing(node):
            return None
        (count,) = heads
        inputs = [token_major(edit, each) for each in states]
        attended = edit.op("MultiHeadAttention", *inputs, domain=CONTRIB, num_heads=count, scale=node.scale)
        by_head = edit.op("Reshape", attended, edit.int64s(0, 0, count or 0, -1))
        return edit.op("Transpose", by_head, perm=_HEADS_FIRST)
