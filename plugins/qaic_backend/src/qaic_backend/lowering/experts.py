"""``MoE`` becomes matrix products, in one of two forms that no shape at run time chooses between.

*Gathered*: the weights of the chosen experts are gathered for each token. *Dense*: every expert sees every token, and the
results of experts that it has not chosen are left out. One graph serves all specializations, so one form must do; it is the one
that reads fewer experts' weights in a step of each of them: tokens times choices against all experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qaic_backend.lowering.graph import Writer, dialect_nodes, inputs_of, number, static_dim
from qeff_framework.plugin_api import Specialization

# Numbers that the dialect gives activations.
_SWISH, _GELU, _GELU_TANH, _RELU = range(4)


class ExpertOps:
    """Lowers every mixture of experts with known sizes."""

    name = "ExpertOps"
    version = "2"

    def __init__(self, specializations: Sequence[Specialization]) -> None:
        self._tokens = [item.dims.get("batch_size", 1) * item.dims.get("seq_len", 1) for item in specializations]

    def __call__(self, model: ir.Model) -> bool:
        """Says whether a mixture was lowered."""
        lowered = False
        for node in dialect_nodes(model, "MoE", "MoEBias"):
            hidden, expert_ids, shares, up, down, *biases = inputs_of(node)
            experts, chosen, width = static_dim(up, 0), static_dim(expert_ids, 1), static_dim(hidden, 1)
            inner = static_dim(down, 1)
            if experts is None or chosen is None or width is None or inner is None:
                continue
            write = Writer()
            gathered = chosen * sum(self._tokens) <= experts * len(self._tokens)
            form = _Gathered(write, expert_ids) if gathered else _Dense(write, expert_ids, experts)
            projected = form.product(form.tokens(hidden, width), up, *biases[:1])
            results = form.product(_gate(write, node, projected, inner, form.rank), down, *biases[1:])
            shared = form.weighted(results, shares)
            summed = write.op("ReduceSum", shared, write.ints(form.sum_axis), keepdims=0)
            write.replace(node, write.op("Reshape", summed, write.ints(-1, width)))
            lowered = True
        return lowered


class _Gathered:
    """Products of the shape ``[T, K, 1, *]``."""

    sum_axis, rank = 1, 4

    def __init__(self, write: Writer, expert_ids: ir.Value) -> None:
        self._write, self._ids = write, expert_ids

    def tokens(self, hidden: ir.Value, width: int) -> ir.Value:
        return self._write.op("Reshape", hidden, self._write.ints(-1, 1, 1, width))

    def product(self, rows: ir.Value, weight: ir.Value, bias: ir.Value | None = None) -> ir.Value:
        result = self._write.op("MatMul", rows, self._write.op("Gather", weight, self._ids, axis=0))
        if bias is None:
            return result
        chosen = self._write.op("Gather", bias, self._ids, axis=0)
        return self._write.op("Add", result, self._write.op("Unsqueeze", chosen, self._write.ints(2)))

    def weighted(self, results: ir.Value, shares: ir.Value) -> ir.Value:
        return self._write.op("Mul", results, self._write.op("Unsqueeze", shares, self._write.ints(2, 3)))


class _Dense:
    """Products of the shape ``[E, T, *]``."""

    sum_axis, rank = 0, 3

    def __init__(self, write: Writer, expert_ids: ir.Value, experts: int) -> None:
        self._write, self._ids, self._experts = write, expert_ids, experts

    def tokens(self, hidden: ir.Value, width: int) -> ir.Value:
        return self._write.op("Reshape", hidden, self._write.ints(1, -1, width))

    def product(self, rows: ir.Value, weight: ir.Value, bias: ir.Value | None = None) -> ir.Value:
        result = self._write.op("MatMul", rows, weight)
        if bias is None:
            return result
        return self._write.op("Add", result, self._write.op("Unsqueeze", bias, self._write.ints(1)))

    def weighted(self, results: ir.Value, shares: ir.Value) -> ir.Value:
        """A selection leaves out the experts that a token has not chosen: they may have overflowed."""
        write = self._write
        hits = write.op("Equal", write.op("Unsqueeze", self._ids, write.ints(2)), write.ints(*range(self._experts)))
        column = write.op("Unsqueeze", shares, write.ints(2))
        spread = write.op("Where", hits, column, write.number_like(0.0, shares))
        table = write.op("ReduceSum", spread, write.ints(1), keepdims=0)
        by_expert = write.op("Unsqueeze", write.op("Transpose", table, perm=[1, 0]), write.ints(2))
        hit = write.op("Cast", hits, to=ir.DataType.FLOAT.value)
        count = write.op("ReduceMax", hit, write.ints(1), keepdims=0)
        is_chosen = write.op("Cast", write.op("Transpose", count, perm=[1, 0]), to=ir.DataType.BOOL.value)
        chosen = write.op("Unsqueeze", is_chosen, write.ints(2))
        return write.op("Where", chosen, write.op("Mul", results, by_expert), write.number_like(0.0, results))


def _gate(write: Writer, node: ir.Node, projected: ir.Value, inner: int, rank: int) -> ir.Value:
    """``[..., U]`` as ``[..., I]``."""
    if not number(node, "gated", 1):
        return _activated(write, node, projected)
    if number(node, "interleaved"):
        pairs = write.op("Reshape", projected, write.ints(*[0] * (rank - 1), inner, 2))
        opening, linear = (write.op("Gather", pairs, write.int(side), axis=-1) for side in (0, 1))
    else:
        opening, linear = (
            write.op("Slice", projected, write.ints(start), write.ints(start + inner), write.ints(-1))
            for start in (0, inner)
        )
    limit, offset = number(node, "limit"), number(node, "offset")
    if limit:
        bound, lowest = write.number_like(limit, projected), write.number_like(-limit, projected)
        opening, linear = write.op("Min", opening, bound), write.op("Clip", linear, lowest, bound)
    if offset:
        linear = write.op("Add", linear, write.number_like(offset, projected))
    return write.op("Mul", _activated(write, node, opening), linear)


def _activated(write: Writer, node: ir.Node, opening: ir.Value) -> ir.Value:
    kind = int(number(node, "activation"))

    def like(value: float) -> ir.Value:
        return write.number_like(value, opening)

    if kind == _SWISH:
        alpha = number(node, "alpha", 1.0)
        steep = opening if alpha == 1.0 else write.op("Mul", opening, like(alpha))
        return write.op("Mul", opening, write.op("Sigmoid", steep))
    if kind in (_GELU, _GELU_TANH):
        if kind == _GELU:
            curve = write.op("Erf", write.op("Mul", opening, like(0.5**0.5)))
        else:
            cube = write.op("Mul", write.op("Mul", opening, opening), opening)
            inner = write.op("Add", opening, write.op("Mul", cube, like(0.044715)))
            curve = write.op("Tanh", write.op("Mul", inner, like(0.7978845608028654)))
        return write.op("Mul", write.op("Mul", opening, like(0.5)), write.op("Add", curve, like(1.0)))
    positive = write.op("Relu", opening)
    return positive if kind == _RELU else write.op("Mul", positive, positive)
