"""Ops on booleans and integers, in forms that the compiler has."""

from __future__ import annotations

import numpy as np

from qnn_backend.htp.lowering.boolean_equality import BooleanEquality
from qnn_backend.htp.lowering.boolean_pads import BooleanPads
from qnn_backend.htp.lowering.integer_negation import IntegerNegation
from tests.plugins.qnn_backend.htp.simulator import lowered, on_cpu, parse


def test_booleans_are_compared_by_xor_and_numbers_as_they_are() -> None:
    model = parse(
        """equality (float[4] x, float[4] y) => (bool[4] signs, bool[4] numbers) <float zero = {0.0}> {
            left = Less (x, zero) right = Less (y, zero) signs = Equal (left, right) numbers = Equal (x, y)
        }"""
    )
    feeds = {"x": np.array([-1, -1, 1, 2], np.float32), "y": np.array([-2, 1, -1, 2], np.float32)}
    rewritten = lowered(model, BooleanEquality())
    assert [node.op_type for node in rewritten.graph].count("Equal") == 1
    for found, wanted in zip(on_cpu(rewritten, feeds), on_cpu(model, feeds), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_booleans_are_padded_as_numbers_and_integers_are_negated_by_subtraction() -> None:
    model = parse(
        """padding (bool[4] flags, int64[4] counts, float[4] x) => (bool[6] right, bool[5] left, int64[4] less, float[4] down) <
            int64[2] behind = {0, 2}, int64[2] front = {1, 0}, bool yes = {1}
        > {
            right = Pad (flags, behind) left = Pad (flags, front, yes) less = Neg (counts) down = Neg (x)
        }"""
    )
    flags, counts = np.array([True, False, True, False]), np.array([1, -2, 0, 7])
    feeds = {"flags": flags, "counts": counts, "x": np.array([1, -2, 0, 7], np.float32)}
    rewritten = lowered(model, BooleanPads(), IntegerNegation())
    assert [node.op_type for node in rewritten.graph].count("Neg") == 1
    for found, wanted in zip(on_cpu(rewritten, feeds), on_cpu(model, feeds), strict=True):
        np.testing.assert_array_equal(found, wanted)
