"""What the compile stage writes, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest

from ort_sim_backend import OrtSimOptions
from ort_sim_backend.lowering import passes
from qeff_framework.options import parse_options
from qeff_framework.plugin_api import CompileError, ExecutionError, OptionError, Specialization
from tests.lowering.graphs import attention_layer, parse
from tests.plugins.ort_sim_backend.programs import compile_program, execute, export, specializations

SHAPES = specializations(batch=1, ctx_len=8, chunks=(4, 1))


@pytest.fixture
def exported(tmp_path):
    return export(attention_layer(), tmp_path / "export")


def test_the_program_is_complete_and_knows_no_other_place(exported, tmp_path):
    compiled = compile_program(exported, tmp_path / "program", SHAPES, num_cores=3)

    assert {path.name for path in (tmp_path / "program").iterdir()} <= {
        "compiled.json",
        "model.onnx",
        "model.onnx.data",
    }
    for path in (tmp_path / "program").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
    assert (compiled.backend, compiled.specializations, compiled.states) == ("ort_sim", SHAPES, exported.states)
    assert compiled.options == {
        "num_devices": 1,
        "num_cores": 3,
        "mxfp6_matmul": False,
        "mxint8_kv_cache": False,
        "num_kv_blocks": 1,
        "replicate_kv_heads": 1,
        "num_layers_per_program": None,
        "optimization_level": "extended",
        "simulate": None,
        "fp32_nodes": [],
        "precision": "fp32",
        "calibrate": None,
        "calibration_prompts": None,
        "eight_bit_share": 0.8,
        "store_packed_weights": False,
    }
    applied = [f"{one.name}@{one.version}" for one in passes() if one.name in ("GroupQueryAttention", "RemoveUnused")]
    assert compiled.transforms == tuple(applied)
    assert json.loads((tmp_path / "program" / "compiled.json").read_text())["program"] == dict(compiled.program)


def test_specializations_that_cannot_work_are_refused(exported, tmp_path):
    with pytest.raises(CompileError, match="no specialization was given: ort_sim compiles for static shapes only"):
        compile_program(exported, tmp_path / "program", ())


def test_the_reason_of_onnx_runtime_is_passed_on(tmp_path):
    model = parse("broken (float[batch_size, 2] x) => (float[batch_size, 2] y) { y = Nonsense (x) }")
    exported = export(model, tmp_path / "export", task="encoder", states=())

    with pytest.raises(CompileError, match=r"ONNX Runtime refuses the lowered model: .*Nonsense"):
        compile_program(exported, tmp_path / "program", SHAPES)


def test_unknown_levels_are_refused():
    with pytest.raises(OptionError, match="'none', 'basic', 'extended'"):
        parse_options(OrtSimOptions, {"optimization_level": "all"}, owner="ort_sim")


def test_stored_packing_is_what_the_kernels_make_of_the_weights(tmp_path):
    """ONNX Runtime compares: what it loads is mapped, content that differs is refused, and other weights are packed anew."""
    numbers = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    model = parse("product (float[batch_size, 64] x) => (float[batch_size, 96] y) { y = MatMul (x, weight) }")
    weight = ir.Value(name="weight", const_value=ir.Tensor(numbers, name="weight"))
    next(iter(model.graph)).replace_input_with(1, weight)
    model.graph.register_initializer(weight)
    exported = export(model, tmp_path / "export", task="encoder", states=())
    shapes = (Specialization(name="only", dims={"batch_size": 2}),)
    plain, stored = (
        compile_program(exported, tmp_path / str(stores), shapes, store_packed_weights=stores)
        for stores in (False, True)
    )

    x = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    np.testing.assert_array_equal(execute(stored).run({"x": x})["y"], execute(plain).run({"x": x})["y"])
    np.testing.assert_allclose(execute(stored).run({"x": x})["y"], x @ numbers, rtol=1e-4, atol=1e-4)
    data = stored.directory / "model.onnx.data"
    assert {path.name for path in stored.directory.iterdir()} == {path.name for path in plain.directory.iterdir()}
    content, bare = data.read_bytes(), (plain.directory / data.name).read_bytes()
    assert len(content) >= 2 * len(bare)
    place = content.index(numbers.tobytes())
    data.write_bytes(content[:place] + (2 * numbers).tobytes() + content[place + numbers.nbytes :])
    np.testing.assert_allclose(execute(stored).run({"x": x})["y"], x @ (2 * numbers), rtol=1e-4, atol=1e-4)
    changed = bytearray(content)
    changed[-64:] = bytes(byte ^ 1 for byte in changed[-64:])
    data.write_bytes(changed)
    with pytest.raises(ExecutionError, match="pre-packed weights .* do not match"):
        execute(stored)


def test_stored_packing_is_for_float32_alone():
    with pytest.raises(OptionError, match="store_packed_weights=True does not go with precision='w8'"):
        parse_options(OrtSimOptions, {"store_packed_weights": True, "precision": "w8"}, owner="ort_sim")
