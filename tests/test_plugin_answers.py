"""Whatever a plugin returns or raises: it is refused with the plugin's name, and nothing is published."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qeff_framework.contracts import (
    CompiledModel,
    CompileRequest,
    ExportedModel,
    ExportRequest,
    Probe,
    Specialization,
    StateSpec,
    TensorSpec,
)
from qeff_framework.errors import BackendBrokenError, BackendError, CompileError, ExecutionError
from qeff_framework.guarded_session import GuardedSession
from qeff_framework.plugin_answers import blamed, check_compiled, check_exported, checked_fingerprint, checked_probe
from tests.recording_backend import RecordingBackend, RecordingOptions

TOLD = "backend 'acme' (qeff-acme-backend 1.0)"
INPUTS = tuple(TensorSpec(name=name, dtype="int64", shape=("batch_size", 1)) for name in ("input_ids", "past_key.0"))
OUTPUTS = tuple(
    TensorSpec(name=name, dtype="float32", shape=("batch_size", 1)) for name in ("logits", "past_key.0_RetainedState")
)
STATES = (StateSpec(input="past_key.0", output="past_key.0_RetainedState"),)


@pytest.fixture
def request_(tmp_path: Path) -> CompileRequest:
    exported = ExportedModel(
        directory=tmp_path / "export",
        task="causal-lm",
        model_file="model.onnx",
        inputs=INPUTS,
        outputs=OUTPUTS,
        states=STATES,
    )
    model: Any = None
    return CompileRequest(
        exported=exported,
        model=model,
        transforms=(),
        specializations=(Specialization(name="decode", dims={"batch_size": 1, "seq_len": 1}),),
        options=RecordingOptions(),
        output_dir=tmp_path / "program",
    )


def test_the_request_s_own_result_is_right(request_: CompileRequest) -> None:
    compiled = request_.result(backend="acme", program={"file": "x"})
    check_compiled(compiled, request_, "acme", TOLD)
    assert compiled.states == STATES


def test_a_compiler_may_call_the_states_otherwise(request_: CompileRequest) -> None:
    compiled = dataclasses.replace(
        request_.result(backend="acme", program={}),
        inputs=(INPUTS[0], dataclasses.replace(INPUTS[1], name="past_key_0")),
        outputs=(OUTPUTS[0], dataclasses.replace(OUTPUTS[1], name="past_key_0_RetainedState")),
        states=(StateSpec(input="past_key_0", output="past_key_0_RetainedState"),),
    )
    check_compiled(compiled, request_, "acme", TOLD)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"states": ()}, r"its 0 states are not the 1 of the export \(past_key.0 are not there\)"),
        ({"states": (), "inputs": INPUTS[:1], "outputs": OUTPUTS[:1]}, "its 0 states are not the 1 of the export"),
        ({"inputs": INPUTS[:1]}, "the state 'past_key.0' is not an input"),
        ({"inputs": INPUTS[1:]}, "lacks the inputs input_ids"),
        ({"inputs": (*INPUTS, TensorSpec(name="x", dtype="int64", shape=(1,)))}, "inputs that the export has not: x"),
        (
            {"inputs": (TensorSpec(name="input_ids", dtype="int32", shape=("batch_size", 1)), INPUTS[1])},
            r"'input_ids' is int32 \[batch_size, 1\], in the export it is int64 \[batch_size, 1\]",
        ),
        ({"outputs": OUTPUTS[1:]}, "lacks the outputs logits"),
        ({"specializations": ()}, "missing or changed: decode"),
        ({"backend": "other"}, "for backend 'other'"),
        ({"task": "encoder"}, "its task is 'encoder'"),
        ({"directory": Path("elsewhere")}, "not the output_dir"),
        ({"program": {"file": Path("x")}}, "its program is not JSON"),
        ({"metadata": {"x": {1, 2}}}, "its metadata is not JSON"),
    ],
)
def test_a_program_that_does_not_fit_is_not_published(
    request_: CompileRequest, change: Mapping[str, Any], said: str
) -> None:
    compiled: CompiledModel = dataclasses.replace(request_.result(backend="acme", program={}), **change)
    with pytest.raises(BackendError, match=said) as refused:
        check_compiled(compiled, request_, "acme", TOLD)
    assert TOLD in str(refused.value)


def test_an_export_without_its_file_is_refused(request_: CompileRequest, tmp_path: Path) -> None:
    module: Any = None
    asked = ExportRequest(module=module, task="causal-lm", output_dir=tmp_path / "export")
    with pytest.raises(BackendError, match=r"acme.*'model.onnx', which was not written"):
        check_exported(request_.exported, asked, TOLD)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "yes",
        Probe(can_compile=1, can_execute=True, hardware=False, rank=1),  # type: ignore[arg-type]
        Probe(can_compile=True, can_execute=True, hardware=False, rank="high"),  # type: ignore[arg-type]
        Probe(can_compile=True, can_execute=True, hardware=False, rank=1, checks=("ok",)),  # type: ignore[arg-type]
        ValueError("no card"),
        SystemExit(3),
    ],
)
def test_a_probe_of_another_form_names_the_backend(answer: object) -> None:
    class Odd(RecordingBackend):
        def probe(self) -> Probe:
            if isinstance(answer, BaseException):
                raise answer
            return answer  # type: ignore[return-value]

    with pytest.raises(BackendBrokenError, match=r"acme.*probe\(\)"):
        checked_probe(Odd(), TOLD)


@pytest.mark.parametrize("answer", [None, {"sdk": 1}, ["sdk"]])
def test_a_fingerprint_of_another_form_names_the_backend(answer: Any) -> None:
    class Odd(RecordingBackend):
        def fingerprint(self) -> dict[str, str]:
            return answer

    with pytest.raises(BackendBrokenError, match=r"acme.*fingerprint\(\)"):
        checked_fingerprint(Odd(), TOLD)


def test_every_exception_names_the_plugin_and_an_interruption_passes() -> None:
    with (
        pytest.raises(CompileError, match=r"acme.*failed to compile: ZeroDivisionError") as wrapped,
        blamed(TOLD, "failed to compile", CompileError),
    ):
        _ = 1 / 0
    assert isinstance(wrapped.value.__cause__, ZeroDivisionError)
    with pytest.raises(CompileError, match=r"^backend 'acme' .*: out of cores$"), blamed(TOLD, "failed", BackendError):
        raise CompileError("out of cores")
    with pytest.raises(KeyboardInterrupt), blamed(TOLD, "failed", CompileError):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda inputs: 1 // 0, "failed in a step: ZeroDivisionError"),
        (lambda inputs: [1], "returned list from a step"),
        (lambda inputs: {"other": np.zeros(1)}, "returned no logits from a step, only other"),
    ],
)
def test_a_session_that_breaks_names_the_backend(
    request_: CompileRequest, run: Callable[[Any], Any], said: str
) -> None:
    class Session:
        compiled = request_.result(backend="acme", program={})
        info: Mapping[str, str] = {}

        def run(self, inputs: Any) -> Any:
            return run(inputs)

        def reset(self) -> None: ...

        def close(self) -> None:
            raise OSError("the device is gone")

    session = GuardedSession(Session(), TOLD)
    with pytest.raises((BackendError, ExecutionError), match=f"acme.*{said}"):
        session.run({})
    with pytest.raises(ExecutionError, match="acme.*OSError: the device is gone"):
        session.close()
