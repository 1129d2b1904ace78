"""Weights in blocks lie in a file of their own, and everything is as if ONNX Runtime's optimiser had seen them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from ort_sim_backend import compiler, packed_weights
from qeff_framework.lowering import WeightBlocks
from tests.plugins.ort_sim_backend.programs import compile_program, execute, export
from tests.plugins.ort_sim_backend.test_narrowing import SHAPES, model

FEEDS = {"input_ids": np.arange(8, dtype=np.int64)[None]}


@pytest.fixture
def exported(tmp_path, monkeypatch):
    monkeypatch.setattr(packed_weights, "_SMALLEST_BYTES", 64)
    return export(model(), tmp_path / "export", task="encoder", states=())


@pytest.mark.parametrize("options", [{"precision": "w8"}, {"precision": "w4", "calibrate": False}, {"precision": "w4"}])
def test_the_program_is_the_same_as_through_the_optimiser(options, exported, tmp_path, monkeypatch):
    compiled = compile_program(exported, tmp_path / "around", SHAPES, **options)
    monkeypatch.setattr(compiler, "packed_weights", lambda model: [])
    through = compile_program(exported, tmp_path / "through", SHAPES, **options)

    graphs = [onnx.load(each.directory / "model.onnx", load_external_data=False).graph for each in (compiled, through)]
    assert [node.op_type for node in graphs[0].node] == [node.op_type for node in graphs[1].node]
    assert [value.name for value in graphs[0].input] == [value.name for value in graphs[1].input] == ["input_ids"]
    places = {
        name: {entry.value for entry in tensor.external_data if entry.key == "location"}
        for tensor in graphs[0].initializer
        if (name := tensor.name)
    }
    blocks = {node.input[index] for node in graphs[0].node if node.op_type == "MatMulNBits" for index in (1, 2)}
    assert {name for name, place in places.items() if place == {"model.onnx.blocks"}} >= blocks
    assert not (through.directory / "model.onnx.blocks").exists()
    around, wanted = (execute(each).run(FEEDS)["logits"] for each in (compiled, through))
    np.testing.assert_array_equal(around, wanted)


def test_a_weight_that_is_not_measured_is_cut_once_when_it_is_written(exported, tmp_path, monkeypatch):
    cut = []
    compressed = WeightBlocks.compressed

    def counted(self, pieces, count, length):
        cut.append((self.bits, count, length))
        return compressed(self, pieces, count, length)

    monkeypatch.setattr(WeightBlocks, "compressed", counted)
    monkeypatch.setattr(WeightBlocks, "levels", None)
    compile_program(exported, tmp_path / "w4", SHAPES, precision="w4", calibrate=False)

    assert sorted(cut) == [(4, 64, 64), (4, 64, 64), (8, 8, 64)]
