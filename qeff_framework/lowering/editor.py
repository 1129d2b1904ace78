"""Writing into a graph: new nodes and constants in front of a node, and putting them in its place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qeff_framework.lowering.functions import attach_function
from qeff_framework.lowering.inference import infer_outputs
from qeff_framework.lowering.values import graph_of, static_shape

#: Most elements of a constant that is cast while the graph is written.
_MAX_CAST = 1 << 16
#: Version of the domains of kernels and functions.
_DOMAIN_VERSION = 1


class GraphEditor:
    """Writes nodes into the graph of `place`, in front of it. `place` may be in a subgraph of `model`.

    New values get the type and shape that follow from their inputs. Constants become initializers of the main graph; equal ones
    are one. `shared` holds what several editors of one pass share, see `once`.
    """

    def __init__(self, model: ir.Model, place: ir.Node, shared: dict[Hashable, Any] | None = None) -> None:
        self.model = model
        self._place = place
        self._graph = graph_of(place)
        self._shared = {} if shared is None else shared
        #: Nodes written so far, in order.
        self.written: dict[ir.Node, None] = {}

    # `Any`: whatever `onnx_ir.convenience.convert_attributes` takes.
    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """The output of a new node with one output."""
        return self.ops(op_type, inputs, 1, domain=domain, **attributes)[0]

    def ops(
        self, op_type: str, inputs: Sequence[ir.Value | None], outputs: int, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """The outputs of a new node."""
        converted = ir.convenience.convert_attributes(attributes)
        node = ir.Node(domain, op_type, inputs, converted, num_outputs=outputs)
        self._graph.insert_before(self._place, node)
        if self._graph is not self.model.graph:
            # The names that a subgraph gives may be taken in the graphs around it.
            for value in node.outputs:
                value.name = f"{self._place.outputs[0].name}/{value.name}"
        self.model.opset_imports.setdefault(domain, _DOMAIN_VERSION)
        infer_outputs(node, self.model.opset_imports)
        self.written[node] = None
        return node.outputs

    def adopt(self, nodes: Sequence[ir.Node]) -> None:
        """Puts nodes that are in no graph here, such as those of the body of a loop."""
        self._graph.insert_before(self._place, nodes)
        self.written.update(dict.fromkeys(nodes))

    def call(
        self, function: str, domain: str, *inputs: ir.Value | None, like: ir.Value | None = None, **attributes: Any
    ) -> ir.Value:
        """The output of a call of a function, given in text form, see `attach_function`. `like` has its type and shape."""
        name = attach_function(self.model, domain, function)
        result = self.op(name, *inputs, domain=domain, **attributes)
        if like is not None:
            result.type, result.shape = like.type, like.shape
        return result

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for all nodes of this pass and graph that ask for the same `key`.

        Nodes are lowered in graph order, so what the first one writes is in front of the others.
        """
        known = (self._graph, key)
        if known not in self._shared:
            self._shared[known] = make()
        return self._shared[known]

    def array(self, content: NDArray[Any]) -> ir.Value:
        """A constant."""
        digest = hashlib.sha256(content.tobytes()).hexdigest()[:16]
        sizes = "x".join(map(str, content.shape)) or "scalar"
        name = f"constant_{content.dtype}_{sizes}_{digest}"
        known = self.model.graph.initializers.get(name)
        if known is not None:
            return known
        return add_initializer(self.model, name, ir.Tensor(content, name=name))

    def int64s(self, *values: int) -> ir.Value:
        """A constant int64 vector."""
        return self.array(np.array(values, np.int64))

    def int64(self, value: int) -> ir.Value:
        """A constant int64 scalar."""
        return self.array(np.array(value, np.int64))

    def scalar_like(self, value: float, like: ir.Value) -> ir.Value:
        """A constant scalar of the type of `like`; of float32 when that is not known."""
        dtype = ir.DataType.FLOAT if like.dtype is None else like.dtype
        return self.array(np.array(value).astype(dtype.numpy()))

    def dim(self, value: ir.Value, axis: int) -> ir.Value:
        """The size of one axis as an int64 vector of one element."""
        return self.op("Shape", value, start=axis, end=axis + 1)

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` as `dtype`. A constant is cast here, unless it is large: weights are not read."""
        if value.dtype == dtype:
            return value
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None and tensor.size <= _MAX_CAST:
            return self.array(tensor.numpy().astype(dtype.numpy()))
        return self.op("Cast", value, to=dtype.value)

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """`value` with another shape; 0 keeps the size of an axis, -1 takes what is left."""
        return value if static_shape(value) == tuple(shape) else self.op("Reshape", value, self.int64s(*shape))

    def replace(self, node: ir.Node, *new: ir.Value) -> None:
        """Lets everything that reads an output of `node` read the value in `new` instead, and removes `node`.

        A value that was written by this editor takes over name, type and shape of the output.
        """
        names: dict[ir.Value, str | None] = {}
        for before, after in zip(node.outputs, new, strict=True):
            is_own = after.producer() in self.written and after not in names and not after.is_graph_output()
            if before.is_graph_output() and not is_own:
                # An output of the graph has a name of its own, and `after` has one already.
                after, is_own = self.op("Identity", after), True  # noqa: PLW2901
            before.replace_all_uses_with(after, replace_graph_outputs=True)
            if is_own:
                after.type = before.type or after.type
                after.shape = after.shape if before.shape is None else before.shape
                names[after] = before.name
        graph_of(node).remove(node, safe=True)
        for value, name in names.items():
            value.name = name


def add_initializer(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer of the main graph. A name that is taken gets a number. The content of `tensor` is not read."""
    unique, count = name, 0
    while unique in model.graph.initializers:
        count += 1
        unique = f"{name}_{count}"
    shape = ir.Shape(size if isinstance(size, int) else size.value for size in tensor.shape)
    value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    model.graph.register_initializer(value)
    return value
