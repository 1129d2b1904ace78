"""``KVGatherCB`` over a whole cache becomes one ``Gather`` of its rows: the body would copy what it has gathered once more."""

from __future__ import annotations

import onnx_ir as ir

from qeff_framework.lowering.editor import GraphEditor
from qeff_framework.lowering.nodes import KVGatherNode
from qeff_framework.lowering.passes import DialectPass
from qeff_framework.lowering.values import same_dim


class GatherRows(DialectPass[KVGatherNode]):
    """Lowers each ``KVGatherCB`` that reads as many slots as the cache has; other reads keep their body."""

    name = "GatherRows"
    version = "2"
    node_type = KVGatherNode

    def lower(self, node: KVGatherNode, edit: GraphEditor) -> ir.Value | None:
        """``[B,H,C,D]``."""
        if node.batch_index is None or not same_dim(node.cache, 2, node.kv_positions, 0):
            return None
        return edit.op("Gather", node.cache, edit.op("Reshape", node.batch_index, edit.int64s(-1)), axis=0)
