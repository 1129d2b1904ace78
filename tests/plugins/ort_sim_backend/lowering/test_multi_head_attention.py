"""Attention of the tokens of a step with each other as one kernel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
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


_TOKENS = (
    "layer (float[B, S, 4, 8] q, float[B, S, 4, 8] k, float[B, S, 4, 6] v, {dtype}[{rows}, {heads}, S, S] mask)"
    " => (float[B, 4, S, 6] attended) {{ query = Transpose <perm = [0, 2, 1, 3]> (q) key = Transpose <perm = [0, 2, 1, 3]> (k)"
    " value = {value} attended = qeff.{op} <scale: float = 0.4> (query, key, value, mask) }}"
)
_TURNED = "Transpose <perm = [0, 2, 1, 3]> (v)"


@pytest.mark.parametrize(
    ("op", "rows", "heads"), [("Attention", "B", 1), ("Attention", 1, 4), ("AttentionBias", "B", 4)], ids=str
)
def test_a_mask_and_a_bias_hide_what_the_dialect_hides(op: str, rows: int | str, heads: int) -> None:
    is_bias = op == "AttentionBias"
    text = _TOKENS.format(op=op, rows=rows, heads=heads, dtype="float" if is_bias else "bool", value=_TURNED)
    model = parse(text)
    for node in model.graph:
        for value in node.outputs:
            # An export knows it.
            value.type, value.shape = (
                ir.TensorType(ir.DataType.FLOAT),
                ir.Shape(("B", 4, "S", 6 if value.name == "value" else 8)),
            )
    changed = lowered(model, (MultiHeadAttention(), RemoveUnused()))
    assert op_types(changed).count("MultiHeadAttention") == 1
    # Only the result is turned.
    assert op_types(changed).count("Transpose") == 1
    random = np.random.default_rng(0)
    feeds = {
        name: random.standard_normal((2, 5, 4, d)).astype(np.float32) * 3 for name, d in (("q", 8), ("k", 8), ("v", 6))
    }
    sees = random.random((2 if rows == "B" else 1, heads, 5, 5)) < 0.5
    # A slot that no token sees, with a value that no number times is zero; and a token that sees nothing.
    sees[..., 3], sees[:, :, 1] = False, False
    feeds["v"][:, 3] = np.inf
    hidden = np.array([-np.inf, np.finfo(np.float32).min], np.float32)[random.integers(0, 2, sees.shape)]
    feeds["mask"] = np.where(sees, random.standard_normal(sees.shape).astype(np.float32), hidden) if is_bias else sees
    expected = run(session(model), feeds)["attended"]
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(run(session(changed), feeds)["attended"], expected, rtol=1e-5, atol=1e-5)


def test_values_in_the_order_of_a_cache_are_left() -> None:
    text = _TOKENS.replace("float[B, S, 4, 6] v", "float[B, 4, S, 6] v")
    model = parse(text.format(op="Attention", rows="B", heads=1, dtype="bool", value="Identity (v)"))
    for node in model.graph:
        for value in node.outputs:
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(("B", 4, "S", 8))
    assert not MultiHeadAttention()(model)
