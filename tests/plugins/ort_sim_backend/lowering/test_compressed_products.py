"""Products with compressed weights: those that choose experts stay as they are."""

from __future__ import annotations

import numpy as np

from ort_sim_backend.lowering import passes
from tests.lowering.graphs import lowered, op_types, parse, run, session, with_constants


def test_two_products_share_a_weight_and_the_choice_of_experts_is_left():
    mixture = parse(
        """mixture (float[T, 32] x, float[32, 4] router, float[4, 32, 64] up, float[4, 32, 32] down, float[32, 32] shared)
           => (float[T, 32] y) <float[T, 32] a, float[T, 2] weights, int64[T, 2] ids> {
             a = MatMul (x, shared)
             scores = MatMul (a, router)
             chances = Softmax (scores)
             k = Constant <value_ints = [2]> ()
             weights, ids = TopK (chances, k)
             mixed = qeff.MoE (a, ids, weights, up, down)
             y = MatMul (mixed, shared)
           }"""
    )
    model = with_constants(mixture)

    changed = lowered(model, passes("w8"))

    ops = op_types(changed)
    assert (ops.count("MatMulNBits"), ops.count("MatMul"), ops.count("QMoE")) == (2, 1, 1)
    assert sorted(name for name in changed.graph.initializers if "shared" in name) == [
        "shared_blocks",
        "shared_blocks_scales",
    ]
    feeds = {"x": np.random.default_rng(1).standard_normal((6, 32)).astype(np.float32)}
    expected, found = run(session(model), feeds)["y"], run(session(changed), feeds)["y"]
    assert 0 < np.sqrt(np.square(found - expected).mean()) / expected.std() < 0.05
