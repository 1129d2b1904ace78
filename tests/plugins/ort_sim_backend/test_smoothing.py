"""Units in which the inputs of a product are of like size, as the compile stage chooses them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest

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
    return graph


def sizes_of_blocks(directory):
    """By weight; 0 where inputs have a scale for each token."""
    graph = onnx.load(directory / "model.onnx", load_external_data=False).graph
    sizes = {
        node.input[1].split("_")[0]: [each.i for each in node.attribute if each.name == "block_size"]
        for node in graph.node
        if node.op_type in ("MatMulNBits", "MatMulIntegerToFloat")
    }
    return {name: sum(found) for name, found in sizes.items()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export(mlp(), tmp_path_factory.mktemp("mlp") / "export", task="encoder", states=())


def test_inputs_of_unequal_size_get_units_of_their_own_and_larger_blocks_lose_less_than_small_ones(exported, tmp_path):
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
    # What reads a result of the program, or inputs that nothing makes in other units, stays as it is.
    of_norm = 0 if programs["smoothed"].program.get("probe") else 128
    large = {"gate": of_norm, "up": of_norm, "down": 128}
    assert sizes_of_blocks(tmp_path / "smoothed") == {**large, "other": 32, "head": 32}
    # Weights of 4 bits do not bear it.
    assert set(sizes_of_blocks(tmp_path / "narrow").values()) == {32}
    feeds = {"input_ids": np.arange(8, dtype=np.int64)[None]}
    found = {name: execute(program).run(feeds)["seen"].copy() for name, program in programs.items()}
    wrong = {name: float(np.abs(value - found["exact"]).mean()) for name, value in found.items()}
    assert 0 < wrong["smoothed"] < 0.7 * wrong["plain"]
    assert wrong["narrow"] < 0.2
    assert not found["smoothed"][0, 5].any()


def test_sums_that_a_cpu_does_not_hold_are_left_out_and_a_program_that_has_them_is_refused(
    exported, tmp_path, monkeypatch
):
    exact = {"here": True, "there": False}
    for module in ("narrowing", "session"):
        monkeypatch.setattr(f"ort_sim_backend.{module}.is_exact", lambda probe: exact[probe.parent.name])
    program = compile_program(exported, tmp_path / "here", SHAPES, precision="w8")

    compile_program(exported, tmp_path / "there", SHAPES, precision="w8")

    assert sizes_of_blocks(tmp_path / "there") == {"gate": 128, "up": 128, "down": 128, "other": 32, "head": 32}
    exact["here"] = False
    with pytest.raises(ExecutionError, match="compile the model again on this machine"):
        execute(program)
