"""The node list of a model as the compiler sees it after inlining and folding; partitions refer to these names.

Rules of the contract: a call of a local function with fewer than 100 nodes is replaced by the function's nodes, named
`<call node>/<inner node>`, except functions that the compiler has kernels for. A node all of whose inputs are constants
is folded away, except a few operator types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from .graph_walk import FunctionKey, functions_by_key, key_of, name_of, names_used

_INLINE_BELOW = 100
_KERNEL_FUNCTIONS = ("CustomRMSNorm", "CastToUInt4")
_NEVER_FOLDED = ("Loop", "Const", "Constant", "Identity", "If", "DequantizeLinear")


@dataclass(frozen=True, kw_only=True)
class FlatNode:
    """One node after inlining. Values of inlined functions are prefixed like the nodes."""

    name: str
    op_type: str
    inputs: frozenset[str]
    outputs: tuple[str, ...]


def flat_nodes(model: onnx.ModelProto) -> list[FlatNode]:
    """Nodes after inlining and folding, in topological order."""
    constants = {tensor.name for tensor in model.graph.initializer}
    kept = []
    for node in _inlined(model.graph.node, "", {}, functions_by_key(model)):
        is_constant = node.op_type in ("Constant", "Const") or (node.inputs and node.inputs <= constants)
        if is_constant:
            constants |= set(node.outputs)
        if not is_constant or node.op_type in _NEVER_FOLDED:
            kept.append(node)
    return kept


def _inlined(
    nodes: Sequence[onnx.NodeProto],
    prefix: str,
    renamed: Mapping[str, str],
    functions: Mapping[FunctionKey, onnx.FunctionProto],
) -> Iterator[FlatNode]:
    def scoped(name: str) -> str:
        return renamed.get(name, f"{prefix}{name}")

    for node in nodes:
        name = f"{prefix}{name_of(node)}"
        function = functions.get(key_of(node))
        if function and len(function.node) < _INLINE_BELOW and function.name not in _KERNEL_FUNCTIONS:
            inner = {formal: scoped(actual) for formal, actual in zip(function.input, node.input, strict=False)}
            inner |= {formal: scoped(actual) for formal, actual in zip(function.output, node.output, strict=False)}
            yield from _inlined(function.node, f"{name}/", inner, functions)
        else:
            yield FlatNode(
                name=name,
                op_type=node.op_type,
                inputs=frozenset(map(scoped, names_used(node))),
                outputs=tuple(scoped(output) for output in node.output if output),
            )
