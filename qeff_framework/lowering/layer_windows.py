"""Cutting a model between its layers, for compilers that cannot take all of it at once.

Every window is a portable graph of its own, which is lowered and compiled like any other. What a window can compute from the
inputs of a step (masks, rotary tables) is computed in each window that reads it. What depends on earlier layers, usually the
hidden states alone, is an output of the window that computes it and an input of those that read it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
import onnx_ir as ir

from qeff_framework.contracts import ExportedModel, StateSpec, TensorSpec
from qeff_framework.dialect.names import DOMAIN, Op
from qeff_framework.errors import CompileError
from qeff_framework.lowering.values import has_subgraph, subgraphs

#: Names of what one window hands on to later ones: this and a number.
CARRIED = "carried_"
#: The first number in the name of a weight is that of its layer, what stands in front the list: ``model.layers`` and ``3`` of
#: ``model.layers.3.mlp.experts.5.w1``.
_LAYER = re.compile(r"^(.+?)\.(\d+)\.")
_TOKENS = "input_ids"
_UPDATES = (Op.KV_UPDATE, Op.KV_UPDATE_CB)
#: Which input of an update holds the new tokens of a cache.
_NEW = 1
#: Most bytes of tables that every window holds for itself, rather than what is looked up in them being handed on.
_MAX_TABLE_BYTES = 64 * 2**20
#: Symbols of dimensions that grow with the context.
_CONTEXTS = ("ctx_len", "comp_ctx_lengths")


@dataclass(frozen=True, kw_only=True)
class LayerWindow:
    """Adjacent layers of a model; the first window has what comes before the layers, the last one what follows."""

    #: Numbers of the first and the last layer, as in the names of their weights.
    first: int
    last: int
    model: ir.Model
    #: Host inputs of the model in its order, what other windows hand on, and states.
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...]

    @property
    def name(self) -> str:
        """``layers_0_3``."""
        return f"layers_{self.first}_{self.last}"

    def exported(self, whole: ExportedModel) -> ExportedModel:
        """The description of this part of the export `whole`."""
        return replace(whole, inputs=self.inputs, outputs=self.outputs, states=self.states)


def layer_windows(
    model: ir.Model, exported: ExportedModel, num_layers: int, *, sizes: Mapping[str, int] | None = None
) -> list[LayerWindow]:
    """Cuts a portable graph into windows of `num_layers` layers, in the order in which a step runs them.

    The layers are the longest list of modules that the weights' names tell of. A cache that layers of several windows read is a
    state of each of them: the new keys and values of a step are handed on, not the cache.

    Args:
        model: the graph; it is not changed, and the windows share its weights.
        exported: its description.
        num_layers: of each window but the last, which has what is left.
        sizes: dimensions that are the same in every step, for windows of which no input has them.

    Returns:
        One window, the whole model, where it has at most `num_layers` layers.

    Raises:
        ValueError: `num_layers` is less than 1.
        CompileError: the model has no list of layers, or something that grows with the context would have to be handed on.
    """
    if num_layers < 1:
        raise ValueError(f"num_layers={num_layers} must be at least 1")
    cut = _Cut(model, exported, num_layers)
    return cut.windows(dict(sizes or {}))


class _Kind(Enum):
    """How a value comes into a window that reads it."""

    #: Weights, and what is made of them alone.
    CONSTANT = 0
    #: Computed in every window that reads it: sizes, and what depends on inputs of the host.
    HOST = 1
    #: Made of a cache that every window which reads it has for itself.
    CACHE = 2
    #: Computed in one window.
    PLACED = 3


@dataclass
class _Part:
    """What a window consists of while it is collected."""

    nodes: set[ir.Node] = field(default_factory=set)
    initializers: dict[ir.Value, None] = field(default_factory=dict)
    #: Inputs of the graph, and values of earlier windows.
    inputs: set[ir.Value] = field(default_factory=set)
    states: set[str] = field(default_factory=set)
    #: Results that later windows read.
    handed_on: dict[ir.Value, None] = field(default_factory=dict)
    outputs: dict[ir.Value, None] = field(default_factory=dict)
    sizes: set[ir.Node] = field(default_factory=set)


class _Cut:
    def __init__(self, model: ir.Model, exported: ExportedModel, num_layers: int) -> None:
        self._model, self._exported = model, exported
        graph = model.graph
        self._nodes = list(graph)
        self._reads = {node: [*_reads(node)] for node in self._nodes}
        self._states = {state.input: state for state in exported.states}
        self._outputs = {str(value.name): value for value in graph.outputs}
        self._state_inputs = {value: str(value.name) for value in graph.inputs if value.name in self._states}
        self._layer_of = _layers(graph, model_name=str(exported.metadata.get("model_name", "the model")))
        known = sorted(set(self._layer_of.values()))
        self._spans = [known[start : start + num_layers] for start in range(0, len(known), num_layers)]
        self._window_of_layer = {layer: number for number, span in enumerate(self._spans) for layer in span}
        #: Of values; a value that is missing is an input of the host or a weight.
        self._kinds: dict[ir.Value, _Kind] = {}
        #: Caches that each window may have for itself.
        self._own_caches: set[str] = set()
        self._classify()
        self._earliest = self._earliest_windows()
        self._window = self._sunk()

    # --- which values are computed where ------------------------------------------------------------------------------

    def _kind(self, value: ir.Value) -> _Kind:
        if value in self._kinds:
            return self._kinds[value]
        if value.is_initializer():
            return _Kind.CONSTANT
        name = self._state_inputs.get(value)
        if name is None:
            return _Kind.HOST
        return _Kind.CACHE if name in self._own_caches else _Kind.PLACED

    def _classify(self) -> None:
        #: Values that depend on which tokens a step reads.
        content = {value for value in self._model.graph.inputs if value.name == _TOKENS}
        table_bytes: dict[ir.Value, int] = {}
        # Twice: which caches a window may have for itself is known once positions are known to depend on the host alone.
        for _ in range(2):
            for node in self._nodes:
                kind, size = self._kind_of(node, content, table_bytes)
                self._kinds.update(dict.fromkeys(node.outputs, kind))
                table_bytes.update(dict.fromkeys(node.outputs, size))
                if any(value in content for value in self._reads[node]) and not _is_size(node):
                    content.update(node.outputs)
            self._own_caches = {name for name in self._states if self._is_own_cache(name)}

    def _kind_of(self, node: ir.Node, content: set[ir.Value], table_bytes: Mapping[ir.Value, int]) -> tuple[_Kind, int]:
        """How the results of `node` come into a window, and the bytes of the weights that they are made of."""
        if _is_size(node):
            return _Kind.HOST, 0
        read = self._reads[node]
        kinds = {self._kind(value) for value in read}
        size = sum(table_bytes.get(value, _weight_bytes(value)) for value in read)
        if kinds <= {_Kind.CONSTANT}:
            return _Kind.CONSTANT, size
        if kinds <= {_Kind.CONSTANT, _Kind.HOST}:
            looks_up = any(value in content for value in read) and any(self._is_matrix(value) for value in read)
            return (_Kind.PLACED if looks_up or size > _MAX_TABLE_BYTES else _Kind.HOST), size
        if _Kind.PLACED not in kinds:
            return _Kind.CACHE, size
        if _is_update(node) and self._kind_of_input(node, 0) is _Kind.CACHE:
            others = {
                self._kind(value) for place, value in enumerate(node.inputs) if value is not None and place != _NEW
            }
            if _Kind.PLACED not in others:
                return _Kind.CACHE, size
        return _Kind.PLACED, size

    def _kind_of_input(self, node: ir.Node, place: int) -> _Kind | None:
        value = node.inputs[place]
        return None if value is None else self._kind(value)

    def _is_matrix(self, value: ir.Value) -> bool:
        """Whether a value is a table of numbers with a row for each token, or a matrix of a product."""
        is_float = value.dtype is not None and value.dtype.is_floating_point()
        return (
            self._kind(value) is _Kind.CONSTANT and (is_float or value.dtype == ir.DataType.UINT8) and _rank(value) > 1
        )

    def _is_own_cache(self, name: str) -> bool:
        """Whether the state is a cache whose next value follows from itself, positions, and the new tokens of a step."""
        before = self._input(name)
        after = self._outputs[self._states[name].output]
        writer = after.producer()
        if writer is None or (writer.op_type == "Identity" and writer.inputs[0] is before):
            return True
        if not _is_update(writer) or writer.inputs[0] is not before:
            return False
        others = [value for value in writer.inputs[_NEW + 1 :] if value is not None]
        return all(self._kind(value) in (_Kind.CONSTANT, _Kind.HOST) for value in others)

    def _input(self, name: str) -> ir.Value:
        return next(value for value in self._state_inputs if value.name == name)

    # --- which window computes what -----------------------------------------------------------------------------------

    def _earliest_windows(self) -> dict[ir.Value, int]:
        """The first window in which a value can be computed: that of its layer, or of the last layer that it depends on."""
        together = [*self._state_groups().values()]
        last = len(self._spans) - 1
        # What a sampler knows of earlier tokens depends on no layer, and is read behind the last one.
        lowest = {
            node: last
            for name, group in self._state_groups().items()
            if self._states[name].kind == "sampler"
            for node in group
        }
        while True:
            found: dict[ir.Value, int] = {}
            for node in self._nodes:
                window = lowest.get(node, 0)
                if not _is_size(node):
                    for value in self._reads[node]:
                        own = self._layer_of.get(value)
                        in_layer = 0 if own is None else self._window_of_layer[own]
                        # A weight of a layer that is made ready for use stays one.
                        window = max(window, found.get(value, 0), in_layer)
                found.update(dict.fromkeys(node.outputs, window))
            before = dict(lowest)
            for group in together:
                latest = max((found[node.outputs[0]] for node in group), default=0)
                lowest.update(dict.fromkeys(group, latest))
            if lowest == before:
                return found

    def _state_groups(self) -> dict[str, set[ir.Node]]:
        """Nodes that must be in one window: those that read or write a state which only one window can have, by its name."""
        groups = {}
        for value, name in self._state_inputs.items():
            if name in self._own_caches:
                continue
            group = {node for node in self._nodes if value in self._reads[node] and not _is_size(node)}
            writer = self._outputs[self._states[name].output].producer()
            groups[name] = group | ({writer} if writer is not None else set())
        return groups

    def _sunk(self) -> dict[ir.Value, int]:
        """The window of every value: the earliest one, or that of its readers where that hands on no more."""
        pinned = {node for group in self._state_groups().values() for node in group}
        window = dict(self._earliest)
        readers: dict[ir.Value, list[ir.Node]] = {}
        for node in self._nodes:
            if not _is_size(node):
                for value in self._reads[node]:
                    readers.setdefault(value, []).append(node)
        for node in reversed(self._nodes):
            if node in pinned or self._kinds[node.outputs[0]] is not _Kind.PLACED:
                continue
            users = [user for value in node.outputs for user in readers.get(value, ())]
            given = dict.fromkeys(value for value in self._reads[node] if self._kind(value) is _Kind.PLACED)
            is_free = (
                users
                and len(given) <= 1
                and all(_has_plain_sizes(value) for value in given)
                and not any(value in self._layer_of or self._kind(value) is _Kind.CACHE for value in self._reads[node])
                and not any(value.is_graph_output() for value in node.outputs)
                and all(self._kinds[user.outputs[0]] is _Kind.PLACED for user in users)
            )
            if is_free:
                first = min(window[user.outputs[0]] for user in users)
                window.update(dict.fromkeys(node.outputs, max(first, window[node.outputs[0]])))
        return window

    # --- the windows --------------------------------------------------------------------------------------------------

    def windows(self, sizes: dict[str, int]) -> list[LayerWindow]:
        parts = [_Part() for _ in self._spans]
        claimed: set[str] = set()
        states_of = {self._outputs[state.output]: state.input for state in self._exported.states}
        last = len(parts) - 1
        for value in self._model.graph.outputs:
            if value not in states_of:
                is_placed = self._kind(value) is _Kind.PLACED
                parts[self._window[value] if is_placed else last].outputs[value] = None
        for number in range(last, -1, -1):
            part = parts[number]
            self._collect(parts, number, [*part.outputs, *part.handed_on])
            for value, name in states_of.items():
                is_cache = name in self._own_caches
                home = (self._earliest if is_cache else self._window).get(value, 0)
                if home == number and name not in claimed | part.states:
                    self._collect(parts, number, [value])
                    part.states.add(name)
                    part.inputs.add(self._input(name))
            claimed |= part.states
        order = {value: place for place, node in enumerate(self._nodes) for value in node.outputs}
        handed_on = sorted({value for part in parts for value in part.handed_on}, key=order.__getitem__)
        names = {value: f"{CARRIED}{number}" for number, value in enumerate(handed_on)}
        # Layers of which nothing is computed anew, such as those that share all their weights, make no window.
        filled = [(part, span) for part, span in zip(parts, self._spans, strict=True) if part.nodes]
        return [self._built(part, span, names, sizes) for part, span in filled]

    def _collect(self, parts: Sequence[_Part], number: int, wanted: Iterable[ir.Value]) -> None:
        """Adds to a window what the values `wanted` are computed from; what comes from earlier windows is asked of these."""
        part, pending, seen = parts[number], [*wanted], set[ir.Value]()
        while pending:
            value = pending.pop()
            if value in seen:
                continue
            seen.add(value)
            node = value.producer()
            if value.is_initializer():
                part.initializers[value] = None
            elif node is None:
                part.inputs.add(value)
                name = self._state_inputs.get(value)
                if name is not None and name not in part.states:
                    part.states.add(name)
                    pending.append(self._outputs[self._states[name].output])
            elif self._kinds[value] is _Kind.PLACED and self._window[value] != number:
                part.inputs.add(value)
                parts[self._window[value]].handed_on[value] = None
            elif _is_size(node):
                part.sizes.add(node)
            elif node not in part.nodes:
                part.nodes.add(node)
                pending.extend(self._reads[node])

    def _built(
        self, part: _Part, span: Sequence[int], names: Mapping[ir.Value, str], sizes: Mapping[str, int]
    ) -> LayerWindow:
        graph = self._model.graph
        available = part.inputs | {value for node in part.nodes for value in node.outputs}
        local = {node for node in part.sizes if node.inputs[0] in available}
        foreign = [node for node in self._nodes if node in part.sizes - local]
        part.inputs |= self._inputs_of_sizes(part, foreign, sizes)
        carried_in = [value for value in names if value in part.inputs]
        given = [value for value in graph.inputs if value in part.inputs]
        inputs = [
            *(value for value in given if value not in self._state_inputs),
            *carried_in,
            *(value for value in given if value in self._state_inputs),
        ]
        states = [state for state in self._exported.states if state.input in part.states]
        outputs = [
            *(value for value in graph.outputs if value in part.outputs),
            *(value for value in names if value in part.handed_on and value not in part.outputs),
            *(self._outputs[state.output] for state in states),
        ]
        copy = ir.GraphView(
            [*inputs, *(node.outputs[0] for node in foreign)],
            outputs,
            nodes=[node for node in self._nodes if node in part.nodes or node in local],
            initializers=tuple(part.initializers),
            opset_imports=graph.opset_imports,
            name=f"{graph.name}_layers_{span[0]}_{span[-1]}",
            metadata_props=graph.metadata_props,
        ).clone()
        model = ir.Model(
            copy,
            ir_version=self._model.ir_version,
            producer_name=self._model.producer_name,
            producer_version=self._model.producer_version,
            functions=[function.clone() for function in self._model.functions.values()],
            metadata_props=dict(self._model.metadata_props),
        )
        known = {str(value.name): spec for value, spec in self._declared()}
        for value, new in zip(inputs, copy.inputs, strict=False):
            new.name = names.get(value, value.name)
        for value, new in zip(outputs, copy.outputs, strict=True):
            new.name = value.name if value in part.outputs else names.get(value, value.name)
        _compute_sizes(copy, foreign, len(inputs), sizes)
        return LayerWindow(
            first=span[0],
            last=span[-1],
            model=model,
            inputs=tuple(known.get(str(value.name)) or _carried_spec(value, names[value]) for value in inputs),
            outputs=tuple(known.get(str(value.name)) or _carried_spec(value, names[value]) for value in outputs),
            states=tuple(states),
        )

    def _inputs_of_sizes(self, part: _Part, nodes: Sequence[ir.Node], sizes: Mapping[str, int]) -> set[ir.Value]:
        """Further inputs of the host, for sizes that the window reads and that no input of its own has."""
        known = {_told(size) for value in part.inputs for size in value.shape or ()} | sizes.keys()
        found: dict[int | str | None, ir.Value] = {}
        given = [value for value in self._model.graph.inputs if value not in self._state_inputs]
        for symbol in (size for node in nodes for size in _sizes_read(node) if isinstance(size, str)):
            source = next((value for value in given if symbol in map(_told, value.shape or ())), None)
            if symbol not in known and source is not None:
                found.setdefault(symbol, source)
        return {*found.values()}

    def _declared(self) -> Iterator[tuple[ir.Value, TensorSpec]]:
        graph = self._model.graph
        specs = {spec.name: spec for spec in (*self._exported.inputs, *self._exported.outputs)}
        for value in (*graph.inputs, *graph.outputs):
            yield value, specs[str(value.name)]


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, in its subgraphs as well."""
    yield from (value for value in node.inputs if value is not None)
    if has_subgraph(node):
        for graph in subgraphs(node):
            for inner in graph.all_nodes():
                yield from (value for value in inner.inputs if value is not None and value.graph is node.graph)


