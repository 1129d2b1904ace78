"""``MoE`` becomes matrix products, in one of two forms that no shape at run time chooses between.

*Gathered*: the weights of the chosen experts are gathered for each token. *Dense*: every expert sees every token, and what was
not chosen is left out. One graph serves all specializations, so one form must do; it is the one that reads fewer experts' weights
in a step of each of them: tokens times choices against all experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qeff_framework.contracts import Specialization
from qeff_framework.dialect.names import Activation, Gate
from qeff_framework.lowering.editor import GraphEditor
from qeff_framework.lowering.nodes import MoENode
from qeff_framework.lowering.passes import DialectPass
from qeff_framework.lowering.values import static_dim


class ExpertOps(DialectPass[MoENode]):
    """Lowers every mixture of experts with known sizes."""

    name = "ExpertOps"
    version = "2"
    node_type = MoENode

    def __init__(self, specializations: Sequence[Specialization]) -> None:
        self._tokens = [item.dims.get("batch_size", 1) * item.dims.get("seq_len", 1) for item in specializations]

    def lower(self, node: MoENode, edit: GraphEditor) -> ir.Value | None:
        """``[T,H]``."""
        experts, chosen = static_dim(node.up, 0), static_dim(node.expert_ids, 1)
        width, inner = static_dim(node.hidden, 1), static_dim(node.down, 1)
        if experts is None or chosen is None or width is None or inner is None:
            return None
        is_gathered = chosen * sum(self._tokens) <= experts * len(self._tokens)
        form = _Gathered(edit, node.expert_ids) if is_gathered else _Dense(edit, node.expert_ids, experts)
        projected = form.product(form.tokens(node.hidden, width), node.up, node.up_bias)
        results = form.product(_gated(edit, node.gate, projected, inner, form.rank), node.down, node.down_bias)
        weighted = form.weighted(results, node.expert_weights)
        summed = edit.op("ReduceSum", weighted, edit.int64s(form.sum_axis), keepdims=0)
        return edit.op("Reshape", summed, edit.int64s(-1, width))


class _Gathered:
    """Products of the shape ``[T,K,1,*]``."""

    sum_axis, rank = 1, 4

    def __init__(self, edit: GraphEditor, expert_ids: ir.Value) -> None:
        self._edit, self._ids = edit, expert_ids

    def tokens(self, hidden: ir.Value, width: int) -> ir.Value:
        return self._edit.op("Reshape", hidden, self._edit.int64s(-1, 1, 1, width))

    def product(self, rows: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        result = self._edit.op("MatMul", rows, self._edit.op("Gather", weight, self._ids, axis=0))
        if bias is None:
            return result
        chosen = self._edit.op("Gather", bias, self._ids, axis=0)
        return self._edit.op("Add", result, self._edit.op("Unsqueeze", chosen, self._edit.int64s(2)))

    def weighted(self, results: ir.Value, expert_weights: ir.Value) -> ir.Value:
        weights = self._edit.op("Unsqueeze", expert_weights, self._edit.int64s(2, 3))
        return self._edit.op("Mul", results, weights)


class _Dense:
    """Products of the shape ``[E,T,*]``."""

    sum_axis, rank = 0, 3

    def __init__(self, edit: GraphEditor, expert_ids: ir.Value, experts: int) -> None:
        self._edit, self._ids, self._experts = edit, expert_ids, experts

    def tokens(self, hidden: ir.Value, width: int) -> ir.Value:
        return self._edit.op("Reshape", hidden, self._edit.int64s(1, -1, width))

    def product(self, rows: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        result = self._edit.op("MatMul", rows, weight)
        if bias is None:
            return result
        return self._edit.op("Add", result, self._edit.op("Unsqueeze", bias, self._edit.int64s(1)))

    def weighted(self, results: ir.Value, expert_weights: ir.Value) -> ir.Value:
        edit = self._edit
        ids = edit.op("Unsqueeze", self._ids, edit.int64s(2))
        hits = edit.op("Equal", ids, edit.int64s(*range(self._experts)))
        column = edit.op("Unsqueeze", expert_weights, edit.int64s(2))
        spread = edit.op("Where", hits, column, edit.scalar_like(0.0, expert_weights))
        hit_numbers = edit.cast(hits, ir.DataType.INT32)
        weights, chosen = (
            edit.op("Unsqueeze", edit.op("Transpose", table, perm=(1, 0)), edit.int64s(2))
            for table in (
                edit.op("ReduceSum", spread, edit.int64s(1), keepdims=0),
                edit.op("ReduceMax", hit_numbers, edit.int64s(1), keepdims=0),
            )
        )
        # An expert that was not chosen may have overflowed, and zero times infinity is NaN.
        is_chosen = edit.cast(chosen, ir.DataType.BOOL)
        return edit.op("Where", is_chosen, edit.op("Mul", results, weights), edit.scalar_like(0.0, results))


def _gated(edit: GraphEditor, gate: Gate, projected: ir.Value, inner: int, rank: int) -> ir.Value:
    """``[...,U]`` as ``[...,I]``."""
    if not gate.gated:
        return _activated(edit, gate, projected)
    if gate.interleaved:
        pairs = edit.op("Reshape", projected, edit.int64s(*[0] * (rank - 1), inner, 2))
        opening, linear = (edit.op("Gather", pairs, edit.int64(side), axis=-1) for side in (0, 1))
    else:
        opening, linear = (
            edit.op("Slice", projected, edit.int64s(start), edit.int64s(start + inner), edit.int64s(-1))
            for start in (0, inner)
        )
    if gate.limit:
        bound, lowest = edit.scalar_like(gate.limit, projected), edit.scalar_like(-gate.limit, projected)
        opening, linear = edit.op("Min", opening, bound), edit.op("Clip", linear, lowest, bound)
    if gate.offset:
        linear = edit.op("Add", linear, edit.scalar_like(gate.offset, projected))
    return edit.op("Mul", _activated(edit, gate, opening), linear)


def _activated(edit: GraphEditor, gate: Gate, opening: ir.Value) -> ir.Value:
    def number(value: float) -> ir.Value:
        return edit.scalar_like(value, opening)

    kind = Activation(gate.activation)
    if kind == Activation.SWISH:
        steep = opening if gate.alpha == 1.0 else edit.op("Mul", opening, number(gate.alpha))
        return edit.op("Mul", opening, edit.op("Sigmoid", steep))
    if kind in (Activation.GELU, Activation.GELU_TANH):
        if kind == Activation.GELU:
            curve = edit.op("Erf", edit.op("Mul", opening, number(0.5**0.5)))
        else:
            cube = edit.op("Mul", edit.op("Mul", opening, opening), opening)
            inner = edit.op("Add", opening, edit.op("Mul", cube, number(0.044715)))
            curve = edit.op("Tanh", edit.op("Mul", inner, number(0.7978845608028654)))
        return edit.op("Mul", edit.op("Mul", opening, number(0.5)), edit.op("Add", curve, number(1.0)))
    positive = edit.op("Relu", opening)
    return positive if kind == Activation.RELU else edit.op("Mul", positive, positive)
