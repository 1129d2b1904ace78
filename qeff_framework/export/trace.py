"""From a graph module to an ONNX model in memory, with the tracer's noise kept away from the user."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import onnx_ir
import torch
from torch._dynamo import config as tracing
from torch._dynamo.exc import UserError, UserErrorType
from torch.export import Dim
from torch.export.dynamic_shapes import _DerivedDim, refine_dynamic_shapes_from_suggested_fixes
from torch.utils import _pytree as pytree

from qeff_framework.dialect.functions import attach_functions
from qeff_framework.dialect.names import ONNX_OPSET
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.export.decompose import decompose_only_where_needed
from qeff_framework.export.interface import strip_module_prefix
from qeff_framework.export.references import keeps_layout
from qeff_framework.export.resizing import replace_smoothed_resizes
from qeff_framework.export.rewrites import rewrite_untranslatable
from qeff_framework.export.simplify import simplify
from qeff_framework.export.stamp import hidden_weights, stamp_layers
from qeff_framework.export.table_bounds import taking_bounds
from qeff_framework.export.translations import to_onnx
from qeff_framework.export.weights import ModuleTensor, bind_weights, store_transposed
from qeff_framework.lowering.layer_functions import LAYERS_KEY
from qeff_framework.seam.adapt import positional_masks
from qeff_framework.seam.host_numbers import NumbersOnTheHost
from qeff_framework.seam.layers import LayerKinds
from qeff_framework.seam.states import StateId
from qeff_framework.seam.weightless import fake_parameters
from qeff_framework.thread_quiet import ignored_warning, muted_loggers

_NO_KINDS = LayerKinds()


def probe(graph: torch.nn.Module, arguments: tuple[Any, ...]) -> Any:
    """What `graph` returns on parameters without data. What depends on shapes and indices only is real in this run."""
    with positional_masks(), torch.no_grad(), quiet_exporter():
        return torch.func.functional_call(graph, fake_parameters(graph), arguments)


def trace(
    graph: torch.nn.Module, arguments: tuple[Any, ...], dynamic_shapes: tuple[Any, ...]
) -> torch.export.ExportedProgram:
    """Traces `graph` with symbolic dimensions. A model that bounds a dimension by the size of a table keeps its bound.

    Raises:
        UnsupportedModelError: the model makes a plain number of a symbolic one, so that the graph holds for few sizes alone.
    """
    with (
        positional_masks(),
        torch.no_grad(),
        quiet_exporter(),
        _graphs_without_source(),
        _nodes_without_layout(),
        _shapes_without_cache(any(dim is not None for dim in pytree.tree_leaves(dynamic_shapes))),
        NumbersOnTheHost() as numbers,
    ):
        try:
            program = _trace_within_bounds(graph, arguments, dynamic_shapes)
        except Exception as error:
            if numbers.read:
                raise _of_one_size(numbers.read) from error
            raise
    if numbers.read:
        raise _of_one_size(numbers.read)
    return program


def _of_one_size(read: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"its code computes with a size as with a number ({read}), which the tracer answers for the size of its example: the "
        "graph would be wrong for other sizes; with // instead of / and int() it would hold for all"
    )


def _trace_within_bounds(
    graph: torch.nn.Module, arguments: tuple[Any, ...], dynamic_shapes: tuple[Any, ...]
) -> torch.export.ExportedProgram:
    try:
        with taking_bounds(graph, dynamic_shapes):
            return _trace(graph, arguments, dynamic_shapes)
    except UserError as error:
        if error.error_type is not UserErrorType.CONSTRAINT_VIOLATION or "Suggested fixes" not in error.msg:
            raise
        fixes = tuple(refine_dynamic_shapes_from_suggested_fixes(error.msg, dynamic_shapes))
    bounds = _bounds_alone(fixes, dynamic_shapes)
    if bounds is not None:
        with contextlib.suppress(UserError):
            return _trace(graph, arguments, bounds)
    return _trace(graph, arguments, fixes)


def _bounds_alone(fixes: tuple[Any, ...], given: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The fixes without formulas for sizes, such as ``4 k - 1``; `None` where there are none.

    The tracer finds them in every comparison with a quotient, and suggests them as soon as a bound must be told, although the
    bound alone may do.
    """
    derived = [leaf for leaf in pytree.tree_leaves(fixes) if isinstance(leaf, _DerivedDim)]
    if not derived:
        return None
    named: dict[str, Dim] = {}

    def bounded(fixed: Any, dim: Any) -> Any:
        if not isinstance(fixed, _DerivedDim):
            return fixed
        return named.setdefault(dim.__name__, Dim(dim.__name__, min=fixed.min, max=fixed.max))

    shapes: tuple[Any, ...] = pytree.tree_map(bounded, fixes, given)
    return shapes


