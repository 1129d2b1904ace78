"""RMSNorm as one kernel."""

from __future__ import annotations

import numpy as np
import pytest

from ort_sim_backend.lowering import SimplifiedRMSNorm
from qeff_framework.lowering import RemoveUnused
from tests.lowering.graphs import lowered, op_types, parse, run, session


# float16 squares overflow from 256 on: only a kernel that computes in float32 gives the dialect's numbers.
@pytest.mark.parametrize(("dtype", "size", "tolerance"), [("float", 1.0, 1e-6), ("float16", 400.0, 1e-3)])
def test_numbers_equal_the_dialect(dtype, size, tolerance):
    model = parse(
        f"norm ({dtype}[B, S, 96] hidden, {dtype}[96] weight) => ({dtype}[B, S, 96] normed)"
        "{ normed = qeff.RMSNorm <epsilon: float = 0.001> (hidden, weight) }"
    )
    changed = lowered(model, (SimplifiedRMSNorm(), RemoveUnused()))
    assert op_types(changed) == ["SimplifiedLayerNormalization"]
    random = np.random.default_rng(0)
    numpy_dtype = {"float": np.float32, "float16": np.float16}[dtype]
    feeds = {
        "hidden": (random.standard_normal((2, 5, 96)) * size).astype(numpy_dtype),
        "weight": random.standard_normal(96).astype(numpy_dtype),
    }
    feeds["hidden"][0, 0] *= 1e-4  # here epsilon decides

    expected = run(session(model), feeds)["normed"]
    normed = run(session(changed), feeds)["normed"]

    assert np.isfinite(expected).all()
    np.testing.assert_allclose(normed, expected, rtol=tolerance, atol=tolerance)