def _is_update(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type in _UPDATES


def _is_size(node: ir.Node) -> bool:
    """Whether a node reads sizes alone, which have names or numbers."""
    if node.domain or node.op_type != "Shape":
        return False
    value = node.inputs[0]
    return value is not None and value.shape is not None and all(_told(size) is not None for size in value.shape)


def _sizes_read(node: ir.Node) -> list[int | str | None]:
    """Of a ``Shape`` node: the sizes that it reads, as numbers or names."""
    value = node.inputs[0]
    shape = [] if value is None or value.shape is None else [*value.shape]
    start = node.attributes["start"].as_int() if "start" in node.attributes else 0
    end = node.attributes["end"].as_int() if "end" in node.attributes else len(shape)
    return [_told(size) for size in shape[start:end]]


def _told(size: object) -> int | str | None:
    found = size if isinstance(size, int) else getattr(size, "value", None)
    return found if isinstance(found, (int, str)) else None


def _has_plain_sizes(value: ir.Value) -> bool:
    """Whether each size is a number or the name of a dimension, not a product of some."""
    told = [None] if value.shape is None else [_told(size) for size in value.shape]
    return all(isinstance(size, int) or (isinstance(size, str) and size.isidentifier()) for size in told)


def _rank(value: ir.Value) -> int:
    return 0 if value.shape is None else len(value.shape)


def _weight_bytes(value: ir.Value) -> int:
    tensor = value.const_value if value.is_initializer() else None
    return 0 if tensor is None else int(tensor.nbytes)


def _layers(graph: ir.Graph, *, model_name: str) -> dict[ir.Value, int]:
    """The number of the layer that a weight belongs to, for those of the list that has most weights.

    A weight with several readers may stand for equal ones of several layers, so that its name tells nothing.
    """
    found = {
        value: (match[1], int(match[2]))
        for name, value in graph.initializers.items()
        if (match := _LAYER.match(name)) is not None and len(value.uses()) == 1
    }
    if not found:
        raise CompileError(
            f"num_layers_per_program: the graph of {model_name} has no layers to cut between: no weight belongs to a list of "
            "modules; leave num_layers_per_program out"
        )
    counted = Counter(where for where, _ in found.values())
    chosen = max(counted, key=lambda where: counted[where])
    return {value: number for value, (where, number) in found.items() if where == chosen}


def _carried_spec(value: ir.Value, name: str) -> TensorSpec:
    shape = None if value.shape is None else [_told(size) for size in value.shape]
    if value.dtype is None or shape is None or not _has_plain_sizes(value):
        raise CompileError(
            f"num_layers_per_program: the sizes of {value.name}, which a later program reads, are not known: {value.shape}; "
            "leave num_layers_per_program out"
        )
    if any(size in _CONTEXTS for size in shape):
        raise CompileError(
            f"num_layers_per_program: {value.name} {value.shape} would have to be handed on in each step, and grows with the "
            "context; choose another number of layers, or leave num_layers_per_program out"
        )
    return TensorSpec(
        name=name, dtype=value.dtype.numpy().name, shape=tuple(size for size in shape if size is not None)
    )


def _compute_sizes(graph: ir.Graph, foreign: Sequence[ir.Node], given: int, sizes: Mapping[str, int]) -> None:
    """Reads sizes off the window's own inputs, where the graph reads them off values that the window has not."""
    stubs = graph.inputs[given:]
    del graph.inputs[given:]
    place: Callable[[Sequence[ir.Node]], None] = (
        (lambda nodes: graph.insert_before(graph[0], nodes)) if len(graph) else graph.extend
    )
    for stub, node in zip(stubs, foreign, strict=True):
        parts = [_size(graph, size, sizes, str(stub.name)) for size in _sizes_read(node)]
        made = ir.Node("", "Concat", [part.outputs[0] for part in parts], [ir.AttrInt64("axis", 0)], num_outputs=1)
        result = made.outputs[0]
        result.type, result.shape = stub.type, stub.shape
        place([*parts, made])
        stub.replace_all_uses_with(result)
        result.name = stub.name


def _size(graph: ir.Graph, size: int | str | None, sizes: Mapping[str, int], name: str) -> ir.Node:
    """A node whose result is one size as a vector."""
    for value in graph.inputs:
        for axis, found in enumerate(value.shape or ()):
            if isinstance(size, str) and _told(found) == size:
                node = ir.node("Shape", [value], {"start": axis, "end": axis + 1})
                node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1])
                return node
    number = sizes.get(size) if isinstance(size, str) else size
    if number is None:
        raise CompileError(
            f"num_layers_per_program: a program of some of the layers has no input of which {size} could be read ({name}); "
            "choose another number of layers, or leave num_layers_per_program out"
        )
    return ir.node("Constant", [], {"value": ir.tensor(np.array([number], np.int64))})
