"""Units in which the inputs of a product are of like size, as the compile stage chooses them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from qeff_framework.plugin_api import ExecutionError
from tests.lowering.graphs import parse
from tests.plugins.ort_sim_backend.programs import compile_program, execute, export, specializations

#: A gated MLP behind a norm. `other` has another norm, whose result is returned as well.
MLP = """
mlp (int64[batch_size, seq_len] input_ids, float[64, 128] embedding, float[128] scale, float[128] bias, float[128, 256] gate,
     float[128, 256] up, float[256, 128] down, float[128] ones, float[128, 128] other, float[128, 64] head)
=> (float[batch_size, seq_len, 64] logits, float[batch_size, seq_len, 128] seen) {
    x = Gather (embedding, input_ids)
    normed = LayerNormalization <axis = -1> (x, scale, bias)
    g = MatMul (normed, gate)
    u = MatMul (normed, up)
    s = Sigmoid (g)
    gated = Mul (s, u)
    y = MatMul (gated, down)
    seen = LayerNormalization <axis = -1> (y, ones)
    z = MatMul (seen, other)
    logits = MatMul (z, head)
}
"""
SHAPES = specializations(batch=1, ctx_len=8, chunks=(8,))


def mlp():
    """Some inputs of each product are 60 times as large as the others, and those of token 5 are zero."""
    graph, random = parse(MLP), np.random.default_rng(0)
    for value in list(graph.graph.inputs):
        if value.dtype != onnx_ir.DataType.FLOAT:
            continue
        content = random.standard_normal(tuple(value.shape.numpy())).astype(np.float32) / 8
        if value.name in ("scale", "ones"):
            content = np.abs(content) + 1
        if value.name == "embedding":
            content[5] = 0
        if value.name == "bias":
            content[:] = 0
        if value.name in ("scale", "up"):
            content[..., [3, 40, 77]] *= 60
        if value.name in ("gate", "up", "down"):
            content[[3, 40, 77]] /= 60
        graph.graph.inputs.remove(value)
        value.const_value = onnx_ir.tensor(content, name=value.name)
        graph.graph.register_initializer(value)
    # An export knows the shapes.
    return ShapeInferencePass()(graph).model


def nodes(directory):
    return onnx.load(directory / "model.onnx", load_external_data=False).graph.node


def sizes_of_blocks(directory):
    """By weight; 0 where inputs have a scale for each token."""
    sizes = {
        node.input[1].split("_")[0]: [each.i for each in node.attribute if each.name == "block_size"]
        for node in nodes(directory)
        if node.op_type in ("MatMulNBits", "MatMulIntegerToFloat")
    }
    return {name: sum(found) for name, found in sizes.items()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export(mlp(), tmp_path_factory.mktemp("mlp") / "export", task="encoder", states=())


def test_inputs_of_unequal_size_get_units_of_their_own_and_one_scale_loses_less_than_small_blocks(exported, tmp_path):
    programs = {
        name: compile_program(exported, tmp_path / name, SHAPES, **options)
        for name, options in {
            "exact": {},
            "plain": {"precision": "w8", "calibrate": False},
            "smoothed": {"precision": "w8"},
            "narrow": {"precision": "w4", "eight_bit_share": 0.5},
        }.items()
    }

    assert set(sizes_of_blocks(tmp_path / "plain").values()) == {32}
    # What gives logits keeps its blocks. What reads a result of the program keeps its units.
    assert sizes_of_blocks(tmp_path / "smoothed") == {"gate": 0, "up": 0, "down": 0, "other": 0, "head": 32}
    # Of three inputs: one node makes levels of what is divided by the largest number.
    ops = Counter(node.op_type for node in nodes(tmp_path / "smoothed"))
    assert (ops["QuantizeLinear"], ops["Div"], ops["Cast"], ops["MatMulIntegerToFloat"]) == (3, 3, 0, 4)
    # Products that read the same inputs have the same bits; with 4 they have blocks.
    assert sizes_of_blocks(tmp_path / "narrow") == {"gate": 32, "up": 32, "down": 0, "other": 0, "head": 32}
    feeds = {"input_ids": np.arange(8, dtype=np.int64)[None]}
    found = {name: execute(program).run(feeds)["seen"].copy() for name, program in programs.items()}
    wrong = {name: float(np.abs(value - found["exact"]).mean()) for name, value in found.items()}
    assert 0 < wrong["smoothed"] < 0.7 * wrong["plain"]
    assert wrong["narrow"] < 0.2
    assert not found["smoothed"][0, 5].any()


@pytest.mark.parametrize(
    ("rows", "many", "scaled"), [(1, 1 << 20, 0), (1, 1 << 15, 3), (1, 1 << 16, 2), (2, 1 << 20, 4)]
)
def test_small_products_of_a_step_of_one_token_stay_in_blocks(rows, many, scaled, exported, tmp_path, monkeypatch):
    """`gate` and `up` have 1 << 16 numbers together, `down` 1 << 15, `other` 1 << 14."""
    monkeypatch.setattr("ort_sim_backend.narrowing._FEW_NUMBERS", many)
    compile_program(
        exported, tmp_path / "program", specializations(batch=rows, ctx_len=8, chunks=(8, 1)), precision="w8"
    )

    assert Counter(sizes_of_blocks(tmp_path / "program").values()) == {
        size: n for size, n in ((0, scaled), (32, 5 - scaled)) if n
    }


def test_a_cpu_that_does_not_hold_the_sums_of_a_program_refuses_it(exported, tmp_path, monkeypatch):
    program = compile_program(exported, tmp_path / "program", SHAPES, precision="w8")
    execute(program)

    monkeypatch.setattr("ort_sim_backend.session.is_exact", lambda probe: False)
    with pytest.raises(ExecutionError, match="compile the model again on this machine"):
        execute(program)


def test_a_weight_that_is_rounded_piece_by_piece_is_the_same(exported, tmp_path, monkeypatch):
    whole = compile_program(exported, tmp_path / "whole", SHAPES, precision="w8")
    # Seven columns of a weight with 128 inputs, so that the last piece has fewer.
    monkeypatch.setattr("ort_sim_backend.token_scales._NUMBERS_AT_A_TIME", 1000)
    pieces = compile_program(exported, tmp_path / "pieces", SHAPES, precision="w8")

    feeds = {"input_ids": np.arange(8, dtype=np.int64)[None]}
    found, expected = (execute(program).run(feeds)["seen"].copy() for program in (pieces, whole))
    # Sums of floats in another order may round a number to its neighbour.
    assert np.abs(found - expected).mean() < 1e-3 * np.abs(expected).mean()
