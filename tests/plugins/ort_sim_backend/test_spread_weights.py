"""Weights in files of their own, which programs of several sizes share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from ort_sim_backend.lowering import WinogradConvolutions
from ort_sim_backend.spread_weights import has_transformed_weights, spread_weights
from qeff_framework.lowering import RemoveUnused
from tests.lowering.graphs import lowered, parse, with_constants

GRAPH = """
picture (float[1, 320, 16, WIDTH] x, float[256, 320, 3, 3] weight) => (float[1, 256, 16, WIDTH] y)
{ y = Conv <pads = [1, 1, 1, 1]> (x, weight) }
"""


def test_two_sizes_share_the_transformed_weights_of_a_convolution(tmp_path: Path) -> None:
    # Constants of the size lie among them: in one file they would make every weight a part of another file.
    names = []
    for width in (16, 20):
        model = lowered(
            with_constants(parse(GRAPH.replace("WIDTH", str(width)))), (WinogradConvolutions(), RemoveUnused())
        )
        assert has_transformed_weights(model)
        directory = tmp_path / str(width)
        directory.mkdir()
        file = directory / "model.onnx"
        ir.save(model, file, external_data="model.onnx.data")
        feeds = {"x": np.random.default_rng(0).standard_normal((1, 320, 16, width)).astype(np.float32)}
        (expected,) = onnxruntime.InferenceSession(file).run(None, feeds)
        spread_weights(file, "model.onnx.data")
        (found,) = onnxruntime.InferenceSession(file).run(None, feeds)
        assert np.array_equal(found, expected)
        names.append({each.name for each in directory.iterdir()})
    assert names[0] == names[1]
    assert len(names[0]) == 5  # the model, and four parts of the kernel
