"""Layers that are alike: one of each kind is traced, the others stand in the traced graph as one node each.

Which layers are alike is not told by their names or classes. A run of the graph on tensors without data records what each member
of a module list makes torch do: every operator with its arguments, where a tensor is named by where it comes from (an argument of
the layer, a parameter or a state of its own, an earlier result, or something from outside, which must be the very same tensor).
Layers with one record are alike: the trace runs the same code with the same sizes, so that their traces would be equal but for
the names of weights and states. Whatever a record cannot hold makes a layer a kind of its own.

`export.stamp` puts copies of the traced layer in the place of the nodes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, ParamSpec, Protocol, TypeVar

import torch
import torch.onnx.ops  # it registers what `torch.onnx.ops.symbolic` calls
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from qeff_framework.dialect.names import DOMAIN, VERSION
from qeff_framework.dialect.ops import emitting
from qeff_framework.errors import ExportError
from qeff_framework.seam.loops import replaced_forwards
from qeff_framework.seam.real_constants import constant_content
from qeff_framework.seam.states import StateId

#: Stand in the traced graph around the one layer of a kind, and for each of the others.
INPUT_OP, OUTPUT_OP, CALL_OP = "LayerInput", "LayerOutput", "LayerCall"

#: Constants of the code, which are compared by their numbers.
_LIFTING: Final = frozenset({torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default})
_MAX_CONSTANT: Final = 1024
#: Of these, equal values are alike in everything.
_EXACT: Final = frozenset({bool, int, str, torch.dtype, torch.device, torch.layout, torch.memory_format})
_HASHABLE: Final = _EXACT | {float}
#: Arguments of which a program says more than their values do: the number of a layer, for instance, may have no part in it.
_PLAIN: Final = (bool, int, float, str)

Forward = Callable[..., Any]
P = ParamSpec("P")
Result = TypeVar("Result")


class HoldsStates(Protocol):
    """A cache, or several."""

    @property
    def states(self) -> MutableMapping[StateId, torch.Tensor]:
        """The states as the running step has left them so far."""


class CountsMasks(Protocol):
    """A `MaskPlan`, or several."""

    @property
    def calls(self) -> int:
        """How often the model has asked for masks."""


class NotAlikeError(ExportError):
    """Two layers were taken for alike and are not: the model must be traced layer by layer."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer that is alike another one, or that others are alike."""

    #: Dotted name in the model.
    name: str
    #: The states that it writes, in order.
    states: tuple[StateId, ...]
    #: Tensors beside the weights that are its own, by their names in it: each layer of a kind has its own numbers.
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class LayerKinds:
    """Layers by kind; the first of a kind is traced."""

    kinds: tuple[tuple[Layer, ...], ...] = ()

    @property
    def layers(self) -> list[tuple[Layer, Layer]]:
        """Each layer with the one that is traced for it. The number of a layer is its place here."""
        return [(layer, kind[0]) for kind in self.kinds for layer in kind]

    @property
    def stamped_states(self) -> frozenset[StateId]:
        """The states of the layers that are not traced. The traced graph does not have them."""
        return frozenset(state for kind in self.kinds for layer in kind[1:] for state in layer.states)

    def without(self, names: Sequence[str]) -> LayerKinds:
        """Without the layers that are, hold, or lie in one of the modules `names`."""
        kept = (
            tuple(
                layer
                for layer in kind
                if not any(_lies_in(name, layer.name) or _lies_in(layer.name, name) for name in names)
            )
            for kind in self.kinds
        )
        return LayerKinds(kinds=tuple(kind for kind in kept if len(kind) > 1))


# --- the recording ----------------------------------------------------------------------------------------------------


