"""Decides whether a traced program needs torch's decompositions, which trace the whole program a second time.

Most traced language models consist of operators that torchlib translates as they are, but for a few that have an equivalent
with a translation. Decomposing these programs changes nothing and takes longer than everything else together: 2.1 of 3.6 s
for a Llama of four layers.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from qeff_framework.dialect.names import ONNX_OPSET
from qeff_framework.export.functionalize import functionalize
from qeff_framework.export.translations import translations

_ATEN = torch.ops.aten

#: How a slice says that it goes to the end.
_END = 2**63 - 1

#: Operators that the translation drops in any case.
_ASSERTIONS = frozenset(
    {_ATEN._assert_scalar.default, _ATEN._assert_tensor_metadata.default, _ATEN._assert_async.msg}  # noqa: SLF001
)
#: What is computed with numbers that were read from tensors.
_OF_NUMBERS = frozenset(
    {operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, torch.sym_ite, torch.sym_not}
)
_CONVERSIONS = frozenset(
    {_ATEN.to.dtype, _ATEN.to.device, _ATEN.to.dtype_layout, _ATEN.to.other, _ATEN.type_as.default}
)
#: Operators that reverse the order of the dimensions.
_REVERSALS = frozenset({_ATEN.numpy_T.default, _ATEN.t.default})
#: Operators without a translation, and operators that compute the same.
_EQUIVALENTS: Mapping[Any, Any] = {
    _ATEN.min.other: _ATEN.minimum.default,
    _ATEN.max.other: _ATEN.maximum.default,
    _ATEN.__and__.Tensor: _ATEN.bitwise_and.Tensor,
    _ATEN.__or__.Tensor: _ATEN.bitwise_or.Tensor,
    _ATEN.__xor__.Tensor: _ATEN.bitwise_xor.Tensor,
}


def decompose_only_where_needed(program: torch.export.ExportedProgram) -> None:
    """Replaces `program.run_decompositions` by a method that returns the program itself where nothing needs decomposing."""
    _replace_by_equivalents(program.graph)
    _drop_unread(program.graph)
    functionalize(program.graph)
    _replace_by_equivalents(program.graph)
    if not any(_changes(node) for node in program.graph.nodes):
        _copy_results(program.graph)
    program.graph.lint()
    program.graph_module.recompile()
    decompose = program.run_decompositions

    def run_decompositions(decomp_table: Mapping[Any, Callable[..., Any]] | None = None, **options: Any) -> Any:
        """Returns the decomposed program."""
        if decomp_table is not None and _is_translatable(program.graph, decomp_table):
            return program
        return decompose(None if decomp_table is None else dict(decomp_table), **options)

    program.run_decompositions = run_decompositions


def _is_translatable(graph: torch.fx.Graph, table: Mapping[Any, Callable[..., Any]]) -> bool:
    """Tells whether the graph is flat and functional and torchlib translates each operator, none of which is in `table`."""
    translated = _translated_operators()
    for node in graph.nodes:
        if node.op == "get_attr":
            return False  # The graph of a higher-order operator.
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        if node.target not in translated or node.target in table:
            return False
        if _changes(node):
            return False
    return True


@functools.cache
def _translated_operators() -> frozenset[Any]:
    """The operators that torchlib translates. None where this version of torch keeps them elsewhere: all is decomposed."""
    try:
        registered: Mapping[Any, Any] = translations(ONNX_OPSET).functions
        return frozenset(entry.fx_target for entries in registered.values() for entry in entries)
    except AttributeError:
        return frozenset()


def _replace_by_equivalents(graph: torch.fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
        elif node.target in _CONVERSIONS:
            _replace_conversion(graph, node)
        elif node.target in _REVERSALS:
            rank = node.meta["val"].dim()
            node.target, node.args = _ATEN.permute.default, (node.args[0], list(range(rank))[::-1])
        elif node.target in _EQUIVALENTS:
            node.target = _EQUIVALENTS[node.target]
        elif node.target is _ATEN.square.default:
            node.target, node.args = _ATEN.mul.Tensor, (node.args[0], node.args[0])
        elif node.target is _ATEN.conv2d.padding and _arguments(node)["padding"] == "valid":
            given = {**_arguments(node), "padding": [0, 0]}
            node.target, node.args, node.kwargs = _ATEN.conv2d.default, tuple(given.values()), {}
        elif node.target is _ATEN.outer.default:
            _replace_outer_product(graph, node)
        elif node.target is _ATEN.rsub.Scalar and len(node.args) == 2:
            _replace_reversed_difference(graph, node)
        elif node.target is _ATEN.var.dim:
            _replace_variance(graph, node)
        elif node.target is _ATEN.index_add.default and _arguments(node)["alpha"] == 1:
            given = _arguments(node)
            index: list[Any] = [None] * (given["dim"] % max(node.meta["val"].dim(), 1))
            node.target, node.args, node.kwargs = (
                _ATEN.index_put.default,
                (given["self"], [*index, given["index"]], given["source"], True),
                {},
            )
        elif node.target is _ATEN.batch_norm.default:
            _replace_batch_norm(graph, node)
        elif node.target is _ATEN._weight_norm.default:  # noqa: SLF001
            _replace_weight_norm(graph, node)
        elif node.target is _ATEN.adaptive_avg_pool2d.default and list(_arguments(node)["output_size"]) == [1, 1]:
            node.target, node.args, node.kwargs = _ATEN.mean.dim, (_arguments(node)["self"], [-2, -1], True), {}
        elif _is_its_argument(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _drop_unread(graph: torch.fx.Graph) -> None:
    """Erases what nobody reads: numbers that were read from tensors for assertions, and what was computed for them alone."""
    for node in reversed(graph.nodes):
        if (
            node.op == "call_function"
            and not node.users
            and (node.target in _OF_NUMBERS or _is_functional(node.target))
        ):
            graph.erase_node(node)


def _is_functional(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and not target._schema.is_mutable  # noqa: SLF001


def _replace_conversion(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Drops a conversion that returns the tensor itself; replaces another one by the operator that has a translation."""
    source, result = node.args[0], node.meta.get("val")
    if not isinstance(source, torch.fx.Node) or not isinstance(result, torch.Tensor):
        return
    if source.meta["val"].dtype != result.dtype or True in node.args or node.kwargs.get("copy"):
        node.target, node.args, node.kwargs = _ATEN._to_copy.default, (source,), {"dtype": result.dtype}  # noqa: SLF001
    elif all(user.op != "output" for user in node.users):
        node.replace_all_uses_with(source)
        graph.erase_node(node)


