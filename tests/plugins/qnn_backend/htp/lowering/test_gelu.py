"""The composed form of Gelu becomes the op."""

from __future__ import annotations

import numpy as np

from qnn_backend.htp.lowering.gelu import FusedGelu
from tests.plugins.qnn_backend.htp.simulator import lowered, on_cpu, parse


def test_the_composed_form_becomes_one_op() -> None:
    model = parse(
        """gelu (float[2, 8] x) => (float[2, 8] y) <float root = {1.4142135}, float one = {1.0}, float half = {0.5}> {
            part = Div (x, root) e = Erf (part) sum = Add (e, one) factor = Mul (half, sum) y = Mul (x, factor)
        }"""
    )
    feeds = {"x": np.linspace(-3, 3, 16).reshape(2, 8).astype(np.float32)}
    fused = lowered(model, FusedGelu())
    assert [node.op_type for node in fused.graph] == ["Gelu"]
    np.testing.assert_allclose(on_cpu(fused, feeds)[0], on_cpu(model, feeds)[0], atol=1e-6)
