"""The new part of a cache leaves the graph, not the whole cache.

The session keeps the caches and writes the new tokens into them. A whole cache would be copied out of the NPU at every step.
"""

from __future__ import annotations

import onnx_ir as ir

from qeff_framework.lowering import GraphEditor, GraphPass, KVUpdateNode, dialect_nodes, operand
from qeff_framework.plugin_api import CompileError

#: The inputs that tell the session at which slots a step writes, by the kind of state.
POSITIONS = {"cross": "encoder_position_ids"}
POSITIONS_OF_TOKENS = "position_ids"
#: Where the names of such states are found in the metadata of a static graph.
UPDATED = "qnn_updated_states"
#: Ops that leave the positions and their order as they are.
_SAME_POSITIONS = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")


class StateUpdates(GraphPass):
    """Takes each output that is a ``KVUpdate`` of an input, and returns its updates ``[B, H, S, D]`` instead."""

    name = "StateUpdates"
    version = "2"

    def run(self, model: ir.Model) -> bool:
        """Says whether an output was replaced. Raises `CompileError` for a state that the session would write elsewhere."""
        updated = []
        for update in dialect_nodes(model, KVUpdateNode):
            result = update.output
            if not (update.cache.is_graph_input() and result.is_graph_output()):
                continue
            _require_given_positions(update)
            name = result.name
            result.name = f"{name}_cache"
            position = next(index for index, value in enumerate(model.graph.outputs) if value is result)
            # A value of its own: the updates may be another output, or an input, already.
            output = GraphEditor(model, update.node).op("Identity", update.updates)
            model.graph.outputs[position] = output
            output.name = name
            updated.append(str(update.cache.name))
        model.meta[UPDATED] = updated
        return bool(updated)


def _require_given_positions(update: KVUpdateNode) -> None:
    positions = update.position_ids
    producer = positions.producer()
    while producer is not None and not producer.domain and producer.op_type in _SAME_POSITIONS:
        positions = operand(producer, 0)
        producer = positions.producer()
    known = (POSITIONS_OF_TOKENS, *POSITIONS.values())
    if not positions.is_graph_input() or positions.name not in known:
        raise CompileError(
            f"the state {update.cache.name} is written at other slots than those of the step's {' or '.join(known)}, which are "
            "the only ones that the session writes to: the NPU cannot run this model; choose another backend"
        )


def updated_states(model: ir.Model) -> list[str]:
    """Input names of the states whose output is the new part only."""
    names: list[str] = model.meta.get(UPDATED, [])
    return names
