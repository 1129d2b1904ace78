"""With continuous batching, caches become those of the step's rows alone, where ``GroupQueryAttention`` takes all of them.

The kernel takes one cache row for each row of the step. The session gives it that part of each cache: the rows that
``batch_index`` names lie one behind the other, and are put there where they do not. Otherwise each step would copy the slots that
its rows use, of every layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ort_sim_backend.lowering.group_query_attention import Match, matches
from qeff_framework.lowering import DOMAIN, GraphEditor, GraphPass, Op, readers

BATCH_INDEX = "batch_index"
#: First axis of the caches that hold the rows of the step.
_ROWS = "batch_size"


class StepRows(GraphPass):
    """Drops the batch index from updates and reads, if attention that `GroupQueryAttention` lowers is all that uses it."""

    name = "StepRows"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether the caches have the rows of the step."""
        index = next((value for value in model.graph.inputs if value.name == BATCH_INDEX), None)
        found = matches(model)
        if index is None or not found or _users(found) != readers(index):
            return False
        for match in found:
            for update, gather in zip((match.key_update, match.value_update), match.gathers, strict=True):
                for value in (update.cache, update.output):
                    if value.shape is not None:
                        value.shape = ir.Shape([_ROWS, *list(value.shape)[1:]])
                edit = GraphEditor(model, update.node)
                rows = edit.op(Op.KV_UPDATE, update.cache, update.updates, update.position_ids, domain=DOMAIN)
                edit.replace(update.node, rows)
                GraphEditor(model, gather.node).replace(gather.node, rows)
        return True


def _users(found: Sequence[Match]) -> set[ir.Node]:
    """The updates and reads by index of all matches."""
    nodes = {gather.node for match in found for gather in match.gathers}
    return nodes | {update.node for match in found for update in (match.key_update, match.value_update)}


def has_rows_of_step(cache: ir.Value) -> bool:
    """Whether the pass has changed this input or output of a graph."""
    return cache.shape is not None and str(cache.shape[0]) == _ROWS
