"""What the compile stage writes, and what it refuses."""

from __future__ import annotations

import json

import pytest

from ort_sim_backend import OrtSimOptions
from ort_sim_backend.lowering import passes
from qeff_framework.options import parse_options
from qeff_framework.plugin_api import CompileError, OptionError
from tests.lowering.graphs import attention_layer, parse
from tests.plugins.ort_sim_backend.programs import compile_program, export, specializations

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
