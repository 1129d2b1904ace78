"""GELU as one kernel."""

from __future__ import annotations

import numpy as np
import pytest

from ort_sim_backend.lowering import FastGelu
from qeff_framework.lowering import RemoveUnused
from tests.lowering.graphs import lowered, op_types, parse, run, session

FORMULAS = {
    "with the error function": """
        part = Div (x, width) bent = Erf (part) raised = Add (bent, one) halved = Mul (half, raised) y = Mul (x, halved)""",
    "half of the sum": """
        cube = Pow (x, three) small = Mul (weight, cube) sum = Add (x, small) inner = Mul (root, sum) bent = Tanh (inner)
        raised = Add (bent, one) halved = Mul (half, raised) y = Mul (x, halved)""",
    "half of x, the cube as products": """
        square = Mul (x, x) cube = Mul (square, x) small = Mul (cube, weight) sum = Add (small, x) inner = Mul (sum, root)
        bent = Tanh (inner) raised = Add (one, bent) halved = Mul (x, half) y = Mul (halved, raised)""",
    "x outside": """
        square = Mul (x, x) part = Mul (square, weight) factor = Add (part, one) scaled = Mul (x, root) inner = Mul (scaled, factor)
        bent = Tanh (inner) raised = Add (bent, one) product = Mul (x, raised) y = Mul (product, half)""",
}


def formula(text: str, weight: float = 0.044715):
    constants = f"float one = {{1.0}}, float half = {{0.5}}, float three = {{3.0}}, float root = {{0.7978845608}}, float width = {{1.41421356237}}, float weight = {{{weight}}}"
    return parse(
        f"gelu (float[B, 7] v, float[7] bias) => (float[B, 7] y) <{constants}, float[B, 7] x> {{ x = Add (v, bias) {text} }}"
    )


@pytest.mark.parametrize("text", FORMULAS.values(), ids=FORMULAS)
def test_each_way_to_write_it_is_one_kernel_with_the_same_numbers(text):
    model = formula(text)
    changed = lowered(model, (FastGelu(), RemoveUnused()))
    assert op_types(changed) == ["Add", "Gelu" if "Erf" in text else "FastGelu"]
    feeds = {
        "v": np.linspace(-8, 8, 70, dtype=np.float32).reshape(10, 7),
        "bias": np.linspace(-1, 1, 7, dtype=np.float32),
    }

    expected, found = run(session(model), feeds)["y"], run(session(changed), feeds)["y"]

    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_another_function_is_left():
    assert not FastGelu()(formula(FORMULAS["half of the sum"], weight=0.05))
    assert not FastGelu()(formula(FORMULAS["with the error function"].replace("(bent, one)", "(bent, half)")))
