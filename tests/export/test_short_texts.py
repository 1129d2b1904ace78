from __future__ import annotations

import onnx.checker
import onnx.parser
import onnx_ir
import pytest

from qeff_framework.contracts import TransformRequest
from qeff_framework.export.hooks import CoreHooks
from qeff_framework.export.short_texts import ShortTexts
from qeff_framework.shapes import CausalLMShapes, EncoderShapes

#: Two kinds of layers, whose frequencies change at 16 and at 24 tokens.
GRAPH = """<ir_version: 10, opset_import: ["": 18]>
rotary (int64[B, S] position_ids, int64[B, 1] prompt_lengths, float[B, S, 4] short, float[B, S, 4] long)
    => (float[B, S, 4] first, float[B, S, 4] second)
<int64 one = {1}, int64 lower = {16}, int64[1] upper = {24}, int64[1] axis = {2}>
{
    ends = Add (position_ids, one)
    lengths = Max (prompt_lengths, ends)
    first_long = Greater (lengths, lower)
    second_long = Greater (lengths, upper)
    first_mask = Unsqueeze (first_long, axis)
    second_mask = Unsqueeze (second_long, axis)
    first = Where (first_mask, long, short)
    second_value = Where (second_mask, long, short)
    second = Neg (second_value)
}"""


def graph() -> onnx_ir.Model:
    return onnx_ir.serde.deserialize_model(onnx.parser.parse_model(GRAPH))


@pytest.mark.parametrize(("ctx_len", "changed"), [(8, True), (16, True), (17, False), (32, False)])
def test_branches_that_no_text_reaches_go_with_their_input(ctx_len, changed):
    model = graph()
    assert ShortTexts(ctx_len)(model) == changed
    assert ("prompt_lengths" in {value.name for value in model.graph.inputs}) != changed
    assert [node.op_type for node in model.graph if node.op_type == "Where"] == ([] if changed else ["Where"] * 2)
    assert [value.name for value in model.graph.outputs] == ["first", "second"]
    onnx.checker.check_model(onnx_ir.to_proto(model))


def test_other_graphs_stay_as_they_are():
    model = graph()
    model.graph.inputs[1].name = "another_input"
    assert not ShortTexts(8)(model)


def test_the_core_asks_for_it_where_there_is_a_context():
    def asked(stage, task, sizes):
        request = TransformRequest(stage=stage, task=task, options=None, specializations=sizes.specializations())
        return [type(one) for one in CoreHooks().transform(request)]

    assert asked("onnx", "causal-lm", CausalLMShapes()) == [ShortTexts]
    assert asked("torch", "causal-lm", CausalLMShapes()) == asked("onnx", "encoder", EncoderShapes()) == []
