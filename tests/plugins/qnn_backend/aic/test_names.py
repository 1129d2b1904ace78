"""Names of inputs and outputs that the QNN tools do not change."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser
from onnx.reference import ReferenceEvaluator

from qeff_framework.contracts import StateSpec
from qnn_backend.aic.names import IdentifierNames, identifier, renamed_states

# A value inside the graph has the name that the state gets.
TEXT = """
<ir_version: 9, opset_import: ["" : 18]>
agraph (float[2] x, float[2] past) => (float[2] y, float[2] next)
{
    past_0 = Neg (x)
    y = Add (past_0, past)
    next = Identity (y)
}
"""


def model() -> ir.Model:
    result = ir.serde.deserialize_model(parser.parse_model(TEXT))
    result.graph.inputs[1].name = "past.0"
    result.graph.outputs[1].name = "past.0_RetainedState"
    return result


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("past_key.0", "past_key_0"),
        ("past_key.0_RetainedState", "past_key_0_RetainedState"),
        ("a/b c-ü", "a_b_c__"),
        ("0", "_0"),
        ("logits", "logits"),
    ],
)
def test_identifier(name: str, expected: str) -> None:
    assert identifier(name) == expected


def test_inputs_and_outputs_are_renamed_and_the_result_is_the_same() -> None:
    graph = model()
    before = ReferenceEvaluator(ir.serde.serialize_model(graph))
    x, past = np.array([1, 2], np.float32), np.array([5, 7], np.float32)
    expected = before.run(None, {"x": x, "past.0": past})
    assert IdentifierNames()(graph) is True
    after = ReferenceEvaluator(ir.serde.serialize_model(graph))
    assert [value.name for value in (*graph.graph.inputs, *graph.graph.outputs)] == [
        "x",
        "past_0",
        "y",
        "past_0_RetainedState",
    ]
    np.testing.assert_array_equal(after.run(None, {"x": x, "past_0": past}), expected)
    assert IdentifierNames()(graph) is False, "there is nothing left to rename"


def test_two_names_that_become_one_are_refused() -> None:
    graph = model()
    graph.graph.inputs[0].name = "past-0"
    with pytest.raises(ValueError, match="the same name"):
        IdentifierNames()(graph)


def test_states_are_renamed_in_the_same_way() -> None:
    state = StateSpec(input="conv.1", output="conv.1_RetainedState", kind="conv")
    assert renamed_states([state]) == (StateSpec(input="conv_1", output="conv_1_RetainedState", kind="conv"),)
