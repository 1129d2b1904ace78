"""Products with packed weights as plain products."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from qeff_framework.dialect.reference import quantized_matmul
from qeff_framework.lowering import DequantizedProducts
from tests.lowering.graphs import lowered, op_types, parse, run, session

INPUTS, OUTPUTS, BLOCKS = 40, 6, 3


def packed_products(bits: int) -> onnx_ir.Model:
    """Two products with one matrix ``[40, 6]`` in blocks of 16, of which the last one is not full."""
    width = 16 * bits // 8
    model = parse(
        f"""products (float[T, {INPUTS}] x, uint8[{OUTPUTS}, {BLOCKS}, {width}] levels, float[{OUTPUTS}, {BLOCKS}] scales,
                     uint8[{OUTPUTS}, {BLOCKS}] zeros) => (float[T, {OUTPUTS}] y) <float[T, {OUTPUTS}] a, float[T, {OUTPUTS}] b> {{
             a = qeff.QuantizedMatMul <bits: int = {bits}, input_size: int = {INPUTS}> (x, levels, scales, zeros)
             n = Neg (x)
             b = qeff.QuantizedMatMul <bits: int = {bits}, input_size: int = {INPUTS}> (n, levels, scales, zeros)
             s = Mul (a, b)
             y = Add (s, a)
           }}"""
    )
    rng = np.random.default_rng(0)
    contents = {
        "levels": rng.integers(0, 256, (OUTPUTS, BLOCKS, width), dtype=np.uint8),
        "scales": rng.standard_normal((OUTPUTS, BLOCKS), dtype=np.float32),
        "zeros": rng.integers(0, 2**bits, (OUTPUTS, BLOCKS), dtype=np.uint8),
    }
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        value.const_value = onnx_ir.tensor(contents[str(value.name)], name=value.name)
        model.graph.register_initializer(value)
    return model


def expected_of(model: onnx_ir.Model, x: np.ndarray, bits: int) -> np.ndarray:
    """What `packed_products` computes."""
    parts = [model.graph.initializers[name].const_value.numpy() for name in ("levels", "scales", "zeros")]
    first = quantized_matmul(x, *parts, bits=bits, input_size=INPUTS)
    return first - first * first


@pytest.mark.parametrize("bits", [4, 8])
def test_both_products_read_one_matrix(bits: int) -> None:
    model = packed_products(bits)
    changed = lowered(model, [DequantizedProducts()])
    assert [op for op in op_types(changed) if "MatMul" in op] == ["MatMul", "MatMul"]
    assert [name for name in changed.graph.initializers if "matrix" in name] == ["levels_matrix"]
    x = np.random.default_rng(1).standard_normal((5, INPUTS), dtype=np.float32)
    expected = expected_of(model, x, bits)
    np.testing.assert_allclose(run(session(model), {"x": x})["y"], expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(run(session(changed), {"x": x})["y"], expected, rtol=1e-4, atol=1e-3)


def test_blocks_that_are_no_constants_are_left() -> None:
    model = packed_products(4)
    scales = model.graph.initializers.pop("scales")
    scales.const_value = None
    model.graph.inputs.append(scales)
    assert not DequantizedProducts()(model)
