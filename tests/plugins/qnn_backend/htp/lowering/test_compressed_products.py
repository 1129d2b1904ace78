"""Weights in blocks compute what the weights compute, up to the rounding of their bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qnn_backend.htp.lowering.compressed_products import compressed_products
from tests.plugins.qnn_backend.htp.simulator import lowered, needs_simulator, on_cpu, parse, simulate, worst


@needs_simulator
@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.01), (4, 0.12)])
def test_products_with_weights_in_blocks(bits: int, tolerance: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = parse(
        """products (float[1, 4, 64] x) => (float[1, 4, 24] y, float[4, 8] z, float[1, 4, 8] w) <int64[2] rows = {4, 64}> {
            y = MatMul (x, first) flat = Reshape (x, rows) z = Gemm <transB = 1> (flat, second, bias)
            cut = Slice (x, from, to, axis) w = MatMul (cut, odd)
        }""",
        {
            "first": rng.normal(size=(64, 24)).astype(np.float32),
            "second": rng.normal(size=(8, 64)).astype(np.float32),
            "bias": rng.normal(size=8).astype(np.float32),
            "odd": rng.normal(size=(20, 8)).astype(np.float32),
            **{name: np.array([value]) for name, value in (("from", 0), ("to", 20), ("axis", 2))},
        },
    )
    feeds = {"x": rng.normal(size=(1, 4, 64)).astype(np.float32)}
    compressed = lowered(model, compressed_products(bits))
    # A weight of 20 rows is no whole number of blocks.
    assert [node.op_type for node in compressed.graph].count("MatMulNBits") == 2
    expected = on_cpu(compressed, feeds)
    assert worst(on_cpu(model, feeds), expected) < tolerance
    assert worst(expected, simulate(compressed, feeds, tmp_path)) < 0.01
