"""What goes wrong is its own clear error, and leaves nothing half-made in the store."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qeff_framework import QEFFAutoModel, load_compiled
from qeff_framework.artifacts import Store
from qeff_framework.errors import ArtifactCorruptError
from qeff_framework.plugin_api import CompiledModel, CompileError, ExecutionError, OptionError, Status
from qeff_framework.toolchains import jobs
from qnn_backend.htp import probe
from qnn_backend.htp.loading import check_program
from qnn_backend.htp.session import HtpSession
from qnn_backend.options import QnnRuntimeOptions
from tests.plugins.qnn_backend.htp.simulator import needs_simulator
from tests.tiny_models import tiny_causal_lm

SIZES = {"prefill_seq_len": 4, "ctx_len": 16}


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    return tiny_causal_lm("llama")[0]


@pytest.fixture(scope="module")
def compiled(module: torch.nn.Module, session_store: Path) -> CompiledModel:
    return QEFFAutoModel(module).compile(backend="qnn", verify=False, **SIZES)


def artifacts(root: Path) -> list[str]:
    folder = root / "compiled"
    # Other tests may fill the store at the same time.
    return sorted(path.name for path in folder.glob("qnn-*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targett": "SM8650"}, "did you mean 'target'"),
        ({"target": "SM1234"}, r"unknown target 'SM1234'.*SM8650 \(57\)"),
        ({"target": 9999}, "unknown target 9999"),
        ({"mxfp6_matmul": True}, "mxfp6_matmul"),
        ({"num_devices": 2}, "a chip has one NPU"),
        ({"disable_passes": ("RotaryTable",)}, "no pass is called RotaryTable"),
        ({"mos": 2}, "mos"),
    ],
)
def test_options_are_refused_before_any_work(
    module: Any, options: dict[str, Any], message: str, store_root: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        QEFFAutoModel(module).compile(backend="qnn", **SIZES, **options)
    assert not (store_root / "exports").exists()


def run_instead(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "COMMAND", (sys.executable, "-c", code))


def test_a_compiler_that_crashes(module: Any, session_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = artifacts(session_store)
    run_instead("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", monkeypatch)
    with pytest.raises(CompileError, match="qnn: the HTP compiler crashed with signal SIGSEGV") as caught:
        QEFFAutoModel(module).compile(
            backend="qnn", verify=False, disable_passes=("ResidualScaling",), calibration_samples=5, **SIZES
        )
    assert artifacts(session_store) == before
    log = Path(str(caught.value).rpartition("Full output: ")[2])
    assert log.parent == session_store / "logs"
    assert log.is_file()


def test_the_time_limit_is_the_option(module: Any, session_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = artifacts(session_store)
    run_instead("import time; time.sleep(60)", monkeypatch)
    with pytest.raises(
        CompileError, match=r"residual stream did not end within 0\.01 minutes \(compile_timeout_minutes\)"
    ):
        QEFFAutoModel(module).compile(backend="qnn", calibration_samples=5, compile_timeout_minutes=0.01, **SIZES)
    assert artifacts(session_store) == before


@needs_simulator
def test_the_golden_check_catches_a_miscompiled_graph(module: Any, session_store: Path) -> None:
    """Angles of late positions, computed without the lowering, are wrong without an error of the compiler."""
    before = artifacts(session_store)
    with pytest.raises(CompileError, match=r"computes something else.*\(prefill, end of the context\)"):
        QEFFAutoModel(module).compile(
            backend="qnn", prefill_seq_len=4, ctx_len=1024, disable_passes=("RotaryTables", "HostAngles")
        )
    assert artifacts(session_store) == before


@needs_simulator
def test_unsupported_nodes_are_named_with_the_reason(tmp_path: Path) -> None:
    import onnx_ir

    from qnn_backend.htp.compiling import compile_graphs
    from tests.plugins.qnn_backend.htp.simulator import parse

    onnx_ir.save(
        parse("g (float[2, 4, 4] x) => (float[2, 4, 4] y) { z = Relu (x) y = Trilu (z) }"), tmp_path / "g.onnx"
    )
    with pytest.raises(CompileError, match="1 nodes cannot run on the NPU: Trilu .*not supported.*allow_partial"):
        compile_graphs({"g": str(tmp_path / "g.onnx")}, str(tmp_path), 57, {}, allow_partial=False)
    (tmp_path / "g_ctx.onnx").unlink(missing_ok=True)
    found = compile_graphs({"g": str(tmp_path / "g.onnx")}, str(tmp_path), 57, {}, allow_partial=True)
    assert [node["op_type"] for node in found["g"]["unsupported"]] == ["Trilu"]


@needs_simulator
@pytest.mark.parametrize("damage", ["byte", "truncated"])
def test_a_damaged_binary_is_refused(compiled: CompiledModel, damage: str, tmp_path: Path) -> None:
    copy = shutil.copytree(compiled.directory, tmp_path / "copy")
    binary = copy / "decode_ctx_qnn.bin"
    content = bytearray(binary.read_bytes())
    if damage == "byte":
        content[len(content) // 2] ^= 0xFF
    else:
        del content[len(content) // 2 :]
    binary.write_bytes(content)
    with pytest.raises(ArtifactCorruptError, match=r"decode_ctx_qnn\.bin"):
        load_compiled(copy)


@needs_simulator
def test_a_step_that_fails_is_an_error(module: Any, compiled: CompiledModel, tmp_path: Path) -> None:
    """The binary of a longer context loads, and ONNX Runtime would then run the step on the CPU with a line on stderr."""
    longer = QEFFAutoModel(module).compile(backend="qnn", verify=False, prefill_seq_len=4, ctx_len=32)
    copy = shutil.copytree(compiled.directory, tmp_path / "copy")
    shutil.copyfile(longer.directory / "decode_ctx_qnn.bin", copy / "decode_ctx_qnn.bin")
    session = HtpSession(CompiledModel.load(copy), QnnRuntimeOptions())
    prompt = {"input_ids": np.array([[5, 17, 99, 23]]), "position_ids": np.arange(4)[None]}
    expected = session.run(prompt)["logits"].copy()
    with pytest.raises(ExecutionError, match="the program failed in a step: .*does not match"):
        session.run({"input_ids": np.array([[7]]), "position_ids": np.array([[4]])})
    session.reset()
    np.testing.assert_array_equal(session.run(prompt)["logits"], expected)


@needs_simulator
def test_a_program_for_another_chip_or_version_is_refused(compiled: CompiledModel, tmp_path: Path) -> None:
    import dataclasses

    with pytest.raises(ExecutionError, match="made for SM8650, not for SM8550"):
        check_program(compiled, QnnRuntimeOptions(target="SM8550"), simulated=True)
    for change, message in (
        ({"soc": "SM8550"}, "was made for the chip with id 57, but the artifact says SM8550"),
        ({"versions": {"onnxruntime-qnn": "2.1.0"}}, "compiled with onnxruntime-qnn 2.1.0"),
    ):
        other = dataclasses.replace(compiled, program={**compiled.program, **change})
        with pytest.raises(ExecutionError, match=message):
            check_program(other, QnnRuntimeOptions(), simulated=True)


@needs_simulator
def test_a_second_compile_finds_the_program(
    module: Any, compiled: CompiledModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_instead("raise SystemExit(9)", monkeypatch)
    # A time limit does not change the program.
    again = QEFFAutoModel(module).compile(backend="qnn", verify=False, compile_timeout_minutes=5, **SIZES)
    assert again.directory == compiled.directory
    assert Store().root == compiled.directory.parents[1]


def test_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "version_of", lambda name: "none")
    [check] = probe.check_htp().checks
    assert check.status is Status.FAILED
    assert "not installed" in check.detail
    assert "pip install" in check.remedy
    assert "aic works without it" in check.remedy
