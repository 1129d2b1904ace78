"""What a step computes from rows of a table that it has chosen itself becomes a small model of its own, run behind it.

Between the two the session reads the rows from the file. In one model the table would be mapped, and the system brings in up to
2 MiB around each row: some hundred rows are most of a table, 140 of 189 MB with Gemma 3 270M.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import onnx_ir as ir

#: Constants of the small model, which are copied, in bytes.
_MOST_CONSTANTS = 1 << 16
#: The kernel that ends the small model writes over its first input where both have the same buffer.
_LAST = "ScatterElements"


def cut_off(
    model: ir.Model, tables: Sequence[ir.Value], states: Collection[str]
) -> tuple[ir.Model, dict[str, Any]] | None:
    """Takes what stands behind the rows of `tables` out of `model`, which then gives what that needs.

    Args:
        model: is changed, unless `None` is returned.
        tables: inputs that rows are taken from.
        states: names of the states, inputs and outputs.

    Returns:
        The model of these nodes, and for the session: ``rows``, by table that is read the input ``rows`` and the value with their
        ``numbers``; ``values``, by value that goes from one model to the other its ``name``, ``dtype`` and ``shape``; and
        ``written_over``, by result the value whose buffer it has. `None` where it would be more than what some rows need.
    """
    graph = model.graph
    lookups = [node for table in tables for node, _ in table.uses()]
    nodes = _behind(graph, lookups)
    made = {value for node in nodes for value in node.outputs}
    rows = [node.outputs[0] for node in lookups]
    results = [value for value in graph.outputs if value in made]
    given = dict.fromkeys(
        value
        for node in nodes
        for value in node.inputs
        if value is not None and value not in made and value not in rows
    )
    constants = [value for value in given if value.is_initializer()]
    passed = dict.fromkeys([value for value in given if not value.is_initializer()])
    numbers = [node.inputs[1] for node in lookups]
    values = [*dict.fromkeys([*passed, *(value for value in numbers if value is not None)])]
    written_over = {
        str(node.outputs[0].name): str(node.inputs[0].name)
        for node in nodes
        if node.op_type == _LAST and node.outputs[0] in results and node.inputs[0] in passed
    }
    if (
        not lookups
        or model.functions
        or any(node.graph is not graph or node.op_type != "Gather" or node.inputs[1] is None for node in lookups)
        or any(node.attributes.get_int("axis", 0) for node in lookups)
        or any(use.node.graph is not graph for value in (*rows, *made) for use in value.uses())
        or any(isinstance(each.value, ir.Graph) for node in nodes for each in node.attributes.values())
        or len(written_over) != len(results)
        or any(value.is_graph_input() or value.name in states for value in (*values, *results))
        or not all(_has_sizes(value) for value in (*values, *rows))
        or sum(value.const_value.nbytes if value.const_value is not None else _MOST_CONSTANTS for value in constants)
        >= _MOST_CONSTANTS
    ):
        return None
    places = [
        {"table": str(node.inputs[0].name), "rows": str(node.outputs[0].name), "numbers": str(node.inputs[1].name)}
        for node in lookups
        if node.inputs[0] is not None and node.inputs[1] is not None
    ]
    for value in results:
        graph.outputs.remove(value)
    graph.outputs.extend(value for value in values if value not in graph.outputs)
    graph.remove([*nodes, *lookups])
    copies = {value: ir.Value(name=value.name, type=value.type, shape=value.shape) for value in (*passed, *rows)}
    copies |= {value: ir.Value(name=value.name, const_value=value.const_value) for value in constants}
    for node in nodes:
        for index, taken in enumerate(node.inputs):
            if taken in copies:
                node.replace_input_with(index, copies[taken])
    small = ir.Graph(
        [copies[value] for value in (*passed, *rows)],
        results,
        nodes=nodes,
        initializers=[copies[value] for value in constants],
        opset_imports=graph.opset_imports,
        name="behind_tables",
    )
    told = {"rows": places, "values": [_described(value) for value in values], "written_over": written_over}
    return ir.Model(small, ir_version=model.ir_version), told


def _behind(graph: ir.Graph, first: Sequence[ir.Node]) -> list[ir.Node]:
    """The nodes that need a result of one of `first`, in order."""
    found: dict[ir.Node, None] = {}
    for node in graph:
        producers = {value.producer() for value in node.inputs if value is not None}
        if producers & found.keys() or not producers.isdisjoint(first):
            found[node] = None
    return [*found]


def _has_sizes(value: ir.Value) -> bool:
    """All sizes are known by number or name."""
    if value.shape is None or value.dtype is None:
        return False
    return all(isinstance(size, int) or size.value is not None for size in value.shape)


def _described(value: ir.Value) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else str(size.value) for size in value.shape or ()]
    return {
        "name": str(value.name),
        "dtype": str(value.dtype.numpy()) if value.dtype is not None else "",
        "shape": shape,
    }
