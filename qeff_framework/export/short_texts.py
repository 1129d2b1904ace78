"""What only longer texts than a program's context need is removed: the second set of frequencies of LongRoPE, for instance.

A program whose `ctx_len` is within the limit at which rotary frequencies change computes one set of them, as if the model had no
other, and has no input for the length of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from qeff_framework.contracts import PROMPT_LENGTHS, ExportedModel

#: Ops between the lengths of the tokens and the comparison with a limit, and between that and the selections by it.
_KEEPING_LENGTHS = ("Max", "Add", "Cast", "Unsqueeze", "Expand")
_KEEPING_TRUTH = ("Unsqueeze", "Expand", "Identity")


class ShortTexts:
    """Takes the branch for short texts where the context holds no others."""

    name = "ShortTexts"
    version = "1"

    def __init__(self, ctx_len: int) -> None:
        self._ctx_len = ctx_len

    def __call__(self, model: ir.Model) -> bool:
        """Returns whether every branch for longer texts was removed, and the input with them."""
        lengths = next((value for value in model.graph.inputs if value.name == PROMPT_LENGTHS), None)
        if lengths is None:
            return False
        comparisons = _reached(lengths, _KEEPING_LENGTHS, "Greater")
        if not comparisons or any(self._may_be_true(node) for node in comparisons):
            return False
        for comparison in comparisons:
            for selection in _reached(comparison.outputs[0], _KEEPING_TRUTH, "Where"):
                _take_second(selection)
        common_passes.RemoveUnusedNodesPass()(model)
        if lengths.uses():
            raise ValueError(f"{PROMPT_LENGTHS} is read by more than the comparisons with the limits of short texts")
        model.graph.inputs.remove(lengths)
        return True

    def _may_be_true(self, comparison: ir.Node) -> bool:
        limit = ir.convenience.get_const_tensor(comparison.inputs[1]) if comparison.inputs[1] is not None else None
        return limit is None or int(limit.numpy().item()) < self._ctx_len


def _take_second(selection: ir.Node) -> None:
    """Makes a ``Where`` whose condition is false its second value."""
    second, result = selection.inputs[2], selection.outputs[0]
    if result.is_graph_output():  # It must keep its name.
        selection.op_type = "Identity"
        selection.replace_input_with(0, second)
        selection.resize_inputs(1)
    elif second is not None:
        result.replace_all_uses_with(second)


def without_prompt_lengths(exported: ExportedModel) -> ExportedModel:
    """The description of an export whose graph `ShortTexts` has changed."""
    return replace(exported, inputs=tuple(spec for spec in exported.inputs if spec.name != PROMPT_LENGTHS))


def _reached(value: ir.Value, through: Sequence[str], wanted: str) -> list[ir.Node]:
    """The nodes of type `wanted` that read `value` as their first input, itself or by way of nodes of the types `through`."""
    found: dict[ir.Node, None] = {}
    pending = [value]
    while pending:
        current = pending.pop()
        for node, index in current.uses():
            if node.op_type == wanted and index == 0:
                found[node] = None
            elif node.op_type in through:
                pending.extend(node.outputs)
    return list(found)