def _copy_results(graph: torch.fx.Graph) -> None:
    """Replaces the conversions that are left, whose results the program returns. Where nothing changes, a copy is the same."""
    for node in graph.nodes:
        if node.target in _CONVERSIONS and isinstance(node.meta.get("val"), torch.Tensor):
            node.target, node.args = _ATEN._to_copy.default, node.args[:1]  # noqa: SLF001
            node.kwargs = {"dtype": node.meta["val"].dtype}


def _replace_reversed_difference(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Replaces ``scalar - x`` by ``-x + scalar``, which rounds alike."""
    source, scalar = node.args
    with graph.inserting_before(node):
        negated = graph.call_function(_ATEN.neg.default, (source,))
    negated.meta["val"] = source.meta["val"]  # type: ignore[union-attr]
    node.target, node.args = _ATEN.add.Tensor, (negated, scalar)


def _replace_outer_product(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Replaces an outer product by one of a column and a row, as the rotary embeddings of FLUX have."""
    rows: Any = node.args[0]
    with graph.inserting_before(node):
        column = graph.call_function(_ATEN.unsqueeze.default, (rows, 1))
    column.meta["val"] = rows.meta["val"].unsqueeze(1)
    node.target, node.args = _ATEN.mul.Tensor, (column, node.args[1])


def _replace_variance(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Replaces a variance over dimensions of known size by the mean of squared differences."""
    given = _arguments(node)
    source, dims = given["self"], given["dim"]
    value = source.meta["val"]
    sizes = [value.shape[dim] for dim in dims or ()]
    count = math.prod(size for size in sizes if isinstance(size, int)) - bool(given["unbiased"])
    if not sizes or not all(isinstance(size, int) for size in sizes) or count <= 0:
        return
    with graph.inserting_before(node):
        difference = _call(graph, _ATEN.sub.Tensor, source, _call(graph, _ATEN.mean.dim, source, dims, True))
        squares = _call(graph, _ATEN.mul.Tensor, difference, difference)
        total = _call(graph, _ATEN.sum.dim_IntList, squares, dims, given["keepdim"])
    node.target, node.args, node.kwargs = _ATEN.div.Tensor, (total, float(count)), {}


def _replace_weight_norm(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Replaces a weight given as direction and length, as convolutions of speech models have it, by what torch makes of it."""
    given = _arguments(node)
    direction, length = given["v"], given["g"]
    others = [dim for dim in range(direction.meta["val"].dim()) if dim != given["dim"]]
    with graph.inserting_before(node):
        norm = _call(graph, _ATEN.linalg_vector_norm.default, direction, 2.0, others, True)
        scale = _call(graph, _ATEN.div.Tensor, length, norm)
    node.target, node.args, node.kwargs = _ATEN.mul.Tensor, (direction, scale), {}


def _call(graph: torch.fx.Graph, op: Any, *args: Any) -> torch.fx.Node:
    """A node for `op`, at the place where the graph inserts, that knows the value that it returns."""
    result = graph.call_function(op, args)
    result.meta["val"] = op(*(arg.meta["val"] if isinstance(arg, torch.fx.Node) else arg for arg in args))
    return result


def _replace_batch_norm(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Replaces a norm with the statistics that it was trained to by the operator for that."""
    given = _arguments(node)
    names = ("input", "weight", "bias", "running_mean", "running_var", "momentum", "eps")
    if given["training"] or given["running_mean"] is None or given["running_var"] is None:
        return
    value = node.meta["val"]
    with graph.inserting_before(node):
        norm = graph.call_function(_ATEN._native_batch_norm_legit_no_training.default, tuple(map(given.get, names)))  # noqa: SLF001
    # What it returns beside the result belongs to training, and is empty.
    norm.meta["val"] = (value, value.new_empty(0), value.new_empty(0))
    node.target, node.args, node.kwargs = operator.getitem, (norm, 0), {}


def _is_its_argument(node: torch.fx.Node) -> bool:
    """Tells whether a node is its argument, in the same memory: ``x[:]`` along a dimension, ``x.detach_()``, and a dropout."""
    if any(user.op == "output" for user in node.users):
        return False  # The program's signature names its results.
    if node.target is _ATEN.dropout.default:
        return not _arguments(node)["train"]
    if node.target is not _ATEN.slice.Tensor:
        return node.target is _ATEN.detach_.default
    given = _arguments(node)
    return given["start"] in (0, None) and given["end"] in (_END, None) and given["step"] == 1


def _arguments(node: torch.fx.Node) -> dict[str, Any]:
    """The arguments of an operator by name, with the defaults of those that are not given."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]  # noqa: SLF001
    defaults = {argument.name: argument.default_value for argument in arguments}
    return {**defaults, **dict(zip(defaults, node.args, strict=False)), **node.kwargs}


def _changes(node: torch.fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable  # noqa: SLF001
