"""The encoder moves into a branch that a step without tokens for it does not take."""

from __future__ import annotations

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument as OutOfBounds

from ort_sim_backend.lowering import EncoderBranch
from qeff_framework.lowering import ScatterUpdates
from tests.lowering.graphs import lowered, op_types, parse, run, session

#: The encoder looks up an index that does not exist in a step that must not run it; `shared` is read outside as well.
GRAPH = """layer
    (int64[batch_size, seq_len] encoder_position_ids, float[batch_size, 2, seq_len, 8] hidden, int64 index,
     float[batch_size, 2, ctx_len, 8] past_key_cross)
    => (float[batch_size, 2, ctx_len, 8] past_key_cross_RetainedState, float[batch_size, 2, seq_len, 8] other)
    <float[2] table = {1.5, 2.5}>
{
    shared = Abs (hidden)
    factor = Gather (table, index)
    encoded = Mul (shared, factor)
    past_key_cross_RetainedState = qeff.KVUpdate (past_key_cross, encoded, encoder_position_ids)
    other = Neg (shared)
}"""


def feeds(positions: list[list[int]], index: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "encoder_position_ids": np.array(positions),
        "hidden": random.standard_normal((2, 2, len(positions[0]), 8), dtype=np.float32),
        "index": np.array(index),
        "past_key_cross": random.standard_normal((2, 2, 4, 8), dtype=np.float32),
    }


def test_a_step_with_tokens_equals_the_dialect_and_one_without_runs_no_encoder() -> None:
    portable = parse(GRAPH)
    changed = lowered(portable, (EncoderBranch(), ScatterUpdates()))
    # What is read outside stays outside.
    assert "If" in op_types(changed)
    assert not {"Mul", "Gather"} & set(op_types(changed))
    assert "Abs" in op_types(changed)

    reading = feeds([[0, 1, 2], [0, -1, -1]], index=1)
    expected = run(session(portable), reading)
    got = run(session(changed), reading)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value)

    with pytest.raises(OutOfBounds, match="out of data bounds"):
        run(session(portable), feeds([[-1], [-1]], index=9))
    waiting = feeds([[-1], [-1]], index=9)
    kept = run(session(changed), waiting)["past_key_cross_RetainedState"]
    np.testing.assert_array_equal(kept, waiting["past_key_cross"])


def test_a_graph_without_an_encoder_is_left_alone() -> None:
    model = parse(GRAPH.replace("encoder_position_ids", "position_ids"))
    assert not EncoderBranch()(model)
