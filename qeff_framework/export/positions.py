"""Refuses causal LMs that number tokens by their index in the step instead of by the positions that they are given.

Such a model is right when a whole prompt is one step, and silently wrong with chunks, padding and decoding. The
traced program shows
it: values that vary along the token axis and come from no input, only from the size of that axis.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.export.graph_signature import InputKind

from qeff_framework.errors import UnsupportedModelError

#: Ops whose result varies along an axis although their arguments do not.
_COUNTING = (torch.ops.aten.arange, torch.ops.aten.cumsum, torch.ops.aten.tril, torch.ops.aten.triu)
#: Ops whose result is one number for all tokens of all rows, where it has no axes.
_REDUCING = (torch.ops.aten.max, torch.ops.aten.amax, torch.ops.aten.min, torch.ops.aten.amin, torch.ops.aten.sum)


def require_given_positions(program: torch.export.ExportedProgram) -> None:
    """Raises `UnsupportedModelError` if the outputs depend on tokens' places in the step."""
    node = token_counting(program)
    if node is not None:
        raise UnsupportedModelError(
            "it numbers the tokens by their index in the step instead of by position_ids, "
            f"so prompts could not be split into steps{_where(node)}"
        )


def running_count(program: torch.export.ExportedProgram) -> torch.fx.Node | None:
    """The first count along the tokens of the step, of what the tokens are; `None` if outputs depend on none."""
    user_inputs = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    seq = next(node for node in program.graph.nodes if node.name == user_inputs[0]).meta["val"].shape[1]
    for node in _used(program.graph):
        if getattr(node.target, "overloadpacket", None) is torch.ops.aten.cumsum and _has_axis(node, seq):
            return node
    return None


def require_no_running_count(program: torch.export.ExportedProgram) -> None:
    """Raises `UnsupportedModelError` if positions are counted along the tokens of the step, from what the tokens are."""
    node = running_count(program)
    if node is not None:
        raise UnsupportedModelError(
            f"its decoder counts along the tokens of the step, so every step would begin at the start{_where(node)}"
        )


def require_no_text_length(program: torch.export.ExportedProgram) -> None:
    """Raises `UnsupportedModelError` if the length of the text is taken from the greatest position of the step. Input 1 is
    ``position_ids [B, S]``.
    """
    user_inputs = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    positions = next(node for node in program.graph.nodes if node.name == user_inputs[1])
    fed = _computed_from({positions}, program.graph)
    for node in _used(program.graph):
        packet = getattr(node.target, "overloadpacket", None)
        value = node.meta.get("val")
        if packet in _REDUCING and node in fed and isinstance(value, torch.Tensor) and value.dim() == 0:
            raise UnsupportedModelError(
                "it takes the length of the text from the greatest position of the step, which differs from chunk to chunk of a "
                f"prompt{_where(node)}"
            )


def token_counting(program: torch.export.ExportedProgram) -> torch.fx.Node | None:
    """The first value that numbers the tokens of a step by their index, `None` if outputs depend on none. Input 0 is
    ``input_ids [B, S]``.
    """
    user_inputs = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    nodes = {node.name: node for node in program.graph.nodes}
    seq = nodes[user_inputs[0]].meta["val"].shape[1]
    if not isinstance(seq, torch.SymInt):
        return None
    fed = _computed_from({nodes[name] for name in user_inputs}, program.graph)
    for node in _used(program.graph):
        if node in fed or not _has_axis(node, seq):
            continue
        if getattr(node.target, "overloadpacket", None) in _COUNTING or _slices_a_table(node, seq, program):
            return node
    return None


def _has_axis(node: torch.fx.Node, seq: torch.SymInt) -> bool:
    """Whether an axis of the node's value is as long as the step, give or take a constant; not, say, batch times as long."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return False
    # A size is an int or a SymInt, which torch's annotations do not say.
    sizes: list[Any] = [size for size in value.shape if type(size) is not int]
    return any((size.node.expr - seq.node.expr).is_number for size in sizes)


def _computed_from(sources: set[torch.fx.Node], graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """The nodes whose values depend on the contents of `sources`. Sizes are no contents."""
    found = set(sources)
    for node in graph.nodes:
        carries_contents = isinstance(node.meta.get("val"), torch.Tensor) or node.target is operator.getitem
        if carries_contents and any(argument in found for argument in node.all_input_nodes):
            found.add(node)
    return found


def _used(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    """The nodes that an output needs."""
    needed: set[torch.fx.Node] = set()
    pending = [node for node in graph.nodes if node.op == "output"]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend(node.all_input_nodes)
    return [node for node in graph.nodes if node in needed]


def _slices_a_table(node: torch.fx.Node, seq: torch.SymInt, program: torch.export.ExportedProgram) -> bool:
    """Whether the node cuts as many rows as there are tokens out of a table whose rows differ."""
    if getattr(node.target, "overloadpacket", None) is not torch.ops.aten.slice:
        return False
    source = node.args[0]
    if not isinstance(source, torch.fx.Node) or _has_axis(source, seq):
        return False
    table = _buffer(source, program)
    return table is None or bool((table != table.reshape(-1)[0]).any())


def _buffer(node: torch.fx.Node, program: torch.export.ExportedProgram) -> torch.Tensor | None:
    """The buffer or constant that a placeholder stands for; `None` for parameters and computed tables."""
    signature = program.graph_signature
    if node.name in signature.inputs_to_lifted_tensor_constants:
        return _real(program.constants[signature.inputs_to_lifted_tensor_constants[node.name]])
    name = signature.inputs_to_buffers.get(node.name)
    if name is None:
        return None
    return _real(program.state_dict[name] if name in program.state_dict else program.constants[name])


def _real(value: Any) -> torch.Tensor | None:
    return value if isinstance(value, torch.Tensor) and value.numel() else None


def _where(node: torch.fx.Node) -> str:
    """The module that does it, for the message."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values() if path]
    return f" (in {paths[-1].removeprefix('model.')})" if paths else ""
