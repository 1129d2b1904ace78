"""RMS norms that are composed of single ops, and multiplied with a weight, become ``RMSNormalization``.

The compiler finds the pattern by itself and puts its kernel there, which gets tensors with more than one axis larger than 1 in
front of the last one wrong (see `norm_rows`): by the whole size of the result. Norms that are a module of their own are ops of
the dialect already; these are what is left: norms in the middle of a function, or with a weight that others read too.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from qeff_framework.lowering import (
    GraphEditor,
    GraphPass,
    RemoveUnused,
    constant_array,
    is_weight,
    made_by,
    nodes_of,
    operand,
    static_shape,
)


class ComposedNorms(GraphPass):
    """Rewrites ``x * (1 / sqrt(mean(x^2) + epsilon)) * weight``. Put it in front of `NormRows`."""

    name = "ComposedNorms"
    version = "1"

    def run(self, model: ir.Model) -> bool:
        """Says whether a norm was rewritten."""
        changed = False
        for node in nodes_of(model, "Mul"):
            for weight, unit in ((operand(node, 0), operand(node, 1)), (operand(node, 1), operand(node, 0))):
                found = _normed(unit) if _is_channel_weight(weight, unit) else None
                if found is not None:
                    hidden, epsilon = found
                    edit = GraphEditor(model, node)
                    edit.replace(node, edit.op("RMSNormalization", hidden, weight, axis=-1, epsilon=epsilon))
                    changed = True
                    break
        if changed:
            RemoveUnused()(model)
        return changed


def _is_channel_weight(weight: ir.Value, unit: ir.Value) -> bool:
    shape = static_shape(unit)
    return (
        is_weight(weight) and weight.dtype == ir.DataType.FLOAT and bool(shape) and static_shape(weight) == shape[-1:]  # type: ignore[index]
    )


def _normed(unit: ir.Value) -> tuple[ir.Value, float] | None:
    """What `unit` is the norm of, and the epsilon."""
    product = made_by(unit, "Mul")
    if product is None:
        return None
    for hidden, factor in (product.inputs, reversed(product.inputs)):
        epsilon = None if hidden is None or factor is None else _epsilon(hidden, factor)
        if epsilon is not None and hidden is not None:
            return hidden, epsilon
    return None


def _epsilon(hidden: ir.Value, factor: ir.Value) -> float | None:
    """The epsilon if `factor` is ``1 / sqrt(mean(hidden^2) + epsilon)`` over the last axis."""
    value: ir.Value | None = factor
    for op_type in ("Reciprocal", "Sqrt"):
        node = None if value is None else made_by(value, op_type)
        value = None if node is None else node.inputs[0]
    total = None if value is None else made_by(value, "Add")
    if total is None:
        return None
    for mean, constant in (total.inputs, reversed(total.inputs)):
        epsilon = constant_array(constant) if constant is not None and _is_single(constant) else None
        if epsilon is not None and mean is not None and _is_mean_of_squares(mean, hidden):
            return float(epsilon.item())
    return None


def _is_single(value: ir.Value) -> bool:
    shape = static_shape(value)
    return shape is not None and math.prod(shape) == 1


def _is_mean_of_squares(mean: ir.Value, hidden: ir.Value) -> bool:
    node = made_by(mean, "ReduceMean")
    if node is None or not node.attributes.get_int("keepdims", 1) or len(node.inputs) < 2:
        return False
    axes, rank = constant_array(node.inputs[1]), len(hidden.shape or ())
    if axes is None or axes.tolist() not in ([-1], [rank - 1]):
        return False
    squares = operand(node, 0)
    if (power := made_by(squares, "Pow")) is not None:
        exponent = constant_array(power.inputs[1])
        return power.inputs[0] is hidden and exponent is not None and exponent.size == 1 and exponent.item() == 2
    product = made_by(squares, "Mul")
    return product is not None and product.inputs[0] is hidden and product.inputs[1] is hidden
