"""Equality of booleans in ops that the compiler has."""

from __future__ import annotations

import numpy as np

from qnn_backend.htp.lowering.boolean_equality import BooleanEquality
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
