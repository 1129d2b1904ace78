"""One static graph for each specialization, for compilers that take static shapes only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from qeff_framework.contracts import Specialization, Transform, has_changed
from qeff_framework.errors import CompileError
from qeff_framework.lowering.passes import GraphPass

#: Where the graphs are in the metadata of the portable model.
_GRAPHS = "qeff_specialized_graphs"


def bind_sizes(model: ir.Model, specialization: Specialization) -> ir.Model:
    """A copy of `model` with the sizes of `specialization` in place of the symbols. The copies share the weights.

    Raises `CompileError` when a dimension of an input has no size.
    """
    dims = dict(specialization.dims)
    copy = model.clone()
    for graph in (copy.graph, *copy.graph.subgraphs()):
        for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
            if value.shape is not None:
                value.shape = value.shape.evaluate(dims)
    unbound = sorted({str(dim) for value in copy.graph.inputs for dim in value.shape or () if not isinstance(dim, int)})
    if unbound:
        raise CompileError(
            f"specialization '{specialization.name}' has no value for {', '.join(unbound)}: the compiler takes static shapes only"
        )
    copy.graph.name = specialization.name
    return copy


class BindSizes(GraphPass):
    """Makes a static graph for each specialization; `specialized_graphs` returns them. The model itself stays as it is."""

    name = "BindSizes"
    version = "1"

    def __init__(self, specializations: Sequence[Specialization]) -> None:
        self._specializations = tuple(specializations)

    def run(self, model: ir.Model) -> bool:
        """Says whether graphs had to be made: those of the same specializations stay, with what passes have made of them."""
        found = model.meta.get(_GRAPHS)
        if found is not None and [*found] == [item.name for item in self._specializations]:
            return False
        model.meta[_GRAPHS] = {item.name: bind_sizes(model, item) for item in self._specializations}
        return True


def specialized_graphs(model: ir.Model) -> Mapping[str, ir.Model]:
    """The static graphs that `BindSizes` has made of `model`, by the names of their specializations."""
    graphs: Mapping[str, ir.Model] = model.meta[_GRAPHS]
    return graphs


class PerGraph(GraphPass):
    """Runs a pass on each of the static graphs that `BindSizes` has made."""

    def __init__(self, single: Transform) -> None:
        self.name = single.name
        self.version = single.version
        self._single = single

    def run(self, model: ir.Model) -> bool:
        """Says whether a graph was changed."""
        results = [self._single(graph) for graph in specialized_graphs(model).values()]
        return any(has_changed(result) for result in results)
