"""What only the writing of an encoder's output needs moves into an ``If``: a step without tokens for the encoder skips it.

In the portable graph the encoder of an encoder-decoder runs in every step. In a decode step its input is padding and what it
computes is written nowhere, but its weights would be read for each new token.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from qeff_framework.lowering import GraphEditor, GraphPass, KVUpdateNode, dialect_nodes, static_dim

POSITIONS = "encoder_position_ids"


class EncoderBranch(GraphPass):
    """Moves everything that leads to updates at the encoder's positions, and nowhere else, into a branch.

    Runs before the updates are lowered, and after the passes for what the branch holds: the products of a branch are compressed,
    but its attention is looked for in the main graph.
    """

    name = "EncoderBranch"
    version = "2"

    def run(self, model: ir.Model) -> bool:
        """Says whether something was moved."""
        updates = [
            update
            for update in dialect_nodes(model, KVUpdateNode)
            if update.position_ids.is_graph_input() and update.position_ids.name == POSITIONS
        ]
        nodes = _only_for({update.node for update in updates}, model.graph)
        updates = [update for update in updates if update.updates.producer() in nodes]
        if not updates or any(_sizes(update) is None for update in updates):
            return False
        _branch(model, updates, nodes)
        return True


def _only_for(updates: Collection[ir.Node], graph: ir.Graph) -> dict[ir.Node, None]:
    """The nodes whose results are read by the tokens of `updates` and by each other alone, last one first."""
    found: dict[ir.Node, None] = {}
    for node in reversed(graph):
        uses = [use for output in node.outputs for use in output.uses()]
        is_output = any(output.is_graph_output() for output in node.outputs)
        inside = all(use.node in found or (use.node in updates and use.idx == 1) for use in uses)
        if uses and inside and not is_output:
            found[node] = None
    return found


def _sizes(update: KVUpdateNode) -> tuple[int, int] | None:
    """Heads and head size of what is written: those of the cache."""
    heads, dim = static_dim(update.cache, 1), static_dim(update.cache, 3)
    return None if heads is None or dim is None else (heads, dim)


def _branch(model: ir.Model, updates: Sequence[KVUpdateNode], nodes: Collection[ir.Node]) -> None:
    graph = model.graph
    sizes = {update.updates: _sizes(update) or (0, 0) for update in updates}
    tokens = list(sizes)
    positions = updates[0].position_ids
    # In front of everything that reads a result, and behind everything that the branch reads.
    edit = GraphEditor(model, updates[0].node)
    last = edit.op("ReduceMax", positions, keepdims=0)
    has_tokens = edit.op("GreaterOrEqual", last, edit.int64(0))
    results = [ir.Value(name=value.name, type=value.type, shape=value.shape) for value in tokens]
    for update in updates:
        update.node.replace_input_with(1, results[tokens.index(update.updates)])
    moved = [node for node in graph if node in nodes]
    graph.remove(moved)
    branches = {
        "then_branch": _subgraph("encoder", moved, tokens, graph),
        "else_branch": _subgraph("no_encoder", *_zeros(positions, sizes), graph),
    }
    attributes = [ir.AttrGraph(*item) for item in branches.items()]
    edit.adopt([ir.Node("", "If", [has_tokens], attributes, outputs=results)])


def _subgraph(name: str, nodes: Sequence[ir.Node], outputs: Sequence[ir.Value], outer: ir.Graph) -> ir.Graph:
    """ONNX forbids that an inner value has the name of an outer one, so all inner ones get a prefix."""
    for number, value in enumerate(value for node in nodes for value in node.outputs):
        value.name = f"{name}/{value.name or number}"
    return ir.Graph([], outputs, nodes=nodes, opset_imports=outer.opset_imports, name=name)


def _zeros(positions: ir.Value, sizes: Mapping[ir.Value, tuple[int, int]]) -> tuple[Sequence[ir.Node], list[ir.Value]]:
    """What is written nowhere, in the shapes of the encoder's results."""
    tape = ir.tape.Tape()
    zero = ir.tensor([0.0], dtype=ir.DataType.FLOAT)
    batch = tape.op("Shape", [positions], {"start": 0, "end": 1})
    length = tape.op("Shape", [positions], {"start": 1, "end": 2})
    outputs = []
    for value, known in sizes.items():
        heads, dim = (tape.op("Constant", [], {"value_ints": [size]}) for size in known)
        shape = tape.op("Concat", [batch, heads, length, dim], {"axis": 0})
        output = tape.op("ConstantOfShape", [shape], {"value": zero})
        output.type, output.shape = value.type, value.shape
        outputs.append(output)
    return tape.nodes, outputs
