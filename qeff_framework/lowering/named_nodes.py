"""Nodes and operators that an option names: a compiler that is told a name it does not know does nothing, and says nothing."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

import onnx
import onnx_ir as ir

from qeff_framework.errors import CompileError

#: Names that are told of an unknown one.
_SUGGESTIONS = 3


def nodes_named(model: ir.Model, names: Collection[str], *, option: str) -> frozenset[ir.Node]:
    """The nodes whose first outputs have these names, in subgraphs as well.

    Args:
        model: the lowered graph.
        names: what the user has given.
        option: the name of the option, for the message.

    Raises:
        CompileError: the graph has no such node; the message tells the names that are close.
    """
    if not names:
        return frozenset()
    found = {str(node.outputs[0].name): node for node in model.graph.all_nodes() if node.outputs}
    unknown = sorted({*names} - found.keys())
    if unknown:
        raise CompileError(
            f"{option}: the lowered graph has no node whose first output is {', '.join(unknown)}{_close(unknown, found)}"
        )
    return frozenset(found[name] for name in names)


def check_operator_types(model: ir.Model, types: Collection[str], *, option: str) -> None:
    """Raises `CompileError` for types that neither ONNX nor a function of `model` has; the message tells those that are close.

    A type that the graph has no node of is none of them: a list of types may be meant for many models.
    """
    if not types:
        return
    known = {node.op_type for node in model.graph.all_nodes()} | {name for _, name, _ in model.functions}
    known |= {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    unknown = sorted({*types} - known)
    if unknown:
        raise CompileError(f"{option}: there is no operator {', '.join(unknown)}{_close(unknown, known)}")


def _close(unknown: Iterable[str], known: Iterable[str]) -> str:
    choices = [*known]
    near = {name: None for text in unknown for name in difflib.get_close_matches(text, choices, n=_SUGGESTIONS)}
    return f"; did you mean {' or '.join(near)}?" if near else ""
