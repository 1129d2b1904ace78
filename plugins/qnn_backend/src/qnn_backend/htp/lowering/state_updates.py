"""The new part of a cache leaves the graph, not the whole cache.

The session keeps the caches and writes the new tokens into them. A whole cache would be copied out of the NPU at every step.
"""

from __future__ import annotations

import onnx_ir as ir

from qnn_backend.htp.lowering.graph import Writer, dialect_nodes, known_sizes, operand

#: Where the names of such states are found in the metadata of a static graph.
UPDATED = "qnn_updated_states"


class StateUpdates:
    """Takes each output that is a ``KVUpdate`` of an input, and returns its updates ``[B, H, S, D]`` instead."""

    name = "StateUpdates"
    version = "1"

    def __call__(self, model: ir.Model) -> bool:
        """Says whether an output was replaced."""
        updated = []
        for update in dialect_nodes(model, "KVUpdate"):
            cache, new, result = operand(update, 0), operand(update, 1), update.outputs[0]
            if not (cache.is_graph_input() and result.is_graph_output()):
                continue
            name = result.name
            result.name = f"{name}_cache"
            position = next(index for index, value in enumerate(model.graph.outputs) if value is result)
            # A value of its own: `new` may be another output, or an input, already.
            model.graph.outputs[position] = Writer(model, update).op(
                "Identity", new, shape=known_sizes(new), dtype=new.dtype
            )
            model.graph.outputs[position].name = name
            updated.append(str(cache.name))
        model.meta[UPDATED] = updated
        return bool(updated)


def updated_states(model: ir.Model) -> list[str]:
    """Input names of the states whose output is the new part only."""
    names: list[str] = model.meta.get(UPDATED, [])
    return names
