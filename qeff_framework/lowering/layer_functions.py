"""A local function for each kind of layer, for compilers and readers that want a model's structure; and the way back.

The export names the nodes and values of a layer after it, ``model.layers.3/...``, and lists the layers in the model's metadata. A
pass that lowers a node keeps the names of its outputs, so that the layers can still be told apart in a lowered graph.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from qeff_framework.lowering.passes import GraphPass
from qeff_framework.lowering.values import has_subgraph

#: Domain of the functions.
LAYERS_DOMAIN = "qeff.layers"
#: Key of the model's metadata: a JSON list of the layers' names.
LAYERS_KEY = "qeff.layers"
#: Larger constants are inputs of a function even where all its calls would get the same one.
_MAX_CONSTANT_BYTES = 1024


def list_layers(model: ir.Model, layers: Sequence[str]) -> None:
    """Notes in the model's metadata which layers it has."""
    model.metadata_props[LAYERS_KEY] = json.dumps(list(layers))


class LayerFunctions(GraphPass):
    """Turns the layers of a kind into calls of one function, of the domain ``qeff.layers``. The call has the name of the layer.

    Layers are of one kind if their nodes are the same, attributes and wiring included. Weights, states and whatever else a layer
    reads are inputs of the function; small constants that all layers of a kind share stand in it. A layer that is alone of its
    kind, or holds a node with a graph of its own, stays as it is.
    """

    name = "LayerFunctions"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether a function was made."""
        layers = dict.fromkeys(json.loads(model.metadata_props.get(LAYERS_KEY, "[]")))
        kinds: dict[Any, list[_Group]] = {}
        for group in _groups(model.graph, layers):
            if group.is_callable():
                kinds.setdefault(group.form(), []).append(group)
        alike = [groups for groups in kinds.values() if len(groups) > 1]
        for number, groups in enumerate(alike):
            _outline(model, f"Layer{number}", groups)
        if alike:
            model.opset_imports[LAYERS_DOMAIN] = 1
            model.graph.sort()
            common_passes.RemoveUnusedNodesPass()(model)
        return bool(alike)


class InlineLayers(GraphPass):
    """Undoes `LayerFunctions`: the nodes of the functions take the places of their calls."""

    name = "InlineLayers"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether there were such functions."""
        known = [identifier for identifier in model.functions if identifier[0] == LAYERS_DOMAIN]
        if not known:
            return False
        common_passes.InlinePass(criteria=lambda function: function.domain == LAYERS_DOMAIN)(model)
        for identifier in known:
            model.functions.pop(identifier, None)
        model.opset_imports.pop(LAYERS_DOMAIN, None)
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common_passes.DeduplicateInitializersPass()(model)
        return True


@dataclass
class _Group:
    """The nodes of a layer."""

    layer: str
    nodes: list[ir.Node] = field(default_factory=list)

    def is_callable(self) -> bool:
        """Whether one node can take the place of all: nothing between them reads what they make and is read by them."""
        if not self.nodes or any(has_subgraph(node) for node in self.nodes):
            return False
        own, behind = set(self.nodes), set[ir.Node]()
        first, last = self.nodes[0], self.nodes[-1]
        graph = first.graph
        inside = False
        for node in graph or ():
            inside = inside or node is first
            if not inside:
                continue
            producers = {value.producer() for value in node.inputs if value is not None}
            if node in own:
                if producers & behind:
                    return False
            elif producers & own or producers & behind:
                behind.add(node)
            if node is last:
                break
        return True

    def inputs(self) -> list[ir.Value]:
        """What the nodes read of others, in the order in which they do."""
        own = {value for node in self.nodes for value in node.outputs}
        read = [value for node in self.nodes for value in node.inputs if value is not None and value not in own]
        return list(dict.fromkeys(read))

    def outputs(self) -> list[ir.Value]:
        """What others read of the nodes, and what the graph returns."""
        own = set(self.nodes)
        return [
            value
            for node in self.nodes
            for value in node.outputs
            if value.is_graph_output() or any(user not in own for user, _ in value.uses())
        ]

    def form(self) -> Any:
        """Equal for layers of one kind."""
        names: dict[ir.Value | None, Any] = {None: None}
        for number, value in enumerate(self.inputs()):
            names[value] = ("input", number, str(value.dtype), None if value.shape is None else len(value.shape))
        for number, node in enumerate(self.nodes):
            names.update({value: (number, place) for place, value in enumerate(node.outputs)})
        nodes = tuple(
            (
                node.op_identifier(),
                tuple(sorted((name, _told(attribute)) for name, attribute in node.attributes.items())),
                tuple(names[value] for value in node.inputs),
                len(node.outputs),
            )
            for node in self.nodes
        )
        return nodes, tuple(names[value] for value in self.outputs())


def _told(attribute: ir.Attr) -> str:
    value = attribute.value
    if isinstance(value, ir.TensorProtocol):
        return f"{value.dtype} {value.shape} {value.tobytes().hex()}"
    return f"{attribute.type} {value!r}"


