"""Reading and writing graphs, shared by the passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike, NDArray

DIALECT = "qeff"
CONTRIB = "com.microsoft"
#: `accuracy_level` of ONNX Runtime's kernels for compressed weights that makes 8-bit numbers of the activations.
INT8_ACTIVATIONS = 4
_SHAPE_READERS = ("Shape", "Size")


def dialect_nodes(model: ir.Model, *op_types: str) -> list[ir.Node]:
    """The nodes of the main graph with one of these dialect ops, in graph order."""
    return [node for node in model.graph if node.domain == DIALECT and node.op_type in op_types]


def operand(node: ir.Node, number: int) -> ir.Value:
    """An input that the op cannot do without."""
    value = node.inputs[number] if number < len(node.inputs) else None
    if value is None:
        raise ValueError(f"node {node.name} of type {node.op_type} lacks its input number {number}")
    return value


def made_by(value: ir.Value, op_type: str) -> ir.Node | None:
    """The dialect node of this type that computes `value`, if one does."""
    node = value.producer()
    return node if node is not None and (node.domain, node.op_type) == (DIALECT, op_type) else None


def static_dim(value: ir.Value, axis: int) -> int | None:
    """Size of a dimension, `None` when it is symbolic or unknown."""
    if value.shape is None or len(value.shape) <= axis:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def number(node: ir.Node, attribute: str, default: float) -> float:
    """A numeric attribute."""
    found = node.attributes.get(attribute)
    return default if found is None else float(found.value)


def readers(value: ir.Value) -> set[ir.Node]:
    """The nodes that read the content of `value`; asking for its shape is not reading."""
    return {use.node for use in value.uses() if use.node.op_type not in _SHAPE_READERS}


def like(value: ir.Value) -> ir.Value:
    """A new value that takes the place of `value`: same name, type and shape."""
    return ir.Value(name=value.name, type=value.type, shape=value.shape)


def computed_constant(
    graph: ir.Graph, name: str, shape: Sequence[int], dtype: DTypeLike, content: Callable[[], NDArray[np.generic]]
) -> ir.Value:
    """A new initializer whose content is computed each time it is written, so that one at a time is in memory."""
    kind, sizes = ir.DataType.from_numpy(np.dtype(dtype)), ir.Shape(shape)
    lazy = ir.LazyTensor(lambda: ir.Tensor(content(), name=name), dtype=kind, shape=sizes, name=name)
    value = ir.Value(name=name, type=ir.TensorType(kind), shape=sizes, const_value=lazy)
    graph.register_initializer(value)
    return value


class Writer:
    """Writes nodes into the graph of `place`, in front of it."""

    def __init__(self, place: ir.Node) -> None:
        if not isinstance(place.graph, ir.Graph):
            raise TypeError(f"node {place.name} is not part of a graph")
        self._place = place
        self._graph = place.graph

    def op(self, op_type: str, *inputs: ir.Value, domain: str = "", **attributes: float | Sequence[int]) -> ir.Value:
        """A node with one output."""
        result = ir.Value()
        self.ops(op_type, inputs, [result], domain, attributes)
        return result

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[ir.Value],
        domain: str,
        attributes: Mapping[str, float | str | Sequence[int]],
    ) -> None:
        """A node that computes `outputs`."""
        converted = ir.convenience.convert_attributes(attributes)
        self._graph.insert_before(self._place, ir.Node(domain, op_type, inputs, converted, outputs=outputs))
        if domain:
            self._graph.opset_imports.setdefault(domain, 1)

    def vector(self, *values: int) -> ir.Value:
        """A constant int64 vector."""
        return self.op("Constant", value_ints=values)

    def scalar(self, value: int) -> ir.Value:
        """A constant int64 scalar."""
        return self.op("Constant", value_int=value)

    def dim(self, value: ir.Value, axis: int) -> ir.Value:
        """The size of one dimension as an int64 vector of one element."""
        return self.op("Shape", value, start=axis, end=axis + 1)

    def replace(self, node: ir.Node, outputs: Sequence[ir.Value]) -> None:
        """Lets everything that read the outputs of `node` read `outputs`, and removes `node`."""
        for before, after in zip(node.outputs, outputs, strict=True):
            before.replace_all_uses_with(after, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)
