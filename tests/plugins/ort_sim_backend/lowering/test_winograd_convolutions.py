"""Convolutions as products of transformed tiles."""

from __future__ import annotations

import numpy as np
import pytest

from ort_sim_backend.lowering import WinogradConvolutions
from qeff_framework.lowering import RemoveUnused
from tests.lowering.graphs import lowered, op_types, parse, run, session, with_constants

GRAPH = """
picture (float[2, 320, 16, 18] x, float[256, 320, 3, 3] weight, float[256] bias) => (float[2, 256, 16, 18] y)
{ y = Conv <PADS> (x, weight, bias) }
"""


@pytest.mark.parametrize(
    ("attributes", "is_lowered"),
    [
        ("pads = [1, 1, 1, 1]", True),
        ("pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1], group = 1", True),
        ("pads = [2, 2, 2, 2], dilations = [2, 2]", False),
        ('auto_pad = "SAME_UPPER"', False),
    ],
)
def test_results_are_those_of_the_direct_form(attributes, is_lowered):
    model = with_constants(parse(GRAPH.replace("PADS", attributes)))
    changed = lowered(model, (WinogradConvolutions(), RemoveUnused()))
    assert ("Conv" not in op_types(changed)) == is_lowered
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 320, 16, 18)).astype(np.float32)}
    (expected,), (found,) = run(session(model), feeds).values(), run(session(changed), feeds).values()
    assert np.abs(found - expected).max() < 2e-6 * np.abs(expected).max()


def test_few_channels_stay():
    model = parse(
        "few (float[1, 8, 16, 16] x, float[8, 8, 3, 3] w) => (float[1, 8, 16, 16] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w) }"
    )
    assert not WinogradConvolutions()(with_constants(model))
