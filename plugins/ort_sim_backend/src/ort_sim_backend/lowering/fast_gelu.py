"""GELU becomes one kernel, Gelu or in its tanh form FastGelu, whatever order its factors have.

ONNX Runtime's own fusion knows some ways to write it. Here a formula is tried: it is taken for what it computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ort_sim_backend.lowering.kernels import CONTRIB
from qeff_framework.lowering import Computation, GraphEditor, GraphPass

_OPS = ("Add", "Div", "Erf", "Mul", "Pow", "Sub", "Tanh")
#: Nodes from the bent curve to the result.
_MOST_STEPS = 4
#: Error that rounding in float32 explains.
_TOLERANCE = 1e-5


class FastGelu(GraphPass):
    """Lowers each ``x * (1 + erf(x / sqrt(2))) / 2`` of float32, and the form with tanh instead."""

    name = "FastGelu"
    version = "2"

    def run(self, model: ir.Model) -> bool:
        """Says whether one was found."""
        found = False
        for node in [node for node in model.graph.all_nodes() if not node.domain and node.op_type in _KERNELS]:
            kernel, formula = _KERNELS[node.op_type]
            for result in _results(node):
                source = _source(result, formula)
                if source is not None:
                    edit = GraphEditor(model, result)
                    edit.replace(result, edit.op(kernel, source, domain=CONTRIB))
                    found = True
                    break
        return found


def _by_tangent(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


def _by_error_function(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([0.5 * each * (1 + math.erf(each / math.sqrt(2))) for each in x.tolist()])


#: By the op that bends the curve, the kernel and what it computes.
_KERNELS: Mapping[str, tuple[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]]] = {
    "Erf": ("Gelu", _by_error_function),
    "Tanh": ("FastGelu", _by_tangent),
}


def _results(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes that a formula around `node` may end with, nearest first."""
    for _ in range(_MOST_STEPS):
        users = {use.node for use in node.outputs[0].uses()}
        if len(users) != 1 or node.outputs[0].is_graph_output():
            return
        (node,) = users
        if node.domain or node.op_type not in _OPS:
            return
        yield node


def _source(result: ir.Node, formula: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> ir.Value | None:
    """The x that `result` is the GELU of."""
    seen: dict[ir.Value, None] = {}
    pending = list(result.inputs)
    while pending:
        value = pending.pop(0)
        if value is None or value in seen or value.const_value is not None:
            continue
        seen[value] = None
        node = value.producer()
        if node is not None and not node.domain and node.op_type in _OPS:
            pending.extend(node.inputs)
    return next(
        (value for value in seen if value.dtype == ir.DataType.FLOAT and _computes(formula, result.outputs[0], value)),
        None,
    )


def _computes(wanted: Callable[[NDArray[np.float64]], NDArray[np.float64]], result: ir.Value, source: ir.Value) -> bool:
    formula = Computation.of(result, [source])
    if formula is None or any(node.op_type not in _OPS for node in formula.nodes):
        return False
    constants = [
        value for node in formula.nodes for value in node.inputs if value is not None and value.const_value is not None
    ]
    if any(value.const_value is not None and value.const_value.size != 1 for value in constants):
        return False
    points = np.linspace(-9, 9, 721, dtype=np.float32)
    computed = formula({str(source.name): points})
    return computed.shape == points.shape and bool(np.abs(computed - wanted(points.astype(float))).max() < _TOLERANCE)
