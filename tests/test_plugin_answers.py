"""Whatever a plugin returns or raises: it is refused with the plugin's name, and nothing is published."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qeff_framework.contracts import (
    Capabilities,
    Check,
    CompiledModel,
    CompileRequest,
    ExecuteRequest,
    ExportedModel,
    ExportRequest,
    Probe,
    Specialization,
    StateSpec,
    Status,
    TensorSpec,
)
from qeff_framework.errors import (
    ArtifactError,
    BackendBrokenError,
    BackendError,
    BackendIncompatibleError,
    CompileError,
    ExecutionError,
    InputError,
)
from qeff_framework.guarded_hooks import guarded_hooks
from qeff_framework.guarded_session import GuardedSession, guard_session
from qeff_framework.options import CompileOptions
from qeff_framework.plugin_answers import (
    blamed,
    check_compiled,
    check_descriptor,
    check_exported,
    checked_capabilities,
    checked_fingerprint,
    checked_probe,
)
from qeff_framework.plugin_api import hookimpl
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
    request = CompileRequest(
        exported=exported,
        model=model,
        transforms=(),
        specializations=(Specialization(name="decode", dims={"batch_size": 1, "seq_len": 1}),),
        options=RecordingOptions(),
        output_dir=tmp_path / "program",
    )
    request.output_dir.mkdir()
    (request.output_dir / "x").touch()
    return request


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
    assert [state.input for state in compiled.states] != [state.input for state in request_.exported.states]


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
        ({"program": {"scale": math.nan}}, "its program is not JSON"),
        ({"program": {"files": [{1: "x"}]}}, "its program has keys that are no texts"),
        ({"dry_run_result": "../elsewhere"}, "dry_run_result '../elsewhere' is not a path inside"),
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


@pytest.mark.parametrize("is_changed", [True, False])
def test_a_request_is_for_reading(request_: CompileRequest, is_changed: bool) -> None:
    """Results are compared with it: a size that was changed in place would be published as the one that was asked for."""

    class Writes:
        @hookimpl
        def compile(self, request: CompileRequest) -> CompiledModel:
            result = request.result(backend="acme", program={})
            result.metadata["note"] = "x"  # type: ignore[index] # its own result takes further entries
            if is_changed:
                request.specializations[0].dims["seq_len"] = 2  # type: ignore[index]
            return result

    hooks: Any = guarded_hooks(Writes(), TOLD, BackendIncompatibleError, lambda hook, result, request, told: result)
    if is_changed:
        with pytest.raises(BackendError, match=r"^backend 'acme' .* changed specializations of the request in compile"):
            hooks.compile(request_)
    else:
        assert hooks.compile(request_).metadata["note"] == "x"
        assert "note" not in request_.exported.metadata


def test_every_exception_names_the_plugin_and_an_interruption_passes() -> None:
    with (
        pytest.raises(CompileError, match=r"acme.*failed to compile: ZeroDivisionError") as wrapped,
        blamed(TOLD, "failed to compile", CompileError),
    ):
        _ = 1 / 0
    assert isinstance(wrapped.value.__cause__, ZeroDivisionError)
    with (
        pytest.raises(
            ArtifactError, match=r"^backend 'acme' .* failed to compile: .*\. Free some space, or use a larger"
        ),
        blamed(TOLD, "failed to compile", CompileError),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
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


def test_files_that_would_be_wrong_after_publishing_are_refused(request_: CompileRequest) -> None:
    named = request_.result(backend="acme", program={"parts": [{"file": str(request_.output_dir / "x")}]})
    with pytest.raises(BackendError, match="published under another name, so name files relative to it"):
        check_compiled(named, request_, "acme", TOLD)
    (request_.output_dir / "tokenizer").mkdir()
    with pytest.raises(BackendError, match="it wrote tokenizer, which the framework writes itself"):
        check_compiled(request_.result(backend="acme", program={}), request_, "acme", TOLD)
    (request_.output_dir / "tokenizer").rmdir()
    (request_.output_dir / "x").unlink()
    with pytest.raises(BackendError, match="it wrote no file into output_dir"):
        check_compiled(request_.result(backend="acme", program={}), request_, "acme", TOLD)


def test_an_export_is_compared_with_its_graph(request_: CompileRequest, tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    module: Any = None
    asked = ExportRequest(
        module=module, task="causal-lm", output_dir=tmp_path / "export", extra_inputs=("batch_index",)
    )
    asked.output_dir.mkdir()
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, 1])
    graph = helper.make_graph([helper.make_node("Identity", ["input_ids"], ["logits"])], "g", [ids], [ids])
    graph.output[0].name = "logits"
    weight = graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../weights")
    save(helper.make_model(graph), asked.output_dir / "model.onnx")
    with pytest.raises(BackendError) as refused:
        check_exported(request_.exported, asked, TOLD)
    for said in (
        "no input past_key.0",
        "no output past_key.0_Ret",
        "lie in '../weights'",
        "lacks the inputs batch_index",
    ):
        assert said in str(refused.value)


def test_a_probe_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qeff_framework.plugin_answers.PROBE_SECONDS", 0.05)
    released = threading.Event()

    class Odd(RecordingBackend):
        def probe(self) -> Probe:
            released.wait(60)
            return super().probe()

    with pytest.raises(BackendBrokenError, match=r"acme.*probe\(\): TimeoutError: no answer within 0.05 s"):
        checked_probe(Odd(), TOLD)
    released.set()


def test_what_a_probe_says_is_printable() -> None:
    class Odd(RecordingBackend):
        def probe(self) -> Probe:
            check = Check(name="a\x1b[2J", status=Status.FAILED, detail="x" * 10_000, remedy="\u202eb\nc")
            return dataclasses.replace(super().probe(), checks=[check])

    [check] = checked_probe(Odd(), TOLD).checks
    assert len(check.detail) <= 2000
    assert (check.name, check.remedy) == ("a\N{REPLACEMENT CHARACTER}[2J", "\N{REPLACEMENT CHARACTER}b c")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a b\x1b"),
        ("options", dict),
        ("options", dataclasses.make_dataclass("Odd", [("x", "NoSuchType", 1)], bases=(CompileOptions,), frozen=True)),
        ("runtime_options", None),
        ("capabilities", {"tasks": ["causal-lm"]}),
        ("capabilities", Capabilities(tasks="causal-lm")),  # type: ignore[arg-type]
        ("capabilities", Capabilities(tasks=frozenset({"causal_lm"}))),
        ("implementation", "no_colon"),
    ],
)
def test_a_descriptor_with_a_wrong_field_is_refused(field: str, value: object) -> None:
    descriptor = type("Odd", (RecordingBackend,), {field: value})()
    with pytest.raises(BackendIncompatibleError, match=rf"\(qeff-odd 1.0\) is wrong: {field}"):
        check_descriptor(descriptor, "qeff-odd 1.0")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "the answer is None, not an instance of Capabilities"),
        ({"dry_run": "yes"}, "the answer.dry_run is 'yes', not True or False"),
        ({"scope": None}, "the answer.scope is None, not text"),
        ({"tasks": "causal-lm"}, "the answer.tasks is 'causal-lm', not a set of names of tasks"),
        ({"tasks": {"causal_lm", "encoder"}}, "the answer.tasks has 'causal_lm', which is spelled 'causal-lm'"),
    ],
)
def test_wrong_capabilities_name_the_backend_and_the_field(answer: Mapping[str, Any] | None, said: str) -> None:
    class Odd(RecordingBackend):
        def capabilities_for(self, options: CompileOptions) -> Capabilities:
            return answer if answer is None else Capabilities(**{"tasks": frozenset(), **answer})  # type: ignore[return-value]

    with pytest.raises(BackendBrokenError, match=rf"acme.*wrong Capabilities from capabilities_for\(\): {said}"):
        checked_capabilities(Odd(), RecordingOptions(), TOLD)


class Panic(BaseException):
    """As native code raises it."""


def test_panics_and_errors_of_ours_name_the_package_once() -> None:
    with (
        pytest.raises(ExecutionError, match=r"acme.*failed in a step: Panic: lost"),
        blamed(TOLD, "failed in a step", ExecutionError),
    ):
        raise Panic("lost")
    message = f"{TOLD} cannot compile: no SDK"
    with (
        pytest.raises(CompileError, match=f"^{re.escape(message)}$"),
        blamed("extension 'x' (x 1.0)", "failed", BackendError),
        blamed(TOLD, "failed", BackendError),
    ):
        raise CompileError("backend 'acme' cannot compile: no SDK")


def test_results_of_each_kind_of_step_are_compared_with_the_program(request_: CompileRequest) -> None:
    results: dict[tuple[int, ...], Any] = {
        (1, 1): np.zeros((1, 1), "float32"),
        (2, 1): np.zeros((1, 1), "float32"),
        (3, 1): np.zeros((3, 1), "float64"),
        (4, 1): [0.0],
    }

    class Session:
        compiled = request_.result(backend="acme", program={})
        info: Mapping[str, str] = {}

        def run(self, inputs: Any) -> Any:
            if inputs["input_ids"] is None:
                raise InputError("no ids")
            return {"logits": results[inputs["input_ids"].shape]}

        def reset(self) -> None: ...

        def close(self) -> None: ...

    session = GuardedSession(Session(), TOLD)
    assert session.run({"input_ids": np.zeros((1, 1), "int64")})["logits"] is results[1, 1]
    for rows, said in ((2, r"float32 \[1, 1\], not float32 \[2, 1\]"), (3, "as float64"), (4, "as list, not")):
        with pytest.raises(BackendError, match=f"acme.*'logits' from a step.*{said}"):
            session.run({"input_ids": np.zeros((rows, 1), "int64")})
    for later, said in (
        ([0.0], "as list, not"),
        (np.zeros((1, 2), "float32"), r"float32 \[1, 2\]"),
        (None, "as NoneType"),
    ):
        results[1, 1] = later
        with pytest.raises(BackendError, match=f"acme.*'logits' from a step.*{said}"):
            session.run({"input_ids": np.zeros((1, 1), "int64")})
    with pytest.raises(InputError, match=r"^backend 'acme' \(qeff-acme-backend 1.0\): no ids$"):
        session.run({"input_ids": None})


def test_a_session_of_another_program_is_closed_and_refused(request_: CompileRequest) -> None:
    closed: list[bool] = []

    class Session:
        compiled = dataclasses.replace(request_.result(backend="acme", program={}), states=())
        info: Any = None
        run = reset = None

        def close(self) -> None:
            closed.append(True)

    asked = ExecuteRequest(compiled=request_.result(backend="acme", program={}), options=None)
    with pytest.raises(BackendError, match="acme.*compiled is not the program.*info is NoneType.*run cannot be called"):
        guard_session(Session(), asked, TOLD)  # type: ignore[arg-type]
    assert closed == [True]
