"""Products with a constant matrix, and their weights in fewer bits."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from qeff_framework.lowering import CompressedProducts, RemoveUnused, WeightBlocks
from tests.lowering.graphs import lowered, op_types, parse, run, session, with_constants

LENGTH, COLUMNS = 48, 24

FORMS = {
    "MatMul": (f"float[{LENGTH}, {COLUMNS}] weight", "y = MatMul (x, weight)"),
    "transposed": (f"float[{COLUMNS}, {LENGTH}] weight", "w = Transpose <perm = [1, 0]> (weight) y = MatMul (x, w)"),
    "Gemm": (f"float[{LENGTH}, {COLUMNS}] weight, float[{COLUMNS}] bias", "y = Gemm (x, weight, bias)"),
    "Gemm transB": (f"float[{COLUMNS}, {LENGTH}] weight", "y = Gemm <transB = 1> (x, weight)"),
}


def compressed(bits: int, size: int = 32, *, fitted: bool = False) -> CompressedProducts:
    return CompressedProducts(lambda length: WeightBlocks(bits=bits, size=size, fitted=fitted))


def product(constants: str, nodes: str) -> onnx_ir.Model:
    """A product of one input with random constants."""
    return with_constants(
        parse(f"product (float[T, {LENGTH}] x, {constants}) => (float[T, {COLUMNS}] y) {{ {nodes} }}")
    )


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.01), (4, 0.12)])
@pytest.mark.parametrize("form", FORMS)
def test_numbers_are_near_and_the_float_weight_is_gone(form, bits, tolerance):
    model = product(*FORMS[form])
    changed = lowered(model, (compressed(bits), RemoveUnused()))
    assert op_types(changed) == ["MatMulNBits", "Add"][: 2 if form == "Gemm" else 1]
    assert "weight" not in changed.graph.initializers
    feeds = {"x": np.random.default_rng(1).standard_normal((5, LENGTH)).astype(np.float32)}

    expected, found = run(session(model), feeds)["y"], run(session(changed), feeds)["y"]

    difference = np.sqrt(np.square(found - expected).mean()) / expected.std()
    assert 0 < difference < tolerance


def test_fitted_blocks_reach_the_kernel_with_their_zeros():
    constants, nodes = FORMS["MatMul"]
    model = product(constants, nodes)
    weight = model.graph.initializers["weight"]
    weight.const_value = onnx_ir.tensor(
        weight.const_value.numpy() + np.float32(2), name="weight"
    )  # on one side of zero
    feeds = {"x": np.random.default_rng(1).standard_normal((5, LENGTH)).astype(np.float32)}
    expected = run(session(model), feeds)["y"]

    errors = {}
    for fitted in (True, False):
        # Three blocks in a row: the last byte of zeros holds one.
        changed = lowered(model, (compressed(4, 16, fitted=fitted), RemoveUnused()))
        errors[fitted] = float(np.square(run(session(changed), feeds)["y"] - expected).mean())

    assert 0 < errors[True] < 0.6 * errors[False]


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Gemm <alpha = 2.0> (x, weight)",
        "w = Identity (x) u = Transpose (weight) v = Transpose (u) y = MatMul (w, v)",
    ],
)
def test_other_products_stay(nodes):
    model = product(FORMS["MatMul"][0], nodes)

    assert not compressed(8)(model)


def test_graphs_that_share_a_weight_share_its_blocks():
    models = [product(*FORMS["MatMul"]) for _ in range(2)]
    first, second = (model.graph.initializers["weight"] for model in models)
    second.const_value = first.const_value
    lowering = compressed(8)

    assert all(lowering(model) for model in models)

    names = ("weight_blocks", "weight_blocks_scales")
    for left, right in ([model.graph.initializers[name].const_value for model in models] for name in names):
        assert left is right


def test_a_left_side_of_another_rank_gets_rank_3():
    model = with_constants(
        parse(
            f"product (float[2, 3, 4, {LENGTH}] x, {FORMS['MatMul'][0]})"
            f" => (float[2, 3, 4, {COLUMNS}] y) {{ y = MatMul (x, weight) }}"
        )
    )
    changed = lowered(
        model, (CompressedProducts(lambda length: WeightBlocks(bits=8, size=16), ranked=True), RemoveUnused())
    )
    assert op_types(changed) == ["Reshape", "MatMulNBits", "Reshape"]
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 3, 4, LENGTH)).astype(np.float32)}
    np.testing.assert_allclose(run(session(changed), feeds)["y"], run(session(model), feeds)["y"], atol=0.2)
