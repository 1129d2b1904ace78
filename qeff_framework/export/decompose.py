"""Decides whether a traced program needs torch's decompositions, which trace the whole program a second time.

Most traced language models consist of operators that torchlib translates as they are, but for a few that have an equivalent
with a translation. Decomposing these programs changes nothing and takes longer than everything else together: 2.1 of 3.6 s
for a Llama of four layers.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from qeff_framework.export.functionalize import functionalize

_ATEN = torch.ops.aten

#: Operators that the translation drops in any case.
_ASSERTIONS = frozenset(
    {_ATEN._assert_scalar.default, _ATEN._assert_tensor_metadata.default, _ATEN._assert_async.msg}  # noqa: SLF001
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
}


def decompose_only_where_needed(program: torch.export.ExportedProgram) -> None:
    """Replaces `program.run_decompositions` by a method that returns the program itself where nothing needs decomposing."""
    _replace_by_equivalents(program.graph)
    functionalize(program.graph)
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
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        registered: Mapping[Any, Any] = ONNXRegistry.from_torchlib().functions
        return frozenset(entry.fx_target for entries in registered.values() for entry in entries)
    except (ImportError, AttributeError):
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
    elif not any(_changes(user) for user in (*source.users, *node.users)):
        node.target, node.args, node.kwargs = _ATEN._to_copy.default, (source,), {"dtype": result.dtype}  # noqa: SLF001


def _changes(node: torch.fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable  # noqa: SLF001
