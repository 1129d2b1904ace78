"""Puts copies of the layer that was traced in the places of those that are alike, each with its own weights and states.

The traced layer stands between marks (`seam.layers`). What depends on its inputs or on its own weights is copied; all else that
it reads is the same for every layer of its kind. While the graph is simplified, the weights of such a layer are inputs: what
holds for their numbers need not hold for those of the others.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager

import onnx_ir
import torch

from qeff_framework.dialect.names import DOMAIN
from qeff_framework.export.page_release import MappedFiles
from qeff_framework.export.weights import ModuleTensor
from qeff_framework.lowering.layer_functions import list_layers
from qeff_framework.lowering.values import graph_of, has_subgraph
from qeff_framework.seam.layers import CALL_OP, INPUT_OP, OUTPUT_OP, Layer, LayerKinds, NotAlikeError
from qeff_framework.seam.states import StateId


@contextmanager
def hidden_weights(model: onnx_ir.Model, kinds: LayerKinds, names: Container[str] = ()) -> Iterator[None]:
    """While the body simplifies `model`, the weights of the layers that are copied, and those of `names`, have no numbers."""
    graph = model.graph
    prefixes = tuple(f"{kind[0].name}." for kind in kinds.kinds)
    hidden = [
        value for name, value in graph.initializers.items() if name in names or (prefixes and name.startswith(prefixes))
    ]
    contents = [(str(value.name), value, value.const_value) for value in hidden]
    for name, value, _ in contents:
        del graph.initializers[name]
        value.const_value = None
        graph.inputs.append(value)
    yield
    for name, value, content in contents:
        graph.inputs.remove(value)
        value.const_value = content
        value.name = name
        graph.register_initializer(value)


def stamp_layers(
    model: onnx_ir.Model, kinds: LayerKinds, weights: Mapping[str, torch.Tensor], states: Sequence[StateId]
) -> None:
    """Replaces each ``LayerCall`` of `model` by the nodes of its kind, and removes the marks.

    `states`: those of all layers in the order in which the graph is to have them; in `model`, the last inputs and outputs are
    those of them that belong to layers that were traced.

    Raises:
        NotAlikeError: the nodes of a layer cannot be told from those around it.
    """
    if not kinds.kinds:
        return
    nodes = [node for node in model.graph if node.domain == DOMAIN and node.op_type in (INPUT_OP, OUTPUT_OP, CALL_OP)]
    numbers = {layer.name: number for number, (layer, _) in enumerate(kinds.layers)}
    bodies = {kind[0].name: _Body(model, kind, numbers[kind[0].name], nodes, weights) for kind in kinds.kinds}
    files = MappedFiles()
    added: dict[StateId, tuple[onnx_ir.Value, onnx_ir.Value]] = {}
    for node in nodes:
        if node.op_type == CALL_OP:
            layer, first = kinds.layers[node.attributes["layer"].as_int()]
            added |= bodies[first.name].stamp(node, layer, weights, files)
    _order_states(model.graph, states, added)
    for body in bodies.values():
        body.take_name()
    list_layers(model, [layer.name for layer, _ in kinds.layers])
    for node in nodes:
        if node.op_type != CALL_OP:
            source = node.inputs[0]
            if source is None:
                raise NotAlikeError(f"a mark of {node.name} lost its value")
            node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
            graph_of(node).remove(node, safe=True)


def _order_states(
    graph: onnx_ir.Graph, states: Sequence[StateId], added: Mapping[StateId, tuple[onnx_ir.Value, onnx_ir.Value]]
) -> None:
    """Puts the states of stamped layers among those of traced ones."""
    known = len(states) - len(added)
    for place, values in enumerate((graph.inputs, graph.outputs)):
        traced = iter(values[len(values) - known :])
        ordered = [added[state][place] if state in added else next(traced) for state in states]
        values[len(values) - known :] = ordered


class _Body:
    """The nodes of a traced layer."""

    def __init__(
        self,
        model: onnx_ir.Model,
        kind: Sequence[Layer],
        number: int,
        marks: Sequence[onnx_ir.Node],
        weights: Mapping[str, torch.Tensor],
    ) -> None:
        layer = kind[0]
        self._model, self._layer = model, layer
        mine = [mark for mark in marks if mark.op_type != CALL_OP and mark.attributes["layer"].as_int() == number]
        self._inputs = {mark.outputs[0]: _place(mark) for mark in mine if mark.op_type == INPUT_OP}
        self._given = {_place(mark): mark.inputs[0] for mark in mine if mark.op_type == INPUT_OP}
        self._outputs = {_place(mark): mark.inputs[0] for mark in mine if mark.op_type == OUTPUT_OP}
        self._weights = {
            value: name.removeprefix(f"{layer.name}.")
            for name, value in model.graph.initializers.items()
            # The tracer names constants of the code after the module as well. They are the same in all layers of the kind.
            if name.startswith(f"{layer.name}.") and name in weights
        }
        #: Further tensors whose numbers are not the same in all layers of the kind.
        self._buffers = {
            value: own
            for own in layer.buffers
            if (value := model.graph.initializers.get(f"{layer.name}.{own}")) is not None
            and any(not _equal(other.buffers.get(own), layer.buffers[own]) for other in kind)
        }
        self._nodes = self._dependent(self._closure())

    def stamp(
        self, call: onnx_ir.Node, layer: Layer, weights: Mapping[str, torch.Tensor], files: MappedFiles
    ) -> dict[StateId, tuple[onnx_ir.Value, onnx_ir.Value]]:
        """Puts a copy in the place of `call`; returns what the states of `layer` were and what they have become."""
        before = [self._state(state, place) for place, state in enumerate(layer.states, len(call.inputs))]
        given = [*call.inputs, *before]
        values: dict[onnx_ir.Value | None, onnx_ir.Value | None] = {
            inner: given[place] for inner, place in self._inputs.items()
        }
        values.update({value: self._weight(value, layer, own, weights, files) for value, own in self._weights.items()})
        values.update({value: self._buffer(value, layer, own) for value, own in self._buffers.items()})
        copies = []
        for node in self._nodes:
            copy = onnx_ir.Node(
                node.domain,
                node.op_type,
                [values.get(value, value) for value in node.inputs],
                list(node.attributes.values()),
                overload=node.overload,
                num_outputs=len(node.outputs),
                name=f"{layer.name}/{node.name}",
            )
            for old, new in zip(node.outputs, copy.outputs, strict=True):
                new.name, new.type = f"{layer.name}/{old.name}", old.type
                new.shape = None if old.shape is None else old.shape.copy()
                values[old] = new
            copies.append(copy)
        self._model.graph.insert_before(call, copies)
        for place, result in enumerate(call.outputs):
            # One that nothing reads, such as the weights of an attention, has no mark any more behind the traced layer.
            if result.uses() or result.is_graph_output():
                result.replace_all_uses_with(self._result(place, values), replace_graph_outputs=True)
        after = [self._result(place, values) for place, _ in enumerate(layer.states, len(call.outputs))]
        self._model.graph.remove(call, safe=True)
        return dict(zip(layer.states, zip(before, after, strict=True), strict=True))

    def take_name(self) -> None:
        """Names the traced nodes after their layer, as the copies are."""
        for node in self._nodes:
            node.name = f"{self._layer.name}/{node.name}"
            for value in node.outputs:
                value.name = f"{self._layer.name}/{value.name}"

    def _state(self, state: StateId, place: int) -> onnx_ir.Value:
        """A new input like that of the traced layer's own state."""
        pattern = self._given.get(place)
        if pattern is None or pattern.shape is None:
            raise NotAlikeError(f"{self._layer.name} does not take the state {state.name}")
        return onnx_ir.Value(name=state.name, shape=pattern.shape.copy(), type=pattern.type)

    def _result(self, place: int, values: Mapping[onnx_ir.Value | None, onnx_ir.Value | None]) -> onnx_ir.Value:
        inner = self._outputs.get(place)
        made = values.get(inner, inner)
        if made is None:
            raise NotAlikeError(f"{self._layer.name} has no result {place}")
        return made

    def _weight(
        self,
        value: onnx_ir.Value,
        layer: Layer,
        own: str,
        weights: Mapping[str, torch.Tensor],
        files: MappedFiles,
    ) -> onnx_ir.Value:
        name = f"{layer.name}.{own}"
        tensor, known = weights.get(name), self._model.graph.initializers.get(name)
        if tensor is None or value.shape is None or value.dtype is None or tuple(tensor.shape) != tuple(value.shape):
            raise NotAlikeError(f"{name} is no weight like {value.name}")
        if known is not None:
            return known
        content = ModuleTensor(tensor, dtype=value.dtype, name=name, mapped_files=files)
        made = onnx_ir.Value(name=name, shape=content.shape, type=value.type, const_value=content)
        self._model.graph.register_initializer(made)
        return made

    def _buffer(self, value: onnx_ir.Value, layer: Layer, own: str) -> onnx_ir.Value:
        name, tensor = f"{layer.name}.{own}", layer.buffers.get(own)
        content = None if tensor is None else onnx_ir.tensor_adapters.TorchTensor(tensor, name=name)
        if content is None or content.dtype != value.dtype or content.shape != value.shape:
            raise NotAlikeError(f"{name} is no tensor like {value.name}")
        made = onnx_ir.Value(name=name, shape=content.shape, type=value.type, const_value=content)
        self._model.graph.register_initializer(made)
        return made

    def _closure(self) -> set[onnx_ir.Node]:
        """Everything that the results are computed from, up to the marks of the layer's inputs."""
        found: set[onnx_ir.Node] = set()
        waiting = [value for value in self._outputs.values() if value is not None and value not in self._inputs]
        while waiting:
            node = waiting.pop().producer()
            if node is None or node in found:
                continue
            found.add(node)
            waiting.extend(value for value in node.inputs if value is not None and value not in self._inputs)
        return found

    def _dependent(self, closure: set[onnx_ir.Node]) -> list[onnx_ir.Node]:
        """Those of the closure that depend on the layer's inputs or weights, in order."""
        known: set[onnx_ir.Value | None] = {*self._inputs, *self._weights, *self._buffers}
        nodes = []
        for node in self._model.graph:
            if node in closure and any(value in known for value in node.inputs):
                if has_subgraph(node) or node.op_type == CALL_OP:
                    raise NotAlikeError(f"{self._layer.name} holds {node.op_type}, which is not copied")
                nodes.append(node)
                known.update(node.outputs)
            elif node in closure and has_subgraph(node):
                raise NotAlikeError(f"{self._layer.name} reads the result of {node.op_type}")
        return nodes


def _equal(tensor: torch.Tensor | None, other: torch.Tensor) -> bool:
    return tensor is other or (tensor is not None and torch.equal(tensor, other))


def _place(mark: onnx_ir.Node) -> int:
    return mark.attributes["place"].as_int()