class LayerRecorder:
    """Records what the layers of a model do in one run of the graph."""

    def __init__(self) -> None:
        self._records: dict[str, _Record | None] = {}
        #: In how many others a layer lies.
        self._depths: dict[str, int] = {}
        #: States that a layer reads and another one writes.
        self._shared: set[StateId] = set()

    @contextlib.contextmanager
    def watching(self, model: torch.nn.Module, cache: HoldsStates, masks: CountsMasks) -> Iterator[None]:
        """While the body runs `model` once."""
        run = _Run(model, _owners(model), cache, masks, _RecordingMode(), self._shared)

        def recording(name: str, forward: Forward) -> Forward:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                if name in self._records:
                    self._records[name] = None  # It runs more than once in a step.
                    return forward(*args, **kwargs)
                self._records[name] = None
                result, self._records[name] = _recorded(run, name, forward, args, kwargs)
                return result

            return wrapped

        def product(name: str, forward: Forward) -> Forward:
            def noted(*args: Any, **kwargs: Any) -> Any:
                result = run.mode.product(products[name], args[0]) if len(args) == 1 and not kwargs else None
                return forward(*args, **kwargs) if result is None else result

            return noted

        members = _members(model)
        self._depths = {name: sum(around in members for around in _around(name)) for name in members}
        products = {name: module for name, module in _products(model) if name not in members}
        forwards = dict.fromkeys(products, product) | dict.fromkeys(members, recording)
        with replaced_forwards(model, forwards), emitting(run.mode.node), run.mode:
            yield

    def kinds(self) -> LayerKinds:
        """The layers of which there are several alike, in the order in which they ran; of nested ones the outermost."""
        chosen: list[tuple[Layer, ...]] = []
        for depth in range(max(self._depths.values(), default=-1) + 1):
            outer = {layer.name for kind in chosen for layer in kind}
            found: dict[Any, list[Layer]] = {}
            for name, record in self._records.items():
                if record is None or self._depths[name] != depth or not outer.isdisjoint(_around(name)):
                    continue
                if self._shared.intersection(record.states):
                    continue  # What reads the state needs it in the trace.
                layer = Layer(name=name, states=record.states, buffers=record.buffers)
                # Inside of other layers those of one list alone: a block and its relative in another stack are no stack.
                stack = name.rpartition(".")[0] if depth else ""
                found.setdefault((stack, record.program), []).append(layer)
            chosen.extend(tuple(kind) for kind in found.values() if len(kind) > 1)
        return LayerKinds(kinds=tuple(chosen))


