"""Attention as matrix products computes what the dialect says."""

from __future__ import annotations

import numpy as np
import pytest

from qeff_framework.lowering import (
    FLOAT16_MIN,
    AttentionOps,
    CausalMaskOps,
    InlineDialect,
    MaskPolicy,
    RemoveUnused,
)
from tests.lowering.graphs import lowered, op_types, parse, run, session

SIZES = "float[B, {heads}, S, 8] query, float[B, 2, C, 8] key, float[B, 2, C, 6] value"
POLICIES = [
    MaskPolicy(),
    MaskPolicy(hidden=FLOAT16_MIN),
    MaskPolicy(form="add", hidden=-1e4),
    MaskPolicy(clears_unseen=False),
]


def feeds_of(heads: int, mask: np.ndarray) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    return {"query": normal(2, heads, 3, 8), "key": normal(2, 2, 5, 8), "value": normal(2, 2, 5, 6), "mask": mask}


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize(
    ("heads", "op_type"), [(2, "Attention"), (6, "Attention"), (6, "AttentionSinks"), (6, "AttentionBias")]
)
def test_numbers_equal_the_dialect(op_type: str, heads: int, policy: MaskPolicy) -> None:
    kind = "float" if op_type == "AttentionBias" else "bool"
    more, constant = (
        (", sinks", "<float[6] sinks = {-1., 0., 0.5, 2., 1., 1.}>") if op_type == "AttentionSinks" else ("", "")
    )
    model = parse(
        f"layers ({SIZES.format(heads=heads)}, {kind}[B, 1, S, C] mask) => (float[B, {heads}, S, 6] y) {constant} {{"
        f" first = qeff.{op_type} <scale: float = 0.4, softcap: float = 2.0> (query, key, value, mask{more})"
        f" second = qeff.{op_type} <scale: float = 0.3> (query, key, value, mask{more}) y = Sub (first, second) }}"
    )
    changed = lowered(model, (AttentionOps(policy), RemoveUnused()))
    assert not [node for node in changed.graph if node.domain or node.op_type == "If"]
    # Keys and values of two layers; a float bias is made once for both.
    hiding = 0 if kind == "float" else 1 if policy.form == "add" else 2
    assert op_types(changed).count("Where") == hiding + (4 if policy.clears_unseen else 0)
    bias = np.random.default_rng(1).standard_normal((2, 1, 3, 5)).astype(np.float32)
    mask = bias if kind == "float" else np.tri(3, 5, 1, dtype=bool) & np.ones((2, 1, 1, 1), bool)
    feeds = feeds_of(heads, mask)
    if policy.clears_unseen:  # What lies in a slot that no token sees plays no part.
        feeds["mask"][..., 4] = np.finfo(np.float32).min if kind == "float" else False
        feeds["key"][:, :, 4], feeds["value"][:, :, 4] = np.inf, np.nan
    np.testing.assert_allclose(run(session(changed), feeds)["y"], run(session(model), feeds)["y"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_mask_that_hides_nothing_costs_nothing(policy: MaskPolicy) -> None:
    model = parse(
        "layer (float[2, 4, 3, 8] query, float[2, 2, 5, 8] key, float[2, 2, 5, 6] value) => (float[2, 4, 3, 6] y)"
        " <bool[5] ones = {1, 1, 1, 1, 1}, int64[4] shape = {1, 1, 3, 5}>"
        " { mask = Expand (ones, shape) y = qeff.Attention <scale: float = 0.4> (query, key, value, mask) }"
    )
    changed = lowered(model, (AttentionOps(policy), RemoveUnused()))
    assert not {"Where", "Add", "ReduceMax"} & {*op_types(changed)}
    feeds = feeds_of(4, np.ones(0))
    del feeds["mask"]
    np.testing.assert_allclose(run(session(changed), feeds)["y"], run(session(model), feeds)["y"], rtol=1e-4, atol=1e-6)


def test_an_unknown_number_of_heads_keeps_the_body() -> None:
    model = parse(
        f"layer ({SIZES.format(heads='H')}, bool[B, 1, S, C] mask) => (float[B, H, S, 6] y)"
        " { y = qeff.Attention <scale: float = 0.4> (query, key, value, mask) }"
    )
    assert not AttentionOps(MaskPolicy())(model)


@pytest.mark.parametrize("dtype", ["INT64", "INT32"])
@pytest.mark.parametrize(("window", "chunk"), [(0, 0), (3, 0), (0, 4), (3, 4)])
def test_masks_equal_the_dialect(window: int, chunk: int, dtype: str) -> None:
    import onnx_ir as ir

    model = parse(
        "mask (int64[B, S] position_ids, int64[C] slots) => (bool[B, 1, S, C] seen)"
        f" {{ seen = qeff.CausalMask <window = {window}, chunk = {chunk}> (position_ids, slots) }}"
    )
    changed = lowered(model, (CausalMaskOps(ir.DataType[dtype]), InlineDialect()))
    assert not changed.functions
    feeds = {"position_ids": np.array([[4, 5, 6, 7, 8], [0, -1, -1, -1, -1]]), "slots": np.arange(9)}
    np.testing.assert_array_equal(run(session(changed), feeds)["seen"], run(session(model), feeds)["seen"])
