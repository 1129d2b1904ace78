"""Reading and writing static graphs, shared by the passes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

DIALECT = "qeff"
#: RMSNormalization, which the compiler has a kernel for, exists from this opset on.
OPSET = 23
INT32 = ir.DataType.INT32.value
FLOAT = ir.DataType.FLOAT.value


def dialect_nodes(model: ir.Model, *op_types: str) -> list[ir.Node]:
    """The nodes of the main graph with one of these dialect ops, in graph order."""
    return [node for node in model.graph if node.domain == DIALECT and node.op_type in op_types]


def standard_nodes(model: ir.Model, *op_types: str) -> list[ir.Node]:
    """The nodes of the main graph with one of these standard ops, in graph order."""
    return [node for node in model.graph if not node.domain and node.op_type in op_types]


def operand(node: ir.Node, number: int) -> ir.Value:
    """An input that the op cannot do without."""
    value = node.inputs[number] if number < len(node.inputs) else None
    if value is None:
        raise ValueError(f"node {node.name} of type {node.op_type} lacks its input number {number}")
    return value


def sizes(value: ir.Value) -> tuple[int, ...] | None:
    """The static shape, `None` where it is not known."""
    if value.shape is None:
        return None
    dims = tuple(dim for dim in value.shape if isinstance(dim, int))
    return dims if len(dims) == len(value.shape) else None


def known_sizes(value: ir.Value) -> tuple[int, ...]:
    """The static shape of a value that has one in every graph with bound sizes."""
    found = sizes(value)
    if found is None:
        raise ValueError(f"the shape of {value.name} is not static")
    return found


def number(node: ir.Node, attribute: str, default: float = 0.0) -> float:
    """A numeric attribute."""
    found = node.attributes.get(attribute)
    return default if found is None else float(found.value)


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The content of an initializer or of a ``Constant`` node; `None` for everything else."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def is_weight(value: ir.Value | None) -> bool:
    """An initializer, whose content need not be read to know that."""
    return value is not None and value.producer() is None and value.const_value is not None


def identity(tensor: ir.TensorProtocol) -> object:
    """Equal for tensors with one content: of a weight that was written to a file each graph has a tensor of its own."""
    if isinstance(tensor, ir.ExternalTensor):
        return (tensor.path, tensor.offset)
    return id(tensor)


def only_reader(value: ir.Value) -> bool:
    """One node reads the value, and the caller does not see it."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that `node` is part of."""
    if not isinstance(node.graph, ir.Graph):
        raise TypeError(f"{node.op_type} is not part of a graph")
    return node.graph


def add_initializer(model: ir.Model, name: str, content: NDArray[np.generic]) -> ir.Value:
    """A new initializer. A name that is taken gets a number."""
    unique, count = name, 0
    while unique in model.graph.initializers:
        count += 1
        unique = f"{name}_{count}"
    tensor = ir.Tensor(content, name=unique)
    value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(content.shape), const_value=tensor)
    model.graph.register_initializer(value)
    return value


class Writer:
    """Writes nodes into the main graph, in front of `place`."""

    def __init__(self, model: ir.Model, place: ir.Node) -> None:
        self._model, self._place = model, place

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        shape: Sequence[int] | None = None,
        dtype: ir.DataType | None = ir.DataType.FLOAT,
        domain: str = "",
        **attributes: object,
    ) -> ir.Value:
        """A node with one output of this shape and dtype."""
        converted = ir.convenience.convert_attributes(attributes)
        node = ir.Node(domain, op_type, inputs, converted)
        graph_of(self._place).insert_before(self._place, node)
        result = node.outputs[0]
        if shape is not None:
            result.shape = ir.Shape(shape)
        if dtype is not None:
            result.type = ir.TensorType(dtype)
        return result

    def ints(self, *values: int) -> ir.Value:
        """An int64 vector."""
        return self.array(np.array(values, np.int64))

    def float(self, value: float) -> ir.Value:
        """A float32 scalar."""
        return self.array(np.array(value, np.float32))

    def array(self, content: NDArray[np.generic]) -> ir.Value:
        """A constant as an initializer; equal ones of a graph are one."""
        return shared_constant(self._model, content)

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """The same numbers in another shape."""
        if sizes(value) == tuple(shape):
            return value
        return self.op("Reshape", value, self.ints(*shape), shape=shape, dtype=value.dtype)

    def replace(self, node: ir.Node, new: ir.Value, output: int = 0) -> None:
        """Lets everything that read one output of `node` read `new`, which gets its name, and removes an unused `node`."""
        old = node.outputs[output]
        name, is_output = old.name, old.is_graph_output()
        new.type = old.type or new.type
        if old.shape is not None:
            new.shape = old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if all(not value.uses() and not value.is_graph_output() for value in node.outputs):
            graph_of(node).remove(node, safe=True)
        elif is_output:
            old.name = f"{name}_before"
        if is_output:
            new.name = name


def shared_constant(model: ir.Model, content: NDArray[np.generic]) -> ir.Value:
    """An initializer with this content; equal ones of a graph are one."""
    cache: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = model.meta.setdefault("qnn_constants", {})
    key = (content.dtype.str, content.shape, content.tobytes())
    found = cache.get(key)
    if found is None or str(found.name) not in model.graph.initializers:
        found = cache[key] = add_initializer(model, f"constant_{len(cache)}", content)
    return found
