"""``KVUpdate`` becomes ``CtxScatter``: the compiler writes the new tokens into the cache that stays on the card.

``KVUpdateCB`` of continuous batching becomes ``CtxScatterCB``, which finds the row of the cache by index. Padding has position
-1, and ONNX counts negative indices from the end: it would overwrite the last slot. The device drops the largest int32 instead,
so padding is sent there.
"""

from __future__ import annotations

import onnx_ir as ir

from qaic_backend.lowering.device import BEYOND_CACHE, CACHE_FUNCTIONS
from qeff_framework.lowering import DialectPass, GraphEditor, KVUpdateNode

# `updates` has the dimensions B, H, S, D; `position_ids` B, S. `batch_numbers` holds the cache row of each row of the step.
_INDICES_AND_WRITE = """
    one = Constant <value_int = 1> ()
    head_axis = Constant <value_ints = [1]> ()
    batch_shape = Constant <value_ints = [-1, 1, 1]> ()
    head_shape = Constant <value_ints = [1, -1, 1]> ()
    component_axis = Constant <value_ints = [3]> ()
    head_count = Gather (token_shape, one)
    head_numbers = Range (zero, head_count, one)
    batch_column = Reshape (batch_numbers, batch_shape)
    head_column = Reshape (head_numbers, head_shape)
    position_column = Unsqueeze (position_ids, head_axis)
    batches = Expand (batch_column, token_shape)
    heads = Expand (head_column, token_shape)
    positions = Expand (position_column, token_shape)
    batch_part = Unsqueeze (batches, component_axis)
    head_part = Unsqueeze (heads, component_axis)
    position_part = Unsqueeze (positions, component_axis)
    indices = Concat <axis = 3> (batch_part, head_part, position_part)
    result = ScatterND (data, indices, updates)
"""

# `data` has the dimensions B, H, C, D.
_BODY = f"""
CtxScatter (data, position_ids, updates) => (result)
{{
    zero = Constant <value_int = 0> ()
    step = Constant <value_int = 1> ()
    token_shape = Shape <start = 0, end = 3> (updates)
    batch_size = Gather (token_shape, zero)
    batch_numbers = Range (zero, batch_size, step)
{_INDICES_AND_WRITE}}}
"""

# `data` has the dimensions F, H, C, D; `batch_index` B, 1.
_BODY_CB = f"""
CtxScatterCB (data, batch_index, position_ids, updates) => (result)
{{
    zero = Constant <value_int = 0> ()
    token_shape = Shape <start = 0, end = 3> (updates)
    batch_numbers = Identity (batch_index)
{_INDICES_AND_WRITE}}}
"""


class CtxScatter(DialectPass[KVUpdateNode]):
    """Lowers every ``KVUpdate`` and ``KVUpdateCB``."""

    name = "CtxScatter"
    version = "4"
    node_type = KVUpdateNode

    def lower(self, node: KVUpdateNode, edit: GraphEditor) -> ir.Value:
        """The updated cache."""
        slots = edit.once(("slots", node.position_ids), lambda: _slots(edit, node.position_ids))
        if node.batch_index is None:
            return edit.call(_BODY, CACHE_FUNCTIONS, node.cache, slots, node.updates)
        return edit.call(_BODY_CB, CACHE_FUNCTIONS, node.cache, node.batch_index, slots, node.updates)


def _slots(edit: GraphEditor, position_ids: ir.Value) -> ir.Value:
    is_padding = edit.op("Less", position_ids, edit.int64(0))
    return edit.op("Where", is_padding, edit.int64(BEYOND_CACHE), position_ids)