def _trace(
    graph: torch.nn.Module, arguments: tuple[Any, ...], dynamic_shapes: tuple[Any, ...]
) -> torch.export.ExportedProgram:
    return torch.export.export(
        graph,
        arguments,
        dynamic_shapes=dynamic_shapes,
        strict=False,
        # Models compare sequence and context lengths to choose between equivalent forms; a comparison that the example sizes
        # decide must not narrow the sizes that the graph accepts.
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def translate(
    program: torch.export.ExportedProgram,
    weights: Mapping[str, torch.Tensor],
    kinds: LayerKinds = _NO_KINDS,
    states: Sequence[StateId] = (),
    replaceable: Container[str] = (),
) -> onnx_ir.Model:
    """Translates a traced program to ONNX over the module's own `weights` and simplifies it; dialect ops stay as they are.

    `kinds`: the layers that stand in the program as one node each. `states`: those of the graph, see `stamp_layers`.
    `replaceable`: initializers that may get other numbers afterwards. Nothing is made of those that they have.

    Raises:
        NotAlikeError: such a node cannot be replaced by the layer that it is alike.
    """
    with quiet_exporter(), _graphs_without_source():
        rewrite_untranslatable(program)
        decompose_only_where_needed(program)
        model = to_onnx(program, ONNX_OPSET).model
        strip_module_prefix(model)
        bind_weights(model, weights)
        with hidden_weights(model, _NO_KINDS, replaceable), ExitStack() as hidden:
            hidden.enter_context(hidden_weights(model, kinds))

            def stamp() -> None:
                hidden.close()
                stamp_layers(model, kinds, weights, states)

            simplify(model, should_fold=_should_fold, between=stamp)
        replace_smoothed_resizes(model)
    return model


def finish(model: onnx_ir.Model) -> None:
    """Brings a translated model into the form in which it is written."""
    store_transposed(model, stays=keeps_layout)
    _strip_metadata(model)
    attach_functions(model)


def _should_fold(node: onnx_ir.Node) -> bool | None:
    """Keeps the folding of constants away from weights, which it would copy. `None` leaves the decision to the optimizer."""
    constants = (value.const_value for value in node.inputs if value is not None)
    return False if any(isinstance(constant, ModuleTensor) for constant in constants) else None


def _strip_metadata(model: onnx_ir.Model) -> None:
    """Removes the tracer's notes: stack traces with paths of this machine, several times the size of the graph itself."""
    for key in set(model.metadata_props) - {LAYERS_KEY}:
        del model.metadata_props[key]
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for output in node.outputs:
            output.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


@contextlib.contextmanager
def _graphs_without_source() -> Iterator[None]:
    """Makes torch's graphs without what an export does not read: each node's stack trace, and Python code before it is called.

    Both together are a tenth of a small export. A version of torch without these switches makes them all the same.
    """
    try:
        from torch.fx import config
        from torch.fx._lazy_graph_module import _use_lazy_graph_module as lazy_code

        before = config.do_not_emit_stack_traces
    except (ImportError, AttributeError):
        yield
        return
    config.do_not_emit_stack_traces = True
    try:
        with lazy_code(True):
            yield
    finally:
        config.do_not_emit_stack_traces = before


@contextlib.contextmanager
def _nodes_without_layout() -> Iterator[None]:
    """Makes nodes without a second description of their results, for which torch tries each order of symbolic strides.

    Each result is beside it in the node, and nothing of an export reads the description. It is a twentieth of a small export.
    A version of torch that keeps it elsewhere makes it all the same.
    """
    nodes: Any
    try:
        from torch.fx.experimental import proxy_tensor as nodes

        describe = nodes._extract_tensor_metadata  # noqa: SLF001
    except (ImportError, AttributeError):
        yield
        return
    exporting = threading.get_ident()

    def undescribed(*args: Any, **kwargs: Any) -> Any:
        return None if threading.get_ident() == exporting else describe(*args, **kwargs)

    nodes._extract_tensor_metadata = undescribed  # noqa: SLF001
    try:
        yield
    finally:
        nodes._extract_tensor_metadata = describe  # noqa: SLF001


@contextlib.contextmanager
def _shapes_without_cache(are_symbolic: bool) -> Iterator[None]:
    """Makes torch compute symbolic shapes anew at each operator, instead of looking for one with the same arguments.

    For symbolic sizes an entry costs more than it saves: the arguments are hashed, and each result is made twice to compare them.
    That is a fifth of a small export. Layers that are alike are traced once in any case. Plain sizes are faster with the cache.
    """
    before = getattr(tracing, "fake_tensor_cache_enabled", None)
    if before is None or not are_symbolic:
        yield
        return
    tracing.fake_tensor_cache_enabled = False
    try:
        yield
    finally:
        tracing.fake_tensor_cache_enabled = before


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keeps the exporter's log lines and deprecation warnings about its own internals from the user."""
    # `torch.onnx` warns about every optional package (torchvision, ...) that is not installed; torch 2.13 copies pytree specs
    # through an interface that it deprecates itself, and gives onnx_ir empty lists of axes. WavLM gives torch two masks of
    # unequal types.
    with (
        muted_loggers("torch.onnx", "onnx_ir", "transformers"),
        ignored_warning(".*LeafSpec.*", FutureWarning),
        ignored_warning("Support for mismatched key_padding_mask", UserWarning),
    ):
        yield
