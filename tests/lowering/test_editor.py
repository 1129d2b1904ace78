"""Writing into graphs, and the bases of passes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import pytest

from qeff_framework.contracts import Transform, has_changed
from qeff_framework.lowering import DialectPass, GraphEditor, RemoveUnused, RMSNormNode
from tests.lowering.graphs import op_types, parse, run, session

NORMS = """norms (float[B, 4] x, float[4] weight, bool again) => (float[B, 4] y) {
    once = qeff.RMSNorm <epsilon: float = 0.1> (x, weight)
    twice = qeff.RMSNorm <epsilon: float = 0.2> (once, weight)
    y = If (again) <
        then_branch = more () => (float[B, 4] z) { z = qeff.RMSNorm <epsilon: float = 0.3> (twice, weight) },
        else_branch = same () => (float[B, 4] w) { w = Identity (twice) }
    >
}"""
FEEDS = {"x": np.array([[1.0, -2.0, 3.0, 0.5]], np.float32), "weight": np.array([1, 2, 3, 4], np.float32)}


class ComposedNorm(DialectPass[RMSNormNode]):
    name = "ComposedNorm"
    version = "1"
    node_type = RMSNormNode

    def lower(self, node: RMSNormNode, edit: GraphEditor) -> ir.Value | None:
        axis = edit.once("axis", lambda: edit.op("Neg", edit.int64s(1)))
        squares = edit.op("Mul", node.hidden, node.hidden)
        mean = edit.op("Add", edit.op("ReduceMean", squares, axis), edit.scalar_like(node.epsilon, node.hidden))
        return edit.op("Mul", edit.op("Div", node.hidden, edit.op("Sqrt", mean)), node.weight)


@pytest.mark.parametrize("again", [False, True])
def test_nodes_are_lowered_everywhere_one_after_the_other(again: bool) -> None:
    model = parse(NORMS)
    expected = run(session(model), {**FEEDS, "again": np.array(again)})

    assert ComposedNorm()(model)

    assert not [node for node in model.graph.all_nodes() if node.domain]
    assert op_types(model).count("Neg") == 1  # written once for both nodes of the main graph
    assert has_changed(RemoveUnused()(model))  # the body
    np.testing.assert_allclose(run(session(model), {**FEEDS, "again": np.array(again)})["y"], expected["y"], rtol=1e-5)
    assert not ComposedNorm()(model)


def test_a_pass_that_writes_and_declines_is_an_error() -> None:
    class Undecided(ComposedNorm):
        def lower(self, node: RMSNormNode, edit: GraphEditor) -> None:
            edit.op("Neg", node.hidden)

    with pytest.raises(RuntimeError, match="ComposedNorm left .*, but wrote 1 nodes"):
        Undecided()(parse(NORMS))


def test_passes_of_onnx_ir_are_transforms() -> None:
    model = parse("m (float[2] x) => (float[2] y) { y = Neg (x) unused = Abs (x) }")
    own, foreign = ComposedNorm(), common_passes.RemoveUnusedNodesPass()
    foreign.name, foreign.version = "RemoveUnusedNodes", "1"
    assert isinstance(own, Transform)
    assert isinstance(foreign, Transform)
    assert [has_changed(foreign(model)) for _ in range(2)] == [True, False]
    assert [has_changed(result) for result in (True, False, own(model))] == [True, False, False]


def editor(text: str) -> GraphEditor:
    """Writes in front of the last node."""
    model = parse(text)
    return GraphEditor(model, model.graph[-1])


def test_new_values_have_types_and_shapes() -> None:
    edit = editor("m (float16[B, 2, C] x, int64[K] rows) => (float16[B, 2, C] y) { y = Neg (x) }")
    x, rows = edit.model.graph.inputs

    flat = edit.reshape(x, (0, -1))
    gathered = edit.op("Gather", x, rows, axis=2)
    halves = edit.ops("Split", [x], 2, axis=1, num_outputs=2)
    cast = edit.cast(rows, ir.DataType.INT32)
    unknown = edit.op("Kernel", x, domain="acme")

    assert (str(gathered.shape), gathered.dtype) == ("[B,2,K]", ir.DataType.FLOAT16)
    assert [str(half.shape) for half in halves] == ["[B,1,C]"] * 2
    assert (cast.dtype, str(cast.shape)) == (ir.DataType.INT32, "[K]")
    assert flat.shape is not None
    assert (len(flat.shape), str(flat.shape[0])) == (2, "B")
    assert (unknown.dtype, unknown.shape, edit.model.opset_imports["acme"]) == (None, None, 1)
    assert edit.scalar_like(0.5, x).dtype == ir.DataType.FLOAT16
    assert edit.scalar_like(0.5, unknown).dtype == ir.DataType.FLOAT
    assert edit.cast(x, ir.DataType.FLOAT16) is x


def test_equal_constants_are_one_and_constants_are_cast_here() -> None:
    edit = editor("m (float[2] x) => (float[2] y) { y = Neg (x) }")
    assert edit.int64s(1, 2) is edit.array(np.array([1, 2]))
    assert edit.int64(1) is not edit.int64s(1)
    assert edit.cast(edit.int64(1), ir.DataType.INT32) is edit.array(np.array(1, np.int32))
    assert len(edit.model.graph.initializers) == 4
    assert not edit.written


@pytest.mark.parametrize("new", ["x", "other"], ids=["an input", "another output"])
def test_an_output_keeps_its_name_when_it_becomes_another_value(new: str) -> None:
    model = parse(
        "m (float[2] x) => (float[2] other, float[2] y) { other = Abs (x) same = Identity (NEW) y = Neg (same) }".replace(
            "NEW", new
        )
    )
    negation = model.graph[-1]
    value = model.graph.inputs[0] if new == "x" else model.graph.outputs[0]

    GraphEditor(model, negation).replace(negation, value)

    assert [output.name for output in model.graph.outputs] == ["other", "y"]
    found = run(session(model), {"x": np.array([-1.0, 2.0], np.float32)})
    np.testing.assert_array_equal(found["y"], [-1.0, 2.0] if new == "x" else [1.0, 2.0])


def test_a_function_in_text_form_is_attached_once() -> None:
    text = "Twice (x) => (y) { y = Add (x, x) }"
    edit = editor("m (float[2] x) => (float[2] y) { y = Neg (x) }")
    [x] = edit.model.graph.inputs
    once = edit.call(text, "acme", x, like=x)
    edit.replace(edit.model.graph[-1], edit.call(text, "acme", once))
    assert [function.name for function in edit.model.functions.values()] == ["Twice"]
    assert (once.dtype, once.shape) == (x.dtype, x.shape)
    np.testing.assert_array_equal(run(session(edit.model), {"x": np.array([1.0, 2.0], np.float32)})["y"], [4.0, 8.0])
