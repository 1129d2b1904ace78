"""Programs with ``simulate="ai100"`` compute in the device's number formats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir
import onnxruntime
import pytest

from ort_sim_backend import OrtSimBackend, OrtSimOptions
from ort_sim_backend.lowering.ai100 import Float16Results, MXFP6Weights, MXINT8States
from ort_sim_backend.number_formats import round_float16, round_mxfp6, round_mxint8
from qeff_framework.export.portable import export_portable
from qeff_framework.options import parse_options
from qeff_framework.plugin_api import CompileError, OptionError
from tests.lowering.graphs import attention_layer, parse
from tests.plugins.ort_sim_backend.programs import compile_program, execute, export, specializations
from tests.tiny_models import tiny_causal_lm

PROMPT = [3, 17, 42, 9, 88, 5, 61, 23]
SHAPES = specializations(batch=1, ctx_len=16, chunks=(8, 1))
#: All numbers of FP16, infinities and NaN included, in an order that mixes binades within a block.
ALL_FLOAT16 = np.random.default_rng(0).permutation(1 << 16).astype(np.uint16).view(np.float16).astype(np.float32)


def run(model: onnx_ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString()).run(None, feeds)


def test_each_result_and_each_constant_is_rounded_and_what_only_moves_is_not_touched():
    model = parse("""
        layers (float[n, 4] x, int64[n] rows) => (float[n, 4] y, float[n, 4] moved)
        <float third = {0.333333333}>
        {
            scaled = Mul (x, third)
            moved = Gather (scaled, rows)
            square = Mul (moved, moved)
            y = Tanh (square)
        }
    """)
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32) * 3
    rows = np.array([4, 0, 1, 3, 2])

    assert Float16Results()(model)

    y, moved = run(model, x=x, rows=rows)
    expected = round_float16(x * np.float16(0.333333333).astype(np.float32))[rows]
    assert np.array_equal(moved, expected)
    assert np.array_equal(y, round_float16(np.tanh(round_float16(expected * expected))))
    assert [node.op_type for node in model.graph].count("Cast") == 2 * 3  # not for the Gather


def test_nodes_that_stay_in_float32_pass_unrounded_numbers_to_each_other():
    text = """
        layers (float[n] x) => (float[n] y, float[n] half)
        <float big = {40000.0}>
        {
            sum = Add (x, big)
            y = Sub (sum, big)
            half = Identity (sum)
        }
    """
    x = np.array([1.0, 30000.25], np.float32)
    plain, mixed = parse(text), parse(text)

    Float16Results()(plain)
    Float16Results(["sum", "y"])(mixed)

    assert run(plain, x=x)[0].tolist() == [0.0, np.inf]  # neither 40001 nor 70000.25 is a number of FP16
    y, half = run(mixed, x=x)
    assert y.tolist() == [1.0, 30000.0]  # the last result is rounded for those who read it
    assert half.tolist() == [40000.0, np.inf]
    with pytest.raises(CompileError, match="no node whose first output is summ; did you mean sum"):
        Float16Results(["summ"])(parse(text))


@pytest.mark.parametrize("length", [64, 40, 8])
def test_a_state_is_rounded_as_the_format_says_for_all_numbers_of_float16(length):
    model = parse(f"""
        state (float[n, 2, {length}] x) => (float[n, 2, {length}] past_RetainedState)
        {{ past_RetainedState = Identity (x) }}
    """)
    numbers = np.resize(ALL_FLOAT16, (len(ALL_FLOAT16) // (2 * length) + 1, 2, length))

    assert MXINT8States()(model)

    (stored,) = run(model, x=numbers)
    assert np.array_equal(stored, round_mxint8(numbers), equal_nan=True)
    finite = np.nan_to_num(numbers, nan=1, posinf=2, neginf=-3)
    (stored,) = run(model, x=finite)
    assert np.array_equal(stored, round_mxint8(finite))
    assert np.array_equal(stored, round_float16(stored))


def test_weights_of_products_are_rounded_along_the_sum_and_stay_for_other_readers():
    model = parse("""
        products (float[n, 40] x, int64[m] rows, float[40, 6] w, float[6, 40] tied, float[40, 40] other)
            => (float[n, 6] a, float[n, 6] b, float[m, 40] table, float[n, 40] c)
        {
            a = MatMul (x, w)
            turned = Transpose <perm = [1, 0]> (tied)
            b = MatMul (x, turned)
            table = Gather (tied, rows)
            c = Gemm <transB = 1> (x, other)
        }
    """)
    random = np.random.default_rng(2)
    arrays = {
        "w": random.normal(size=(40, 6)),
        "tied": random.normal(size=(6, 40)),
        "other": random.normal(size=(40, 40)),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    for value in [value for value in model.graph.inputs if value.name in arrays]:
        model.graph.inputs.remove(value)
        value.const_value = onnx_ir.tensor(arrays[value.name], name=value.name)
        model.graph.register_initializer(value)
    x, rows = random.normal(size=(3, 40)).astype(np.float32), np.array([5, 0])

    assert MXFP6Weights()(model)

    a, b, table, c = run(model, x=x, rows=rows)
    np.testing.assert_allclose(a, x @ round_mxfp6(arrays["w"], axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(b, x @ round_mxfp6(arrays["tied"], axis=1).T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(c, x @ round_mxfp6(arrays["other"], axis=1).T, rtol=1e-5, atol=1e-5)
    assert np.array_equal(table, arrays["tied"][rows])


@pytest.mark.parametrize("model_type", ["llama", "mamba"])
def test_a_program_holds_the_numbers_of_the_device(model_type, tmp_path):
    model, _ = tiny_causal_lm(model_type, initializer_range=0.1)
    (tmp_path / "export").mkdir()
    exported = export_portable(model, task="causal-lm", output_dir=tmp_path / "export")
    prompt = {"input_ids": np.array([PROMPT]), "position_ids": np.arange(8)[None]}
    logits, states = {}, {}

    for name, options in {
        "fp32": {},
        "fp16": {"simulate": "ai100"},
        **(
            {"blocks": {"simulate": "ai100", "num_kv_blocks": 3, "replicate_kv_heads": 2}}
            if model_type == "llama"
            else {}
        ),
        "mxint8": {"simulate": "ai100", "mxint8_kv_cache": True},
        "mx": {"simulate": "ai100", "mxint8_kv_cache": True, "mxfp6_matmul": True},
    }.items():
        session = execute(compile_program(exported, tmp_path / name, SHAPES, **options))
        session.run(prompt)
        logits[name] = np.array(session.run({"input_ids": np.array([[7]]), "position_ids": np.array([[8]])})["logits"])
        states[name] = {state: np.array(content) for state, content in session.states.items()}

    if "blocks" in logits:
        assert all(
            np.array_equal(states["blocks"][name], np.repeat(states["fp16"][name], 2, 1)) for name in ("past_key.0",)
        )
        assert 0 < np.abs(logits.pop("blocks") - logits["fp16"]).max() < 0.01 * logits["fp32"].std()
    assert np.array_equal(logits["fp16"], round_float16(logits["fp16"]))
    for state in states["fp16"]:
        assert np.array_equal(states["fp16"][state], round_float16(states["fp16"][state]))
        assert np.array_equal(states["mxint8"][state], round_mxint8(states["mxint8"][state]))
        assert not np.array_equal(states["fp16"][state], round_mxint8(states["fp16"][state]))
    spread = logits["fp32"].std()
    errors = {name: np.abs(each - logits["fp32"]).max() / spread for name, each in logits.items()}
    assert 0 < errors["fp16"] < 0.02
    assert errors["fp16"] < errors["mxint8"] < errors["mx"] < 0.5


def test_programs_that_the_device_could_not_tell_apart_are_refused(tmp_path):
    exported = export(attention_layer(), tmp_path / "export")
    twice = (SHAPES[0], replace(SHAPES[0], name="again"))

    compile_program(exported, tmp_path / "plain", twice)
    with pytest.raises(CompileError, match="'s8' and 'again' give every input the same shape"):
        compile_program(exported, tmp_path / "device", twice, simulate="ai100")


def test_what_a_simulated_device_has_not_is_refused():
    with pytest.raises(OptionError, match="precision='w4' does not go with simulate='ai100'.*mxfp6_matmul=True"):
        parse_options(OrtSimOptions, {"simulate": "ai100", "precision": "w4"}, owner="ort_sim")
    with pytest.raises(OptionError, match="num_cores=17 is out of range"):
        parse_options(OrtSimOptions, {"simulate": "ai100", "num_cores": 17}, owner="ort_sim")
    with pytest.raises(OptionError, match="must be one of None, 'ai100'"):
        parse_options(OrtSimOptions, {"simulate": "ai200"}, owner="ort_sim")
    with pytest.raises(OptionError, match="num_kv_blocks=2: the CPU's kernels for attention have no such form"):
        parse_options(OrtSimOptions, {"num_kv_blocks": 2}, owner="ort_sim")
    with pytest.raises(OptionError, match="fp32_nodes needs simulate='ai100'"):
        parse_options(OrtSimOptions, {"fp32_nodes": ("add",)}, owner="ort_sim")
    plain, device = (OrtSimBackend().capabilities_for(OrtSimOptions(simulate=name)) for name in (None, "ai100"))
    assert (plain.mxfp6_matmul, plain.mxint8_kv_cache) == (False, False)
    assert "simulate='ai100'" in plain.scope
    assert (device.mxfp6_matmul, device.mxint8_kv_cache) == (True, True)
