"""What rotations by positions have in common, however the numbers of a pair lie: a sum of two products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from qeff_framework.lowering import made_by, operand


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """``states * cosines + turned * sines``, as far as the operators say so."""

    states: ir.Value
    cosines: ir.Value
    turned: ir.Value
    sines: ir.Value


def readings(node: ir.Node) -> Iterator[Rotation]:
    """The ways of taking the operands of a node ``Add`` for those of a rotation of float32; none where it is no such sum."""
    products = [made_by(operand(node, index), "Mul") for index in (0, 1)]
    for plain, rotated in (products, products[::-1]):
        if plain is None or rotated is None:
            continue
        for states, cosines in _both_orders(plain):
            if states.dtype != ir.DataType.FLOAT:
                continue
            for turned, sines in _both_orders(rotated):
                yield Rotation(states=states, cosines=cosines, turned=turned, sines=sines)


def _both_orders(product: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    left, right = operand(product, 0), operand(product, 1)
    yield left, right
    yield right, left
