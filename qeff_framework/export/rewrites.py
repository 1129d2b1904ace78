"""Operations of a traced program that the translation to ONNX has no form for, in terms of ones that it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_ATEN = torch.ops.aten

#: Operators that compute ``beta * input + alpha * product``, and the operator of the product.
_SUMS_WITH_PRODUCTS: Mapping[Any, Any] = {
    _ATEN.addmm.default: _ATEN.mm.default,
    _ATEN.addmm_.default: _ATEN.mm.default,
    _ATEN.addmv.default: _ATEN.mv.default,
    _ATEN.addmv_.default: _ATEN.mv.default,
    _ATEN.addr.default: _ATEN.outer.default,
    _ATEN.addr_.default: _ATEN.outer.default,
    _ATEN.addbmm.default: _ATEN.bmm.default,
    _ATEN.addbmm_.default: _ATEN.bmm.default,
    _ATEN.baddbmm.default: _ATEN.bmm.default,
    _ATEN.baddbmm_.default: _ATEN.bmm.default,
}
_SUMMED_OVER_BATCHES = frozenset({_ATEN.addbmm.default, _ATEN.addbmm_.default})


def rewrite_untranslatable(program: torch.export.ExportedProgram) -> None:
    """Changes `program` in place; what it computes stays the same."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is _ATEN.unsqueeze.default and _is_complex(node):
            _unsqueeze_parts(graph, node)
        elif node.target is _ATEN.flatten.using_ints and _is_complex(node):
            _reshape_parts(graph, node)
        elif node.target is _ATEN.erfinv.default:
            _newton_erfinv(graph, node)
        elif node.target in (_ATEN.squeeze.dim, _ATEN.squeeze.dims):
            _squeeze_axes_of_one(graph, node)
        elif node.target in _SUMS_WITH_PRODUCTS and node.kwargs.get("beta", 1) == 0:
            _product_alone(graph, node)
    graph.lint()
    program.graph_module.recompile()


def _is_complex(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_complex()


def _unsqueeze_parts(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """A complex tensor is translated to its real and imaginary parts along one more axis at the end."""
    source, dim = node.args[0], node.args[1]
    if not isinstance(source, torch.fx.Node) or not isinstance(dim, int):
        return
    with graph.inserting_before(node):
        parts = _call(graph, _ATEN.view_as_real.default, source)
        wider = _call(graph, _ATEN.unsqueeze.default, parts, dim if dim >= 0 else dim - 1)
        result = _call(graph, _ATEN.view_as_complex.default, wider)
    _replace(graph, node, result)


def _reshape_parts(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """The same for a complex tensor that is brought into another shape of known sizes."""
    source, shape = node.args[0], node.meta["val"].shape
    if not isinstance(source, torch.fx.Node) or not all(isinstance(size, int) for size in shape):
        return
    with graph.inserting_before(node):
        parts = _call(graph, _ATEN.view_as_real.default, source)
        result = _call(graph, _ATEN.view_as_complex.default, _call(graph, _ATEN.reshape.default, parts, [*shape, 2]))
    _replace(graph, node, result)


def _squeeze_axes_of_one(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Torch leaves an axis that is longer than 1 where it is, and a traced one of symbolic size; ONNX refuses to squeeze it."""
    source, asked = node.args[0], node.args[1]
    value = source.meta.get("val") if isinstance(source, torch.fx.Node) else None
    if not isinstance(source, torch.fx.Node) or not isinstance(value, torch.Tensor):
        return
    axes: list[int] = [asked] if isinstance(asked, int) else [*asked]  # type: ignore[misc]
    kept = [axis for axis in axes if isinstance(value.shape[axis], int) and value.shape[axis] == 1]
    if value.dim() - node.meta["val"].dim() != len(kept):
        return
    if len(kept) == len(axes):
        return
    with graph.inserting_before(node):
        result = _call(graph, _ATEN.squeeze.dims, source, kept) if kept else _call(graph, _ATEN.alias.default, source)
    _replace(graph, node, result)


def _product_alone(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Without a factor torch does not read the input, which may be memory that was never written; ONNX multiplies it by 0."""
    target: Any = node.target
    changed, left, right = node.args
    with graph.inserting_before(node):
        result = _call(graph, _SUMS_WITH_PRODUCTS[target], left, right)
        if target in _SUMMED_OVER_BATCHES:
            result = _call(graph, _ATEN.sum.dim_IntList, result, [0])
        alpha = node.kwargs.get("alpha", 1)
        if alpha != 1:
            result = _call(graph, _ATEN.mul.Scalar, result, alpha)
        if target._schema.is_mutable:  # noqa: SLF001
            result = _call(graph, _ATEN.copy_.default, changed, result)
    _replace(graph, node, result)


def _newton_erfinv(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """The inverse of erf by its elementary approximation, then two Newton steps: erf of the result is `x` to rounding.

    The start is ``sign(x) * sqrt(sqrt(b^2 - l/a) - b)`` with ``l = ln(1 - x^2)``, ``a = 0.147``, ``b = 2/(pi a) + l/2``: 0.002
    off at most (S. Winitzki, "A handy approximation for the error function and its inverse", 2008).
    """
    x = node.args[0]
    if not isinstance(x, torch.fx.Node):
        return
    a, two_over_sqrt_pi = 0.147, 1.1283791670955126
    with graph.inserting_before(node):

        def call(op: Any, *args: Any) -> torch.fx.Node:
            return _call(graph, op, *args)

        log = call(_ATEN.log.default, call(_ATEN.rsub.Scalar, call(_ATEN.mul.Tensor, x, x), 1.0))
        b = call(_ATEN.add.Scalar, call(_ATEN.mul.Scalar, log, 0.5), 2.0 / (torch.pi * a))
        inner = call(_ATEN.sub.Tensor, call(_ATEN.mul.Tensor, b, b), call(_ATEN.mul.Scalar, log, 1.0 / a))
        size = call(_ATEN.sqrt.default, call(_ATEN.sub.Tensor, call(_ATEN.sqrt.default, inner), b))
        guess = call(_ATEN.mul.Tensor, call(_ATEN.sign.default, x), size)
        for _ in range(2):
            error = call(_ATEN.sub.Tensor, call(_ATEN.erf.default, guess), x)
            square = call(_ATEN.neg.default, call(_ATEN.mul.Tensor, guess, guess))
            slope = call(_ATEN.mul.Scalar, call(_ATEN.exp.default, square), two_over_sqrt_pi)
            guess = call(_ATEN.sub.Tensor, guess, call(_ATEN.div.Tensor, error, slope))
    _replace(graph, node, guess)


def _call(graph: torch.fx.Graph, op: Any, *args: Any) -> torch.fx.Node:
    node = graph.call_function(op, args)
    values = [arg.meta["val"] if isinstance(arg, torch.fx.Node) else arg for arg in args]
    node.meta["val"] = op(*values)
    return node


def _replace(graph: torch.fx.Graph, node: torch.fx.Node, result: torch.fx.Node) -> None:
    result.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(result)
    graph.erase_node(node)
