"""One graph for each specialization: the compiler takes static shapes only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from qeff_framework.plugin_api import CompileError, Specialization

#: Where the graphs are found in the metadata of the portable model.
GRAPHS = "qnn_graphs"


class BindShapes:
    """Copies the portable graph once a specialization and puts the sizes in. Weights are shared by the copies."""

    name = "BindShapes"
    version = "1"

    def __init__(self, specializations: Sequence[Specialization]) -> None:
        self._specializations = tuple(specializations)

    def __call__(self, model: ir.Model) -> bool:
        """Always changes the model: the graphs are in its metadata afterwards."""
        model.meta[GRAPHS] = {item.name: bind(model, item) for item in self._specializations}
        return True


def graphs_of(model: ir.Model) -> Mapping[str, ir.Model]:
    """The static graphs by the name of their specialization."""
    graphs: Mapping[str, ir.Model] = model.meta[GRAPHS]
    return graphs


class PerGraph:
    """A pass over one static graph, made a transform of the model that holds them."""

    def __init__(self, single: Any) -> None:
        self.name: str = single.name
        self.version: str = single.version
        self._single = single

    def __call__(self, model: ir.Model) -> bool:
        """Says whether a graph was changed."""
        changed = [self._single(graph) for graph in graphs_of(model).values()]
        return any(changed)


def bind(model: ir.Model, specialization: Specialization) -> ir.Model:
    """A copy of `model` with the sizes of `specialization`. Raises `CompileError` when a dimension has no size."""
    dims = dict(specialization.dims)
    if not dims:
        raise CompileError(f"specialization '{specialization.name}' has no sizes: the NPU takes static shapes only")
    copy = model.clone()
    for graph in (copy.graph, *copy.graph.subgraphs()):
        for value in _values(graph):
            if value.shape is not None:
                value.shape = value.shape.evaluate(dims)
    unbound = sorted({str(dim) for value in copy.graph.inputs for dim in value.shape or () if not isinstance(dim, int)})
    if unbound:
        raise CompileError(
            f"specialization '{specialization.name}' has no value for {', '.join(unbound)}: the NPU takes static shapes only"
        )
    copy.graph.name = specialization.name
    return copy


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]
