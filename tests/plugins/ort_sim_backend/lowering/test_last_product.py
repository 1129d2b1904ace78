"""The product that gives the logits of one row keeps its weight as the file has it, once for embedding and output layer."""

from __future__ import annotations

import numpy as np
import onnx_ir

from ort_sim_backend.lowering import LastProduct
from qeff_framework.lowering import RemoveUnused
from tests.lowering.graphs import lowered, parse, run, session, with_constants

TIED = """
tied (int64[1, S] ids, float[16384, 64] table) => (float[1, 1, 16384] logits) {
    rows = Gather <axis = 0> (table, ids)
    minus = Constant <value_ints = [-1]> ()
    hidden = Gather <axis = 1> (rows, minus)
    turned = Transpose <perm = [1, 0]> (table)
    scores = MatMul (hidden, turned)
    logits = Tanh (scores)
}
"""
FEEDS = {"ids": np.array([[0, 16383, 5]])}


def graph(text=TIED, rows=1):
    """The graph with the shape of the product's left side known, as an export has it."""
    model = with_constants(parse(text))
    (hidden,) = (node.outputs[0] for node in model.graph if node.outputs[0].name == "hidden")
    hidden.type, hidden.shape = onnx_ir.TensorType(onnx_ir.DataType.FLOAT), onnx_ir.Shape((1, rows, 64))
    return model


def test_the_weight_is_there_once_and_no_session_copies_it():
    model = graph()
    changed = lowered(model, (LastProduct(), RemoveUnused()))

    found = session(changed)
    assert [value.name for value in found.get_overridable_initializers()] == ["table_by_inputs"]
    assert list(changed.graph.initializers) == ["table_by_inputs"]
    np.testing.assert_allclose(run(found, FEEDS)["logits"], run(session(model), FEEDS)["logits"], rtol=1e-5, atol=1e-5)


def test_products_of_several_rows_and_weights_with_other_readers_are_left():
    assert not LastProduct()(graph(rows=2))
    assert not LastProduct()(graph(TIED.replace("logits =", "other = Neg (table) logits =")))