def _members(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The members of lists of modules, and of sequences of modules that have parts themselves."""
    found: dict[str, torch.nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential)) and len(module) > 1:
            is_stack = isinstance(module, torch.nn.ModuleList) and found.keys().isdisjoint(_around(f"{name}.0"))
            members = {f"{name}.{place}": member for place, member in module.named_children()}
            found |= {name: member for name, member in members.items() if is_stack or any(member.children())}
    # One module under several names has several places in the graph.
    counted = Counter(map(id, found.values()))
    return {name: module for name, module in found.items() if counted[id(module)] == 1}


def _products(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Linear]]:
    """Those of no class that says itself what it computes, and to which the seam has given no other forward."""
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear and "forward" not in vars(module):
            yield name, module


def _around(name: str) -> Iterator[str]:
    """The names of the modules that hold the module of this name."""
    while name := name.rpartition(".")[0]:
        yield name


def _lies_in(name: str, outer: str) -> bool:
    return f"{name}.".startswith(f"{outer}.")


@dataclass(frozen=True)
class _Record:
    """What one call of a layer came to."""

    #: In a form that can be compared.
    program: Any
    #: Those that it writes, in order.
    states: tuple[StateId, ...]
    buffers: Mapping[str, torch.Tensor]


@dataclass(unsafe_hash=True)
class _Outside:
    """A tensor that neither belongs to the layer nor was given to it: a state of its own, or the tensor of that identity."""

    name: Any
    #: Kept alive with the record: an identity is used again when its object is gone.
    tensor: torch.Tensor = field(compare=False, repr=False)


@dataclass
class _Frame:
    """The record of one call, as it grows."""

    names: dict[int, Any] = field(default_factory=dict)
    #: Objects whose ids are in use.
    kept: list[Any] = field(default_factory=list)
    program: list[Any] = field(default_factory=list)
    #: States by the tensors that they were before the call.
    held: dict[int, StateId] = field(default_factory=dict)
    outside: dict[int, _Outside] = field(default_factory=dict)
    #: Parameters and buffers that the call has read.
    read: set[Any] = field(default_factory=set)

    def name(self, tensor: torch.Tensor, name: Any) -> None:
        self.kept.append(tensor)
        self.names.setdefault(id(tensor), name)

    def told(self, value: Any) -> Any:
        """`value` in a form that can be compared, tensors by their names."""
        if isinstance(value, torch.Tensor):
            self.kept.append(value)
            name = self.names.get(id(value))
            if name is None and (content := constant_content(value)) is not None:
                return ("constant", str(value.dtype), tuple(value.shape), hashlib.sha256(content).hexdigest())
            if name is None:
                return self.outside.setdefault(id(value), _Outside(id(value), value))
            self.read.add(name)
            return name
        if isinstance(value, (list, tuple)):
            return (type(value), *map(self.told, value))
        if isinstance(value, Mapping):
            return ("mapping", *((str(key), self.told(item)) for key, item in value.items()))
        if value is None or type(value) in _EXACT:
            return (type(value), value)
        if isinstance(value, (bool, int, float, str)):
            return (type(value), repr(value))  # As texts: two NaN are not equal, and 0.0 and -0.0 are.
        self.kept.append(value)
        return (type(value).__name__, repr(value) if isinstance(value, torch.SymInt) else id(value))

    def note(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        if function in _LIFTING and type(args[0]) is torch.Tensor and args[0].numel() <= _MAX_CONSTANT:
            given: Any = (str(args[0].dtype), tuple(args[0].shape), repr(args[0].tolist()))
        else:
            given = (self.told(args), self.told(kwargs))
        self.program.append((function, given))
        for number, tensor in enumerate(_tensors(result)):
            self.name(tensor, ("result", len(self.program), number))


def _unwatched(method: Callable[P, Result]) -> Callable[P, Result]:
    """Modes of the model's calls see each size and dtype that is read: not those that `method` reads for the record."""

    @functools.wraps(method)
    def unwatched(*args: P.args, **kwargs: P.kwargs) -> Result:
        with torch._C.DisableTorchFunction():  # noqa: SLF001  (no public name)
            return method(*args, **kwargs)

    return unwatched


class _RecordingMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's __init_subclass__ is untyped
    """Tells the running layers' frames of each operator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        #: Of the layers that are running, each inside of the one before.
        self.frames: list[_Frame] = []
        self._fakes: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._results = _KnownResults()
        #: `_without_data` runs.
        self._is_making = False

    def without_numbers(self, leaves: Sequence[Any]) -> list[Any]:
        """The same arguments, those of floating point without data. Torch takes long over operators on tensors of both sorts."""
        fake = next((leaf for leaf in leaves if isinstance(leaf, FakeTensor)), None)
        if fake is None:
            return list(leaves)
        return [self._fake_of(leaf, fake) if _is_real_floats(leaf) else leaf for leaf in leaves]

    def _fake_of(self, tensor: torch.Tensor, pattern: FakeTensor) -> torch.Tensor:
        if id(tensor) not in self._fakes:
            self._fakes[id(tensor)] = (tensor, pattern.fake_mode.from_tensor(tensor, static_shapes=True))
        return self._fakes[id(tensor)][1]

    @_unwatched
    def product(self, module: torch.nn.Linear, given: Any) -> torch.Tensor | None:
        """What a `torch.nn.Linear` makes of a tensor, noted as one operator; `None` where torch must say it.

        Torch makes four operators of it, which take a third of the run of a model of many layers.
        """
        weight, bias = module.weight, module.bias
        taken = [weight, given] if bias is None else [weight, given, bias]
        if not all(isinstance(tensor, FakeTensor) and tensor.dtype == weight.dtype for tensor in taken):
            return None
        if not given.dim() or given.shape[-1] != weight.shape[1]:
            return None
        result = self._without_data(given, (*given.shape[:-1], weight.shape[0]), given.dtype)
        for frame in self.frames:
            frame.note("linear", (given, weight, bias), {}, result)
        return result

    @_unwatched
    def node(
        self,
        op_type: str,
        inputs: Sequence[torch.Tensor],
        attributes: Mapping[str, int | float],
        dtype: torch.dtype,
        shape: Sequence[int | torch.SymInt],
    ) -> torch.Tensor | None:
        """The result of a dialect op, see `dialect.ops.emitting`; `None` where its first input has data."""
        if not isinstance(inputs[0], FakeTensor):
            return None
        result = self._without_data(inputs[0], shape, dtype)
        for frame in self.frames:
            frame.note(op_type, (inputs, dtype, list(shape)), attributes, result)
        return result

    def _without_data(
        self, pattern: FakeTensor, shape: Sequence[int | torch.SymInt], dtype: torch.dtype
    ) -> torch.Tensor:
        """A new tensor of this form, beside `pattern`, of which no frame is told."""
        self._is_making = True
        try:
            if not all(type(size) is int for size in shape):
                return pattern.new_zeros(shape, dtype=dtype)
            data = torch.empty(shape, dtype=dtype, device="meta")
            return FakeTensor(pattern.fake_mode, data, pattern.fake_device)
        finally:
            self._is_making = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not: torch's switch around each operator costs a tenth of the run, in which nothing is compiled."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator."""
        del types
        kwargs = kwargs or {}
        if self._is_making:
            return function(*args, **kwargs)
        result = self._results.of(function, args, kwargs)
        for frame in self.frames:
            frame.note(function, args, kwargs, result)
        return result


class _KnownResults:
    """What operators return for tensors without data of forms that were there before: layers that are alike repeat each other.

    Torch remembers it too, at several times the cost, which is most of a run of many layers.
    """

    def __init__(self) -> None:
        #: `None`: torch has to say it each time.
        self._known: dict[Any, tuple[FakeTensorMode, torch.device, _Form] | None] = {}

    def of(self, function: Any, args: Any, kwargs: Any) -> Any:
        """The result of the operator."""
        key = _form_of((function, args, kwargs)) if _is_pure(function) else None
        if key is None:
            return function(*args, **kwargs)
        known = self._known.get(key)
        if known is not None:
            mode, device, (dtype, shape, stride) = known
            data = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
            return FakeTensor(mode, data, device)
        result = function(*args, **kwargs)
        if key not in self._known:
            form = _form_of(result) if isinstance(result, FakeTensor) and not result.storage_offset() else None
            self._known[key] = None if form is None else (result.fake_mode, result.fake_device, form[1:-1])
        return result


#: dtype, sizes and strides of a tensor.
_Form = tuple[torch.dtype, tuple[int, ...], tuple[int, ...]]


def _form_of(value: Any) -> Any:
    """What the form of an operator's result depends on; `None` where that is more than forms and numbers of Python."""
    if isinstance(value, torch.Tensor):
        is_known = type(value) is FakeTensor and value.constant is None and not value.dtype.is_complex
        if not is_known or not all(type(size) is int for size in (*value.shape, *value.stride())):
            return None
        return ("tensor", value.dtype, tuple(value.shape), value.stride(), value.storage_offset())
    if isinstance(value, (list, tuple)):
        parts = [_form_of(item) for item in value]
        return None if None in parts else (type(value), *parts)
    if isinstance(value, dict):
        return _form_of(tuple(item for pair in value.items() for item in pair))
    if value is None or type(value) in _HASHABLE or isinstance(value, OpOverload):
        return (type(value), value)
    return None


@functools.cache
def _is_pure(function: Any) -> bool:
    """Whether an operator of torch returns one tensor, and leaves its arguments as they are."""
    schema = function._schema  # noqa: SLF001
    return (
        function.namespace == "aten"
        and function not in _LIFTING
        and not schema.is_mutable
        and [str(value.type) for value in schema.returns] == ["Tensor"]
    )


def _is_real_floats(leaf: Any) -> bool:
    return type(leaf) is torch.Tensor and leaf.is_floating_point()


@dataclass(frozen=True)
class _Run:
    """The run that is recorded."""

    model: torch.nn.Module
    #: All names of each parameter and buffer, by each of them.
    owners: Mapping[str, Sequence[str]]
    cache: HoldsStates
    masks: CountsMasks
    mode: _RecordingMode
    #: See `LayerRecorder`.
    shared: set[StateId]


def _recorded(
    run: _Run, name: str, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, _Record | None]:
    """The result of a call, and its record; `None` where a record cannot hold what it does."""
    mode, cache, masks = run.mode, run.cache, run.masks
    layer, frame = run.model.get_submodule(name), _Frame()
    leaves, tree = pytree.tree_flatten((args, kwargs))
    leaves = run.mode.without_numbers(leaves)
    args, kwargs = pytree.tree_unflatten(leaves, tree)
    before, before_tree = pytree.tree_flatten((args, kwargs))
    for number, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor):
            frame.name(leaf, ("argument", number))
    head = [_describe(leaf, frame, cache) for leaf in leaves]
    own, buffers = _own_tensors(run.owners, name, layer, frame)
    states, asked, attributes = dict(cache.states), masks.calls, _attributes(layer)
    frame.held = {id(tensor): state for state, tensor in states.items()}
    mode.frames.append(frame)
    try:
        result = forward(*args, **kwargs)
    finally:
        mode.frames.pop()
    after, after_tree = pytree.tree_flatten((args, kwargs))
    unchanged = after_tree == before_tree and all(a is b for a, b in zip(after, before, strict=True))
    outputs, output_tree = pytree.tree_flatten(result)
    written = tuple(state for state, tensor in cache.states.items() if states.get(state) is not tensor)
    told_outputs = frame.told(outputs)
    read = {state: frame.outside[identity] for identity, state in frame.held.items() if identity in frame.outside}
    is_inner = bool(mode.frames)
    if not is_inner:
        run.shared.update(read.keys() - {*written})
    if (
        not unchanged
        or (is_inner and (read or written))  # The layer around it is what has the states.
        or asked != masks.calls
        or attributes != _attributes(layer)
        or not any(isinstance(leaf, torch.Tensor) for leaf in outputs)
        or not all(leaf is None or isinstance(leaf, torch.Tensor) for leaf in outputs)
    ):
        return result, None
    kept = [(state.role, state.number, frame.told(cache.states[state])) for state in written]
    head += [told for told in own if told[0] in frame.read]
    program: Any = (str(tree), tuple(head), tuple(frame.program), str(output_tree), told_outputs, tuple(kept))
    # A state that the layer replaces is its own; any other one is from outside.
    for state in written:
        if state in read:
            read[state].name = ("state", written.index(state))
    return result, _Record(program, written, buffers)


