"""The part of a graph that computes one value from a few inputs, evaluated on its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from qeff_framework.dialect.names import ONNX_OPSET
from qeff_framework.lowering.values import graph_of, has_subgraph

#: More nodes than a computation of positions or indices needs, and larger constants: what is beyond is something else.
_MAX_NODES, _MAX_ELEMENTS = 64, 1 << 20
#: Of the models that are written, which any runtime of opset 18 reads.
_IR_VERSION = 10


@dataclass(frozen=True)
class Computation:
    """Standard ops that compute `result` from `inputs` and constants, and from nothing else."""

    result: ir.Value
    #: Those of the given inputs that are read.
    inputs: tuple[ir.Value, ...]
    #: In graph order.
    nodes: tuple[ir.Node, ...]

    @classmethod
    def of(cls, result: ir.Value, inputs: Collection[ir.Value]) -> Computation | None:
        """What computes `result`; `None` when it reads none of `inputs`, or something else, or takes more than 64 nodes."""
        nodes: set[ir.Node] = set()
        read: set[ir.Value] = set()
        pending = [result]
        while pending:
            value = pending.pop()
            node = value.producer()
            if value in inputs:
                read.add(value)
            elif node is None:
                if value.const_value is None or value.const_value.size > _MAX_ELEMENTS:
                    return None
            elif node not in nodes:
                if node.domain or len(nodes) == _MAX_NODES or has_subgraph(node):
                    return None
                nodes.add(node)
                pending.extend(value for value in node.inputs if value is not None)
        if not read:
            return None
        ordered = () if not nodes else tuple(node for node in graph_of(next(iter(nodes))) if node in nodes)
        return cls(result, tuple(value for value in inputs if value in read), ordered)

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The result for these inputs, by name. Raises whatever an op raises for what it is given."""
        if not self.nodes:
            return feeds[str(self.result.name)]
        result: NDArray[Any] = self._evaluator.run(None, dict(feeds))[0]
        return result

    def as_model(self) -> ir.Model:
        """A model of its own, whose inputs and output have the names that they have here. Weights are not copied."""
        constants = [ir.val(name, const_value=ir.tensor(content)) for name, content in self._constants().items()]
        known = {str(value.name): value for value in constants}
        known |= {
            str(value.name): ir.Value(name=value.name, type=value.type, shape=value.shape) for value in self.inputs
        }
        nodes = []
        for node in self.nodes:
            outputs = [ir.Value(name=value.name, type=value.type, shape=value.shape) for value in node.outputs]
            inputs = [None if value is None else known[str(value.name)] for value in node.inputs]
            nodes.append(ir.Node("", node.op_type, inputs, list(node.attributes.values()), outputs=outputs))
            known |= {str(value.name): value for value in outputs}
        opset = graph_of(self.nodes[0]).opset_imports.get("", ONNX_OPSET)
        graph = ir.Graph(
            [known[str(value.name)] for value in self.inputs],
            [known[str(self.result.name)]],
            nodes=nodes,
            initializers=constants,
            opset_imports={"": opset},
            name="computation",
        )
        return ir.Model(graph, ir_version=_IR_VERSION)

    @cached_property
    def _evaluator(self) -> Any:
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(ir.to_proto(self.as_model()), new_ops=[_gather_elements()])

    def _constants(self) -> dict[str, NDArray[Any]]:
        return {
            str(value.name): value.const_value.numpy()
            for node in self.nodes
            for value in node.inputs
            if value is not None and value.producer() is None and value.const_value is not None
        }


@cache
def _gather_elements() -> Any:
    """``GatherElements`` of tables of any length.

    ONNX's own evaluates it by `numpy.choose`, which takes no more than 64 rows, and wraps indices outside the table.
    """
    import numpy as np
    from onnx.reference.op_run import OpRun

    class GatherElements(OpRun):  # type: ignore[misc]  # ONNX has no types
        def _run(self, data: Any, indices: Any, axis: int = 0) -> tuple[Any]:
            return (np.take_along_axis(data, indices, axis),)

    return GatherElements
