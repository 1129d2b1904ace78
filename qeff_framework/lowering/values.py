"""Reading a graph: inputs, sizes and constants of nodes and values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_GRAPH_ATTRIBUTES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_SHAPE_READERS = ("Shape", "Size")


def nodes_of(model: ir.Model, *op_types: str, domain: str = "") -> list[ir.Node]:
    """The nodes of the main graph with one of these op types, in graph order. The default domain is that of standard ops."""
    return [node for node in model.graph if node.domain == domain and node.op_type in op_types]


def operand(node: ir.Node, number: int) -> ir.Value:
    """Input `number` of `node`. Raises `ValueError` when it was left out."""
    value = node.inputs[number] if number < len(node.inputs) else None
    if value is None:
        raise ValueError(f"node {node.name} of type {node.op_type} has no input {number}")
    return value


def made_by(value: ir.Value, op_type: str, domain: str = "") -> ir.Node | None:
    """The node that computes `value`, if it is of this type."""
    node = value.producer()
    return node if node is not None and (node.domain, node.op_type) == (domain, op_type) else None


def readers(value: ir.Value) -> set[ir.Node]:
    """The nodes that read the content of `value`. ``Shape`` and ``Size`` do not."""
    return {use.node for use in value.uses() if use.node.op_type not in _SHAPE_READERS}


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that `node` is part of. Raises `ValueError` when it was removed, or never added."""
    if node.graph is None:
        raise ValueError(f"node {node.name} of type {node.op_type} is in no graph")
    return node.graph


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs among the attributes of `node`: bodies of loops, branches of conditions."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def has_subgraph(node: ir.Node) -> bool:
    """Whether `node` is a loop or a condition."""
    return any(attribute.type in _GRAPH_ATTRIBUTES for attribute in node.attributes.values())


def static_dim(value: ir.Value, axis: int) -> int | None:
    """The size of one axis; `None` when it is symbolic or unknown."""
    if value.shape is None or len(value.shape) <= axis:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The shape; `None` unless every axis has a known size."""
    if value.shape is None:
        return None
    sizes = tuple(size for size in value.shape if isinstance(size, int))
    return sizes if len(sizes) == len(value.shape) else None


def require_shape(value: ir.Value) -> tuple[int, ...]:
    """The shape of a value of a graph with static shapes. Raises `ValueError` when an axis has no known size."""
    found = static_shape(value)
    if found is None:
        raise ValueError(f"the shape of {value.name} is not static: {value.shape}")
    return found


def same_dim(left: ir.Value, left_axis: int, right: ir.Value, right_axis: int) -> bool:
    """Whether two axes are known to be of one size: of the same number or of the same symbol."""
    sizes = []
    for value, axis in ((left, left_axis), (right, right_axis)):
        if value.shape is None or len(value.shape) <= axis:
            return False
        size = value.shape[axis]
        sizes.append(size if isinstance(size, int) else size.value)
    return sizes[0] is not None and sizes[0] == sizes[1]


def is_weight(value: ir.Value | None) -> bool:
    """Whether `value` is an initializer. Its content is not read."""
    return value is not None and value.producer() is None and value.const_value is not None


def constant_array(value: ir.Value | None) -> NDArray[Any] | None:
    """The content of an initializer or of a ``Constant`` node; `None` for every other value."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())