def _describe(leaf: Any, frame: _Frame, cache: HoldsStates) -> Any:
    if isinstance(leaf, torch.Tensor):
        return ("tensor", str(leaf.dtype), tuple(map(str, leaf.shape)), tuple(map(str, leaf.stride())))
    if isinstance(leaf, _PLAIN):
        return (type(leaf).__name__,)  # What follows from its value stands in the program.
    return ("cache",) if leaf is cache else frame.told(leaf)


def _owners(model: torch.nn.Module) -> dict[str, list[str]]:
    """All names of each parameter and buffer, by each of them.

    By name, since a run may replace the tensors: one on parameters without data does.
    """
    owners: dict[int, list[str]] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        owners.setdefault(id(tensor), []).append(name)
    return {name: owners[id(tensor)] for name, tensor in tensors}


def _own_tensors(
    owners: Mapping[str, Sequence[str]], name: str, layer: torch.nn.Module, frame: _Frame
) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """Names the layer's parameters and buffers; returns what of them must be alike, and the buffers.

    What a module outside holds as well is something from outside.
    """
    told: list[Any] = []
    buffers: dict[str, torch.Tensor] = {}
    for kind, tensors in (
        ("parameter", layer.named_parameters(remove_duplicate=False)),
        ("buffer", layer.named_buffers(remove_duplicate=False)),
    ):
        for own, tensor in tensors:
            if all(_lies_in(owner, name) for owner in owners.get(f"{name}.{own}", ())):
                frame.name(tensor, (kind, own))
                told.append((frame.names[id(tensor)], str(tensor.dtype), tuple(tensor.shape)))
                if kind == "buffer":
                    buffers[own] = tensor
    return told, buffers


