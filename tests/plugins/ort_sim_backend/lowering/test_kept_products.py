"""Products with packed weights on ONNX Runtime's kernel for them."""

from __future__ import annotations

import numpy as np
import pytest

from ort_sim_backend.lowering import passes
from tests.lowering.graphs import lowered, op_types, run, session
from tests.lowering.test_dequantized_products import INPUTS, expected_of, packed_products


@pytest.mark.parametrize("bits", [4, 8])
def test_the_levels_are_those_of_the_graph(bits: int) -> None:
    model = packed_products(bits)
    changed = lowered(model, passes())
    assert [op for op in op_types(changed) if "MatMul" in op] == ["MatMulNBits", "MatMulNBits"]
    assert sorted(changed.graph.initializers) == ["levels", "scales", "zeros" if bits == 8 else "zeros_packed"]
    x = np.random.default_rng(1).standard_normal((5, INPUTS), dtype=np.float32)
    np.testing.assert_allclose(run(session(changed), {"x": x})["y"], expected_of(model, x, bits), rtol=1e-4, atol=1e-3)
