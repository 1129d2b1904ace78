"""Attention with a mask that hides nothing as one kernel."""

from __future__ import annotations

import numpy as np
import pytest

from ort_sim_backend.lowering import MultiHeadAttention
from qeff_framework.lowering import RemoveUnused
from tests.lowering.graphs import lowered, op_types, parse, run, session

_LAYER = (
    "layer (float[2, {heads}, 5, 8] query, float[2, {key_heads}, 7, 8] key, float[2, {key_heads}, 7, 6] value)"
    " => (float[2, {heads}, 5, 6] attended)"
    " <bool[1] seen = {{{seen}}}, int64[4] sizes = {{1, 1, 5, 7}}> {{ mask = Expand (seen, sizes)"
    " attended = qeff.Attention <scale: float = {scale}, softcap: float = {softcap}> (query, key, value, mask) }}"
)
_SIZES = {"heads": 4, "key_heads": 4, "seen": 1, "scale": 0.4, "softcap": 0.0}


def test_numbers_equal_the_dialect() -> None:
    model = parse(_LAYER.format(**_SIZES))
    changed = lowered(model, (MultiHeadAttention(), RemoveUnused()))
    assert sorted(op_types(changed)) == ["MultiHeadAttention", *["Reshape"] * 4, *["Transpose"] * 4]
    random = np.random.default_rng(0)
    feeds = {
        name: random.standard_normal(shape).astype(np.float32) * 3
        for name, shape in {"query": (2, 4, 5, 8), "key": (2, 4, 7, 8), "value": (2, 4, 7, 6)}.items()
    }
    expected = run(session(model), feeds)["attended"]
    np.testing.assert_allclose(run(session(changed), feeds)["attended"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("different", [{"seen": 0}, {"key_heads": 2}, {"softcap": 2.0}, {"scale": 0.0}], ids=str)
def test_what_the_kernel_has_not_is_left(different: dict[str, float]) -> None:
    model = parse(_LAYER.format(**{**_SIZES, **different}))
    assert not MultiHeadAttention()(model)
