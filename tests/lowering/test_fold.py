"""Inlining, folding, and static graphs: one for each specialization, without shapes at run time and without branches."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qeff_framework.contracts import Specialization
from qeff_framework.errors import CompileError
from qeff_framework.lowering import (
    BindSizes,
    FoldConstants,
    InlineDialect,
    Op,
    PerGraph,
    bind_sizes,
    computed_tensor,
    replace_content,
    specialized_graphs,
)
from tests.lowering.graphs import attention_layer, lowered, op_types, parse, run, session, with_constants
from tests.lowering.steps import Sequence

MIXTURE = """mixture (float[T, 8] x, int64[T, 2] ids, float[T, 2] shares, float[6, 8, 10] up, float[6, 5, 8] down) => (float[T, 8] y)
    { y = qeff.MoE (x, ids, shares, up, down) }"""


def mixture() -> ir.Model:
    return with_constants(parse(MIXTURE), first=3)


@pytest.mark.parametrize("tokens", [2, 16])
def test_a_body_with_branches_becomes_straight_and_static(tokens: int) -> None:
    model = mixture()
    static = bind_sizes(model, Specialization(name="step", dims={"T": tokens}))
    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    for lowering in (InlineDialect(), FoldConstants(max_elements=100)):
        assert lowering(static)

    ops = set(op_types(static))
    assert not {"If", "Shape", "Size", "CastLike", "Constant", "Identity"} & ops
    assert ("Gather" in ops) == (tokens == 2)  # few tokens gather the weights of their experts
    for value in (value for node in static.graph for value in node.outputs):
        assert value.dtype is not None
        assert all(isinstance(size, int) for size in value.shape or ["unknown"])
    assert {name: static.graph.initializers[name].const_value for name in weights} == weights
    random = np.random.default_rng(0)
    feeds = {
        "x": random.standard_normal((tokens, 8)).astype(np.float32),
        "ids": np.stack([random.permutation(6)[:2] for _ in range(tokens)]),
        "shares": random.random((tokens, 2)).astype(np.float32),
    }
    np.testing.assert_allclose(run(session(static), feeds)["y"], run(session(model), feeds)["y"], rtol=1e-4, atol=1e-5)
    assert not FoldConstants(max_elements=100)(static)


def test_large_tensors_are_not_read_and_quantised_weights_stay() -> None:
    model = parse(
        """m (float[2] x) => (float[200] y, float[2] z) <float[200] large = {1.0}, int8[2] levels = {1, 2}, float scale = {0.5}> {
            other = Neg (large) first = ReduceSum <keepdims = 1> (x) y = Add (other, first)
            weight = DequantizeLinear (levels, scale) z = Mul (x, weight)
        }""".replace("{1.0}", "{" + ", ".join(["1.0"] * 200) + "}")
    )

    def unreadable() -> np.ndarray:
        raise AssertionError("the weight was read")

    replace_content(model.graph.initializers["large"], computed_tensor("large", (200,), np.float32, unreadable))
    FoldConstants(max_elements=100)(model)
    assert op_types(model) == ["Neg", "ReduceSum", "Add", "DequantizeLinear", "Mul"]


def test_reshapes_name_their_shape() -> None:
    model = parse(
        """m (float[2, 3, 4] x) => (float[6, 4] y, float[2, 3, 4] z) <int64[3] same = {0, -1, 4}> {
            target = Constant <value_ints = [-1, 4]> () y = Reshape <allowzero = 1> (x, target)
            kept = Reshape (x, same) z = Neg (kept)
        }"""
    )
    changed = lowered(model, (FoldConstants(),))
    assert op_types(changed) == ["Reshape", "Neg"]
    assert "allowzero" not in changed.graph[0].attributes
    shape = changed.graph[0].inputs[1]
    assert shape is not None
    assert shape.const_value is not None
    assert shape.const_value.numpy().tolist() == [6, 4]


def test_some_ops_are_inlined_and_the_others_stay() -> None:
    model = attention_layer()
    sequence = Sequence(capacity=6, steps=(np.array([[0, 1, -1]]),), seed=0)
    feeds = {**sequence.feeds(0), **sequence.states()}
    expected = run(session(model), feeds)

    some = lowered(model, (InlineDialect([Op.CAUSAL_MASK, Op.KV_UPDATE]),))
    assert {node.op_type for node in some.graph if node.domain} == {"Attention"}
    assert [function.name for function in some.functions.values()] == ["Attention"]
    kept = lowered(model, (InlineDialect(keep=[Op.CAUSAL_MASK, Op.KV_UPDATE]),))
    assert {node.op_type for node in kept.graph if node.domain == "qeff"} == {"CausalMask", "KVUpdate"}
    assert len({one.version for one in (InlineDialect(), InlineDialect([Op.MOE]), InlineDialect(keep=[Op.MOE]))}) == 3
    with pytest.raises(ValueError, match="only or keep"):
        InlineDialect([Op.MOE], keep=[Op.MOE])
    every = lowered(some, (InlineDialect(),))
    assert not every.functions
    assert "qeff" not in every.opset_imports

    for changed in (some, every):
        for name, found in run(session(changed), feeds).items():
            np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-6)
    assert not InlineDialect()(every)


def test_one_graph_for_each_specialization_over_the_same_weights() -> None:
    model = mixture()
    steps = [Specialization(name=name, dims={"T": size}) for name, size in (("prefill", 4), ("decode", 1))]
    assert BindSizes(steps)(model)
    graphs = specialized_graphs(model)
    assert [(name, graph.graph.name, list(graph.graph.inputs[0].shape or ())) for name, graph in graphs.items()] == [
        ("prefill", "prefill", [4, 8]),
        ("decode", "decode", [1, 8]),
    ]
    up = {id(graph.graph.initializers["up"].const_value) for graph in (model, *graphs.values())}
    assert len(up) == 1
    inlined = PerGraph(InlineDialect())
    assert (inlined.name, [bool(inlined(model)) for _ in range(2)]) == ("InlineDialect", [True, False])
    assert op_types(model) == ["MoE"]
    with pytest.raises(
        CompileError, match="specialization 'other' has no value for T: the compiler takes static shapes"
    ):
        bind_sizes(model, Specialization(name="other", dims={"B": 1}))
