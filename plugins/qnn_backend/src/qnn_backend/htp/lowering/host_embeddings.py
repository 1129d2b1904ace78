"""Large embedding tables are taken out of the graphs: their rows become an input, see `qnn_backend.htp.host_tables`."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from qeff_framework.lowering import GraphEditor, content_key, is_weight, nodes_of, operand, weight_of


@dataclass(frozen=True, kw_only=True)
class TakenOut:
    """A table that the graphs have no more."""

    #: The input that takes its rows.
    input: str
    #: The input that named them.
    ids: str
    table: ir.TensorProtocol


def take_out_embeddings(models: Iterable[ir.Model], *, least_bytes: int) -> list[TakenOut]:
    """Takes each table of at least `least_bytes` that is read by the row numbers of an input out of all graphs of a model."""
    found: dict[tuple[Hashable, str], TakenOut] = {}
    for model in models:
        for node in nodes_of(model, "Gather"):
            if _is_embedding(node, least_bytes):
                _take_out(model, node, found)
    return list(found.values())


def _is_embedding(node: ir.Node, least_bytes: int) -> bool:
    table, ids = operand(node, 0), operand(node, 1)
    return (
        is_weight(table)
        and table.dtype == ir.DataType.FLOAT
        and len(weight_of(table).shape) == 2
        and weight_of(table).nbytes >= least_bytes
        and node.attributes.get_int("axis", 0) == 0
        and ids.is_graph_input()
        and not node.outputs[0].is_graph_output()
    )


def _take_out(model: ir.Model, node: ir.Node, found: dict[tuple[Hashable, str], TakenOut]) -> None:
    table, ids = operand(node, 0), operand(node, 1)
    tensor = weight_of(table)
    key = (content_key(tensor), str(ids.name))
    if key not in found:
        found[key] = TakenOut(input=f"{ids.name}_embedded_{len(found)}", ids=str(ids.name), table=tensor)
    rows = _input(model, found[key].input, node.outputs[0])
    GraphEditor(model, node).replace(node, rows)
    if not table.uses():
        model.graph.initializers.pop(str(table.name))
    if not ids.uses():
        model.graph.inputs.remove(ids)


def _input(model: ir.Model, name: str, like: ir.Value) -> ir.Value:
    """The graph's input of this name, made when it is not there."""
    for value in model.graph.inputs:
        if value.name == name:
            return value
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=like.shape)
    model.graph.inputs.append(value)
    return value
