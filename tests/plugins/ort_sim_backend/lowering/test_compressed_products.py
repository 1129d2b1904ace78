"""Products with compressed weights."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from ort_sim_backend.lowering import CompressedProducts, RemoveUnused, passes
from ort_sim_backend.lowering.blocks import Blocks
from tests.plugins.ort_sim_backend.graphs import lowered, op_types, parse, run, session

LENGTH, COLUMNS = 48, 24

FORMS = {
    "MatMul": (f"float[{LENGTH}, {COLUMNS}] weight", "y = MatMul (x, weight)"),
    "transposed": (f"float[{COLUMNS}, {LENGTH}] weight", "w = Transpose <perm = [1, 0]> (weight) y = MatMul (x, w)"),
    "Gemm": (f"float[{LENGTH}, {COLUMNS}] weight, float[{COLUMNS}] bias", "y = Gemm (x, weight, bias)"),
    "Gemm transB": (f"float[{COLUMNS}, {LENGTH}] weight", "y = Gemm <transB = 1> (x, weight)"),
}


def product(constants: str, nodes: str) -> onnx_ir.Model:
    """A product of one input with random constants."""
    return with_constants(
        parse(f"product (float[T, {LENGTH}] x, {constants}) => (float[T, {COLUMNS}] y) {{ {nodes} }}")
    )


def with_constants(model: onnx_ir.Model) -> onnx_ir.Model:
    """Random constants in place of the inputs after the first."""
    random = np.random.default_rng(0)
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        content = random.standard_normal(tuple(value.shape.numpy())).astype(np.float32)
        value.const_value = onnx_ir.tensor(content, name=value.name)
        model.graph.register_initializer(value)
    return model


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.01), (4, 0.12)])
@pytest.mark.parametrize("form", FORMS)
def test_numbers_are_near_and_the_float_weight_is_gone(form, bits, tolerance):
    model = product(*FORMS[form])
    changed = lowered(model, (CompressedProducts(Blocks(bits=bits, size=32)), RemoveUnused()))
    assert op_types(changed) == ["MatMulNBits", "Add"][: 2 if form == "Gemm" else 1]
    assert "weight" not in changed.graph.initializers
    feeds = {"x": np.random.default_rng(1).standard_normal((5, LENGTH)).astype(np.float32)}

    expected, found = run(session(model), feeds)["y"], run(session(changed), feeds)["y"]

    difference = np.sqrt(np.square(found - expected).mean()) / expected.std()
    assert 0 < difference < tolerance


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Gemm <alpha = 2.0> (x, weight)",
        "w = Identity (x) u = Transpose (weight) v = Transpose (u) y = MatMul (w, v)",
    ],
)
def test_other_products_stay(nodes):
    model = product(FORMS["MatMul"][0], nodes)

    assert not CompressedProducts(Blocks(bits=8, size=32))(model)


def test_two_products_share_a_weight_and_the_choice_of_experts_is_left():
    mixture = parse(
        """mixture (float[T, 32] x, float[32, 4] router, float[4, 32, 64] up, float[4, 32, 32] down, float[32, 32] shared)
           => (float[T, 32] y) <float[T, 32] a, float[T, 2] weights, int64[T, 2] ids> {
             a = MatMul (x, shared)
             scores = MatMul (a, router)
             chances = Softmax (scores)
             k = Constant <value_ints = [2]> ()
             weights, ids = TopK (chances, k)
             mixed = qeff.MoE (a, ids, weights, up, down)
             y = MatMul (mixed, shared)
           }"""
    )
    model = with_constants(mixture)

    changed = lowered(model, passes("w8"))

    ops = op_types(changed)
    assert (ops.count("MatMulNBits"), ops.count("MatMul"), ops.count("QMoE")) == (2, 1, 1)
    assert sorted(name for name in changed.graph.initializers if "shared" in name) == [
        "shared_blocks",
        "shared_blocks_scales",
    ]
    feeds = {"x": np.random.default_rng(1).standard_normal((6, 32)).astype(np.float32)}
    expected, found = run(session(model), feeds)["y"], run(session(changed), feeds)["y"]
    assert 0 < np.sqrt(np.square(found - expected).mean()) / expected.std() < 0.05
