"""What only one token of each row is asked for is computed for that token."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ort_sim_backend.lowering import LastTokens
from qeff_framework.lowering import RemoveUnused
from tests.lowering.graphs import lowered, op_types, parse, run, session

LAYER = """
layer (float[B, S, 8] attended, float[B, S, 4] before, int64[B, S] position_ids, float[8, 4] out, float[4, 6] up, float[6, 4] down,
       float[4] weight) => (float[B, 1, 4] logits, float[B, S, 8] kept)
<int64[1] zero = {0}, int64[2] axes = {1, 2}, int64[1] axis = {1}, int64[3] sizes = {1, 1, 4}, float one = {1.0},
 float[B, S, 8] seen, float[B, S, 4] projected, float[B, S, 4] sum, float[B, S, 4] normed, float[B, S, 6] wide, float[B, S, 6] bent,
 float[B, S, 4] narrow, float[B, S, 4] tokens, float[B, S, 4] double, int64[B, 1, 1] place>
{
    seen = Abs (attended)
    kept = Neg (seen)
    projected = MatMul (seen, out)
    sum = Add (before, projected)
    normed = LayerNormalization <axis = -1> (sum, weight)
    wide = MatMul (normed, up)
    bent = Tanh (wide)
    narrow = MatMul (bent, down)
    double = Mul (sum, one)
    tokens = Add (double, narrow)
    last = ArgMax <axis = 1, keepdims = 0> (position_ids)
    place = Unsqueeze (last, axes)
    places = Expand (place, sizes)
    logits = GatherElements <axis = 1> (tokens, places)
}
"""


def graph(text: str = LAYER) -> ir.Model:
    model = parse(text)
    random = np.random.default_rng(0)
    for value in list(model.graph.inputs)[3:]:
        model.graph.inputs.remove(value)
        content = random.standard_normal(tuple(value.shape.numpy())).astype(np.float32)
        value.const_value = ir.tensor(content, name=value.name)
        model.graph.register_initializer(value)
    return model


def test_products_behind_the_attention_get_one_token_of_each_row() -> None:
    model = graph()
    changed = lowered(model, (LastTokens(), RemoveUnused()))

    assert not {"GatherElements", "Expand"} & {*op_types(changed)}
    # What comes in is chosen: the attention's result and the residual. No product is in front of that.
    assert op_types(changed).count("GatherND") == 2
    order = op_types(changed)
    assert max(place for place, kind in enumerate(order) if kind == "GatherND") < order.index("MatMul")
    random = np.random.default_rng(1)
    feeds = {
        "attended": random.standard_normal((3, 5, 8)).astype(np.float32),
        "before": random.standard_normal((3, 5, 4)).astype(np.float32),
        # Padding behind the tokens, and a row of padding.
        "position_ids": np.array([[4, 5, 6, -1, -1], [0, 1, 2, 3, 4], [-1] * 5]),
    }
    expected, found = run(session(model), feeds), run(session(changed), feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("value", "chosen"), [("sum", 2), ("tokens", 0)])
def test_what_is_read_for_all_tokens_is_computed_for_all(value: str, chosen: int) -> None:
    text = LAYER.replace("float[B, S, 8] kept)", "float[B, S, 8] kept, float[B, S, 4] all)").replace(
        "last = ArgMax", f"all = Neg ({value}) last = ArgMax"
    )
    model = graph(text)
    changed = lowered(model, (LastTokens(), RemoveUnused()))
    assert op_types(changed).count("GatherND") == chosen
    assert ("GatherElements" in op_types(changed)) is (not chosen)