def _attributes(layer: torch.nn.Module) -> list[dict[str, int]]:
    """What would show that a call leaves something behind in the layer."""
    return [
        {key: id(value) for key, value in (*vars(module).items(), *module.named_buffers(recurse=False))}
        for module in layer.modules()
    ]


def _tensors(result: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


# --- the trace --------------------------------------------------------------------------------------------------------


@dataclass
class _Traced:
    """What the traced layer of a kind was called with, and returned."""

    given: list[Any]
    input_tree: Any
    results: list[Any]
    output_tree: Any


@contextlib.contextmanager
def without_stamped_weights(model: torch.nn.Module, kinds: LayerKinds) -> Iterator[None]:
    """While the body traces `model`, the layers that are not traced hold no weights, which the tracer would work on each."""
    emptied = [module for layer, first in kinds.layers if layer is not first for module in _modules(model, layer)]
    held = [(module, module._parameters, module._buffers) for module in emptied]  # noqa: SLF001  (no public setter)
    for module in emptied:
        module._parameters, module._buffers = {}, {}  # noqa: SLF001
    try:
        yield
    finally:
        for module, parameters, buffers in held:
            module._parameters, module._buffers = parameters, buffers  # noqa: SLF001


def _modules(model: torch.nn.Module, layer: Layer) -> Iterator[torch.nn.Module]:
    return model.get_submodule(layer.name).modules()


@contextlib.contextmanager
def stamping(model: torch.nn.Module, kinds: LayerKinds, cache: HoldsStates) -> Iterator[None]:
    """Lets the first layer of each kind be traced between marks, and each other one emit a single node.

    The inputs of that node are the tensors that the layer is called with, and its outputs those that it returns. Its states are
    no part of the trace; `export.stamp` adds them.
    """
    traced: dict[str, _Traced] = {}
    makers: dict[str, Callable[[str, Forward], Forward]] = {}
    for number, (layer, first) in enumerate(kinds.layers):
        if layer is first:
            makers[layer.name] = _marking(number, layer, cache, traced)
        else:
            makers[layer.name] = _calling(number, layer, first, traced)
    with replaced_forwards(model, makers):
        yield


def _marking(
    number: int, layer: Layer, cache: HoldsStates, traced: dict[str, _Traced]
) -> Callable[[str, Forward], Forward]:
    def maker(_: str, forward: Forward) -> Forward:
        def marked(*args: Any, **kwargs: Any) -> Any:
            leaves, tree = pytree.tree_flatten((args, kwargs))
            count = sum(map(_is_traced, leaves))
            places = iter(range(count))
            inner = [_mark(INPUT_OP, number, next(places), leaf) if _is_traced(leaf) else leaf for leaf in leaves]
            for place, state in enumerate(layer.states, count):
                cache.states[state] = _mark(INPUT_OP, number, place, cache.states[state])
            inner_args, inner_kwargs = pytree.tree_unflatten(inner, tree)
            results, output_tree = pytree.tree_flatten(forward(*inner_args, **inner_kwargs))
            count = sum(map(_is_traced, results))
            places = iter(range(count))
            outer = [_mark(OUTPUT_OP, number, next(places), leaf) if _is_traced(leaf) else leaf for leaf in results]
            for place, state in enumerate(layer.states, count):
                cache.states[state] = _mark(OUTPUT_OP, number, place, cache.states[state])
            traced[layer.name] = _Traced(leaves, tree, outer, output_tree)
            return pytree.tree_unflatten(outer, output_tree)

        return marked

    return maker


def _calling(number: int, layer: Layer, first: Layer, traced: dict[str, _Traced]) -> Callable[[str, Forward], Forward]:
    def maker(_: str, forward: Forward) -> Forward:
        del forward

        def call(*args: Any, **kwargs: Any) -> Any:
            leaves, tree = pytree.tree_flatten((args, kwargs))
            known = traced.get(first.name)
            if known is None or tree != known.input_tree or not all(map(_fits, leaves, known.given)):
                raise NotAlikeError(f"{layer.name} is not called in the trace as {first.name} is")
            patterns = [leaf for leaf in known.results if _is_traced(leaf)]
            values = torch.onnx.ops.symbolic_multi_out(
                f"{DOMAIN}::{CALL_OP}",
                [leaf for leaf in leaves if _is_traced(leaf)],
                {"layer": number},
                dtypes=[pattern.dtype for pattern in patterns],
                shapes=[list(pattern.shape) for pattern in patterns],
                version=VERSION,
            )
            found = iter(values)
            results = [next(found) if _is_traced(leaf) else leaf for leaf in known.results]
            return pytree.tree_unflatten(results, known.output_tree)

        return call

    return maker


def _mark(op_type: str, layer: int, place: int, tensor: torch.Tensor) -> torch.Tensor:
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{op_type}",
        [tensor],
        {"layer": layer, "place": place},
        dtype=tensor.dtype,
        shape=list(tensor.shape),
        version=VERSION,
    )


def _is_traced(leaf: Any) -> bool:
    """Not a constant: a tensor that keeps its numbers in the trace (`seam.real_constants`) is the same for all calls."""
    return isinstance(leaf, torch.Tensor) and type(leaf) is not torch.Tensor


def _fits(leaf: Any, known: Any) -> bool:
    if _is_traced(leaf) and _is_traced(known):
        return leaf.dtype == known.dtype and list(map(str, leaf.shape)) == list(map(str, known.shape))
    if isinstance(leaf, torch.Tensor) or isinstance(known, torch.Tensor):
        return leaf is known
    if isinstance(leaf, torch.SymInt) or isinstance(known, torch.SymInt):
        return str(leaf) == str(known) and type(leaf) is type(known)
    return leaf is known or (type(leaf) is type(known) and (isinstance(leaf, _PLAIN) or bool(leaf == known)))