def _groups(graph: ir.Graph, layers: Mapping[str, None]) -> list[_Group]:
    """The nodes of each layer.

    What a pass has written has no name, and belongs to the layer that alone reads it. What is made of weights alone, and what
    depends on no layer and is read in several, such as the tables of rotary embeddings, belongs to none.
    """
    owner: dict[ir.Node, str | None] = {}
    varying: set[ir.Node] = set()
    constant: set[ir.Node] = set()
    for node in graph:
        names = (str(name).partition("/")[0] for name in (node.name, *(value.name for value in node.outputs)))
        owner[node] = next((name for name in names if name in layers), None)
        if any(_varies(value, layers, varying) for value in node.inputs):
            varying.add(node)
        if all(value is None or _is_constant(value, constant) for value in node.inputs):
            constant.add(node)
    for node in reversed(list(graph)):
        readers = {owner.get(user) for value in node.outputs for user, _ in value.uses()}
        if node in constant:
            owner[node] = None
        elif owner[node] is None:
            owner[node] = next(iter(readers)) if len(readers) == 1 and node in varying else None
        elif node not in varying and readers != {owner[node]}:
            owner[node] = None
    groups = {layer: _Group(layer) for layer in layers}
    for node in graph:
        layer = owner[node]
        if layer is not None:
            groups[layer].nodes.append(node)
    return [group for group in groups.values() if group.nodes]


def _varies(value: ir.Value | None, layers: Mapping[str, None], varying: set[ir.Node]) -> bool:
    """Whether a value depends on what is a layer's own: on weights, on states, or on the result of another layer."""
    if value is None:
        return False
    producer = value.producer()
    if producer is not None:
        return producer in varying
    name = str(value.name)
    return name.startswith("past_") or any(name.startswith(f"{layer}.") for layer in _prefixes(name, layers))


def _is_constant(value: ir.Value, constant: set[ir.Node]) -> bool:
    producer = value.producer()
    return value.is_initializer() if producer is None else producer in constant


def _prefixes(name: str, layers: Mapping[str, None]) -> Iterator[str]:
    parts = name.split(".")
    for count in range(1, len(parts)):
        prefix = ".".join(parts[:count])
        if prefix in layers:
            yield prefix


def _outline(model: ir.Model, name: str, groups: Sequence[_Group]) -> None:
    given = [group.inputs() for group in groups]
    shared = [place for place, values in enumerate(zip(*given, strict=True)) if _is_shared_constant(values)]
    model.functions[LAYERS_DOMAIN, name, ""] = _function(model, name, groups[0], [given[0][place] for place in shared])
    for group in groups:
        # Read anew: calls have taken the places of layers in front of this one.
        inputs, results = group.inputs(), group.outputs()
        call = ir.Node(
            LAYERS_DOMAIN,
            name,
            [value for place, value in enumerate(inputs) if place not in shared],
            num_outputs=len(results),
            name=group.layer,
        )
        model.graph.insert_after(group.nodes[-1], call)
        for old, new in zip(results, call.outputs, strict=True):
            new.type, new.shape = old.type, old.shape
            label = old.name
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            old.name = None
            new.name = label
        model.graph.remove(group.nodes, safe=True)


def _is_shared_constant(values: Sequence[ir.Value]) -> bool:
    first = values[0]
    tensor = first.const_value
    return (
        tensor is not None
        and first.is_initializer()
        and all(value is first for value in values)
        and tensor.nbytes <= _MAX_CONSTANT_BYTES
    )


def _function(model: ir.Model, name: str, group: _Group, constants: Sequence[ir.Value]) -> ir.Function:
    """The nodes of a layer as a function of all that they read but `constants`."""
    values: dict[ir.Value | None, ir.Value | None] = {None: None}
    inputs, nodes = [], []
    for number, value in enumerate(group.inputs()):
        if value in constants:
            node = ir.node("Constant", [], {"value": value.const_value}, name=f"constant_{number}")
            node.outputs[0].name = f"constant_{number}"
            nodes.append(node)
            values[value] = node.outputs[0]
        else:
            inner = ir.Value(name=f"input_{number}", type=value.type)
            inputs.append(inner)
            values[value] = inner
    for number, node in enumerate(group.nodes):
        label = f"{node.op_type}_{number}"
        copy = ir.Node(
            node.domain,
            node.op_type,
            [values[value] for value in node.inputs],
            list(node.attributes.values()),
            overload=node.overload,
            num_outputs=len(node.outputs),
            name=label,
        )
        for place, (old, new) in enumerate(zip(node.outputs, copy.outputs, strict=True)):
            new.name, new.type = label if len(copy.outputs) == 1 else f"{label}_{place}", old.type
            values[old] = new
        nodes.append(copy)
    outputs = [made for old in group.outputs() if (made := values[old]) is not None]
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports=dict(model.opset_imports), name=name)
    return ir.Function(LAYERS_DOMAIN, name, graph=graph, attributes=[])
