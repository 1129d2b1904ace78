"""Reshapes that undo each other are left out: 72 of the 152 of Gemma 3 270M, each a few microseconds of a decode step.

They remain where attention was lowered to a kernel that takes what a product gives as it is, heads side by side, and gives its
result so. Between them may stand transposes that undo each other.
"""

from __future__ import annotations

import onnx_ir as ir

from qeff_framework.lowering import GraphPass, made_by, operand, same_dim


class MergedReshapes(GraphPass):
    """Readers of a reshaped reshape read the first value, if it has the shape that the last one gives."""

    name = "MergedReshapes"
    version = "2"

    def run(self, model: ir.Model) -> bool:
        """Says whether a reshape was left out. Those that nothing reads any more remain for `RemoveUnused`."""
        merged = False
        for node in model.graph:
            result = node.outputs[0]
            if node.op_type != "Reshape" or node.domain or result.is_graph_output():
                continue
            source = operand(node, 0)
            while (inner := _before(source)) is not None:
                source = inner
            if _same_shape(source, result):
                result.replace_all_uses_with(source)
                merged = True
        return merged


def _before(value: ir.Value) -> ir.Value | None:
    """What has the same numbers in the same order, behind one reshape or two transposes."""
    reshape, last = made_by(value, "Reshape"), made_by(value, "Transpose")
    if reshape is not None:
        return operand(reshape, 0)
    first = None if last is None else made_by(operand(last, 0), "Transpose")
    if last is None or first is None:
        return None
    back, there = (node.attributes.get_ints("perm", ()) for node in (last, first))
    undone = len(back) == len(there) > 0 and [there[axis] for axis in back] == [*range(len(there))]
    return operand(first, 0) if undone else None


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
        return False
    return all(same_dim(one, axis, other, axis) for axis in range(len(one.shape)))
