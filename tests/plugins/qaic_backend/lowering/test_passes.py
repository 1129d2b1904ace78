"""The lowered graph computes what the portable one computes, in ops that the compiler takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from qaic_backend.lowering import Float16Range, RotaryTables, passes
from qaic_backend.lowering.graph import BEYOND_CACHE
from qeff_framework.contracts import ExportedModel, Specialization
from qeff_framework.errors import CompileError
from qeff_framework.export.portable import export_portable
from tests.tiny_models import tiny_causal_lm

BATCH, CHUNK, CTX_LEN = 2, 4, 16
SHAPES = (Specialization(name="prefill", dims={"batch_size": BATCH, "seq_len": CHUNK, "ctx_len": CTX_LEN}),)
COMPILER_DOMAINS = {"", "com.qualcomm.cloud", "com.qti.aisw.onnx"}


def lower(exported: ExportedModel, target: Path) -> set[tuple[str, str]]:
    model = ir.load(exported.model_path)
    changed = [one.name for one in passes(SHAPES, convert_to_fp16=True) if one(model)]
    assert {"CtxGather", "CtxScatter", "CausalMaskOps", "AttentionOps", "InlineDialect"} <= set(changed)
    ir.save(model, target, external_data="lowered.onnx.data")
    onnx.checker.check_model(str(target))
    assert {domain for domain, _, _ in model.functions} <= COMPILER_DOMAINS
    return {(node.domain, node.op_type) for node in model.graph.all_nodes()}


def read_slot_0_instead(path: Path) -> None:
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.i == BEYOND_CACHE:
                attribute.i = 0
    onnx.save(model, path)


def run(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feeds)


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss"])
def test_lowered_graph_equals_the_portable_graph(model_type: str, tmp_path: Path) -> None:
    """Gemma 2 caps its scores and has windows; GPT-OSS has sinks, windows, and grouped heads."""
    module, _ = tiny_causal_lm(model_type)
    (tmp_path / "export").mkdir()
    exported = export_portable(module, task="causal-lm", output_dir=tmp_path / "export")
    ops = lower(exported, tmp_path / "lowered.onnx")
    assert {domain for domain, _ in ops} == COMPILER_DOMAINS
    assert not {("", "Cos"), ("", "Sin"), ("", "If"), ("", "CastLike")} & ops

    rng = np.random.default_rng(0)
    dims = {"batch_size": BATCH, "ctx_len": CTX_LEN}
    feeds = {
        spec.name: rng.standard_normal([dims.get(str(dim), dim) for dim in spec.shape]).astype(np.float32)
        for spec in exported.inputs
        if spec.name.startswith("past_")
    }
    feeds["input_ids"] = rng.integers(0, 128, (BATCH, CHUNK))
    # ONNX Runtime refuses indices beyond the cache; the stand-in's device takes them (see test_session).
    feeds["position_ids"] = np.array([[6, 7, 8, 9], [12, 13, 14, 15]])
    read_slot_0_instead(tmp_path / "lowered.onnx")
    for got, want in zip(run(tmp_path / "lowered.onnx", feeds), run(exported.model_path, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


def model_of(text: str, **initializers: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in initializers.items())
    return ir.serde.deserialize_model(proto)


def test_values_beyond_float16_are_clipped_and_infinities_and_integers_kept() -> None:
    model = model_of(
        """m (float[4] x, int64[1] n) => (float[4] y, int64[1] k) {
            low = Constant <value_float = -1.0e30> ()
            high = Max (x, low)
            y = Add (high, w)
            k = Add (n, big)
        }""",
        w=np.array([1.0, 1e6, -1e30, -np.inf], np.float32),
        big=np.array([2**40]),
    )
    assert Float16Range()(model)
    np.testing.assert_array_equal(
        model.graph.initializers["w"].const_value.numpy(), np.array([1, 65504, -65504, -np.inf], np.float32)
    )
    assert model.graph.initializers["big"].const_value.numpy()[0] == 2**40
    assert model.graph[0].attributes["value_float"].as_float() == -65504.0
    assert not Float16Range()(model)


ROTARY = """m (int64[batch, seq] position_ids) => (float[batch, seq, 2] y) {
    p = Cast <to = 1> (position_ids)
    axis = Constant <value_ints = [2]> ()
    column = Unsqueeze (p, axis)
    angle = Mul (column, %s)
    y = Cos (angle)
}"""


def test_tables_hold_float32_angles() -> None:
    model = model_of(ROTARY % "f", f=np.array([1.0, 0.01], np.float32))
    assert RotaryTables(5000)(model)
    table = model.graph.initializers["position_table_0"].const_value.numpy()
    assert table.shape == (5000, 2)
    np.testing.assert_allclose(table[4097], np.cos(np.array([4097.0, 40.97])), atol=1e-3)
    assert {node.op_type for node in model.graph} >= {"Gather"}


def test_angles_that_depend_on_other_tokens_stay() -> None:
    text = ROTARY.replace("angle =", "most = ReduceMax <keepdims = 1> (column)\n scaled = Div (column, most)\n angle =")
    model = model_of((text % "f").replace("Mul (column", "Mul (scaled"), f=np.array([1.0, 0.01], np.float32))
    assert not RotaryTables(16)(model)
    assert any(node.op_type == "Cos" for node in model.graph)


def test_angles_that_grow_with_the_text_are_refused() -> None:
    """A table would need a row for each pair of position and length; computed in float16, they would be wrong without a word."""
    text = ROTARY.replace(
        "m (int64[batch, seq] position_ids)", "m (int64[batch, seq] position_ids, int64[batch, 1] prompt_lengths)"
    )
    text = text.replace(
        "angle = Mul (column, %s)",
        "length = Cast <to = 1> (prompt_lengths)\n grown = Unsqueeze (length, axis)\n slow = Div (column, grown)\n angle = Mul (slow, %s)",
    )
    model = model_of(text % "f", f=np.array([1.0, 0.01], np.float32))
    with pytest.raises(CompileError, match=r"grow with the length of the text.*max_position_embeddings"):
        RotaryTables(16)(model)
