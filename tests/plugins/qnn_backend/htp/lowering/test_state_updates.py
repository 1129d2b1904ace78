"""Only a state that is written at the step's positions may leave the graph in parts: the session writes there."""

from __future__ import annotations

import onnx.parser
import onnx_ir
import pytest

from qeff_framework.plugin_api import CompileError
from qnn_backend.htp.lowering.state_updates import StateUpdates, updated_states


def model(positions: str) -> onnx_ir.Model:
    """One cache of 8 slots, written at `at`, which `positions` computes."""
    return onnx_ir.serde.deserialize_model(
        onnx.parser.parse_model(
            f"""<ir_version: 10, opset_import: ["": 18, "qeff": 1]>
            g (int64[1, 2] position_ids, int64[1, 2] others, float[1, 1, 8, 4] past, float[1, 1, 2, 4] new)
            => (float[1, 1, 8, 4] past_RetainedState) <int64[2] shape = {{1, 2}}, int64 one = {{1}}> {{
                {positions} past_RetainedState = qeff.KVUpdate (past, new, at)
            }}"""
        )
    )


@pytest.mark.parametrize(
    "positions",
    ["at = Identity (position_ids)", "flat = Reshape (position_ids, shape) at = Cast <to = 7> (flat)"],
    ids=["as they are", "reshaped and cast"],
)
def test_the_new_part_leaves_the_graph(positions: str) -> None:
    graph = model(positions)
    assert StateUpdates()(graph)
    assert updated_states(graph) == ["past"]
    [output] = graph.graph.outputs
    assert (output.name, list(output.shape or ())) == ("past_RetainedState", [1, 1, 2, 4])


@pytest.mark.parametrize(
    "positions",
    ["at = Sub (position_ids, one)", "at = Identity (others)", "at = Identity (shape)"],
    ids=["computed", "another input", "a constant"],
)
def test_a_state_written_elsewhere_is_refused(positions: str) -> None:
    with pytest.raises(
        CompileError, match="the state past is written at other slots than those of the step's position_ids"
    ):
        StateUpdates()(model(positions))
