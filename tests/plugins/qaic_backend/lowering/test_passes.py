"""The lowered graph computes what the portable one computes, in ops that the compiler takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from qaic_backend.lowering import passes
from qaic_backend.lowering.device import BEYOND_CACHE
from qeff_framework.contracts import ExportedModel, Specialization
from qeff_framework.export.portable import export_portable
from tests.lowering.graphs import lowered, session
from tests.lowering.test_dequantized_products import INPUTS, expected_of, packed_products
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
    [index] = [item for item in model.graph.initializer if item.raw_data == np.int64(BEYOND_CACHE).tobytes()]
    index.raw_data = np.int64(0).tobytes()
    onnx.save(model, path)


def run(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def test_lowered_graph_equals_the_portable_graph(tmp_path: Path) -> None:
    """GPT-OSS has sinks, windows, grouped heads and experts."""
    module, _ = tiny_causal_lm("gpt_oss")
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


def test_packed_weights_are_floats_for_the_compiler() -> None:
    model = packed_products(4)
    changed = lowered(model, passes(SHAPES, convert_to_fp16=False))
    assert {(node.domain, node.op_type) for node in changed.graph} == {
        ("", "MatMul"),
        ("", "Neg"),
        ("", "Mul"),
        ("", "Add"),
    }
    x = np.random.default_rng(1).standard_normal((5, INPUTS), dtype=np.float32)
    (found,) = session(changed).run(None, {"x": x})
    np.testing.assert_allclose(found, expected_of(model, x, 4), rtol=1e-4, atol=1e-3)
