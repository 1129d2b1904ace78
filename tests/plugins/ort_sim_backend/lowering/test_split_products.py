"""Products whose columns are taken apart."""

from __future__ import annotations

import numpy as np

from ort_sim_backend.lowering import SplitProducts
from qeff_framework.lowering import RemoveUnused
from tests.lowering.graphs import lowered, op_types, parse, run, session, with_constants

GRAPH = """
gates (float[2, 32, 4] x, float[4, 6] plain, float[6, 4] rows, float[6] bias)
    => (float[2, 32, 1] gate, float[2, 32, 5] up, float[2, 32, 3] turned, float[2, 32, 3] other,
        float[2, 32, 3] one, float[2, 32, 3] two, float[2, 32, 6] read)
<int64[2] sizes = {1, 5}, float[2, 32, 6] product, float[2, 32, 6] sum, float[4, 6] columns, float[2, 32, 6] halves>
{
    product = MatMul (x, plain)
    sum = Add (bias, product)
    gate, up = Split <axis = -1> (sum, sizes)
    columns = Transpose <perm = [1, 0]> (rows)
    halves = MatMul (x, columns)
    turned, other = Split <axis = 2, num_outputs = 2> (halves)
    read = MatMul (x, plain)
    one, two = Split <axis = -1, num_outputs = 2> (read)
}
"""


def test_each_part_is_a_product_and_what_is_read_whole_stays():
    model = with_constants(parse(GRAPH))
    changed = lowered(model, (SplitProducts(), RemoveUnused()))
    assert sorted(op_types(changed)) == ["Add", "Add", *["MatMul"] * 5, "Split"]
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 32, 4)).astype(np.float32)}
    expected, found = run(session(model), feeds), run(session(changed), feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
