"""The tools of one compilation: what fails is said with the log that was kept."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from qeff_framework.contracts import CompileRequest, ExportedModel
from qeff_framework.errors import BackendUnavailableError, CompileError, InputError
from qeff_framework.toolchains import Diagnosis, Ended, Outcome, Toolchain, keep_log, toolchain


@pytest.fixture
def request_(tmp_path: Path) -> CompileRequest:
    output = tmp_path / "output"
    output.mkdir()
    return CompileRequest(
        exported=ExportedModel(
            directory=tmp_path,
            task="encoder",
            model_file="",
            inputs=(),
            outputs=(),
            metadata={"model_name": "org/some model"},
        ),
        model=None,
        transforms=(),
        specializations=(),
        options=None,
        output_dir=output,
        log_dir=tmp_path / "logs",
    )


def tools(request: CompileRequest, minutes: float = 1.0) -> Toolchain:
    return Toolchain(request, name="acme, target x", time_limit_minutes=minutes, limit_option="compile_timeout_minutes")


def kept(error: BaseException, folder: Path) -> str:
    """The log that the message names."""
    file = Path(re.search(r"Full output: (\S+\.log)$", str(error))[1])
    assert file.parent == folder / "logs"
    assert file.name.startswith("acme-target-x-org-some-model-")
    return file.read_text()


def test_the_time_limit_holds_for_all_tools_together(request_: CompileRequest, tmp_path: Path) -> None:
    chain = tools(request_, minutes=0.01)
    assert chain.run(["sleep", "0.3"]).outcome is Outcome.SUCCESS
    started = time.monotonic()
    with pytest.raises(
        CompileError, match=r"acme, target x: sleep did not end within 0\.01 minutes \(compile_timeo"
    ) as caught:
        chain.run(["sleep", "60"])
    assert time.monotonic() - started < 0.5
    assert kept(caught.value, tmp_path).count("$ sleep") == 2


def test_a_tool_that_cannot_be_started(request_: CompileRequest) -> None:
    with pytest.raises(
        BackendUnavailableError, match=r"acme, target x: nothing-here cannot be run: .*\. For Linux only"
    ):
        tools(request_).run(["nothing-here"], hint="For Linux only")


def test_output_is_progress_but_not_too_fast(request_: CompileRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    request = CompileRequest(**{**vars(request_), "progress": told.append})
    script = ["sh", "-c", r"for n in 1 2 3; do printf '\033[1mstep %s\033[0m\n\n' $n; done"]
    tools(request).run(script)
    assert told == []
    monkeypatch.setattr(toolchain, "_SECONDS_BETWEEN_REPORTS", 0.0)
    tools(request).run(script)
    assert told == ["sh: step 1", "sh: step 2", "sh: step 3"]


# --- jobs -------------------------------------------------------------------------------------------------------------

JOBS = """
import os, sys
from qeff_framework.errors import BackendUnavailableError, CompileError

def double(numbers): print("noise"); return {"doubled": [2 * number for number in numbers]}
def refuse(): raise CompileError("the model is too large")
def unavailable(): raise BackendUnavailableError("no library")
def stumble(): raise KeyError("soc")
def crash(): print("last words", flush=True); os.abort()
def leave(): sys.stdout.write("no space\\n"); sys.stdout.flush(); os._exit(3)
def crash_at_exit():
    import atexit
    atexit.register(os.abort)
    return {"done": True}
def hang():
    import time
    time.sleep(60)
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_jobs.py").write_text(JOBS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("jobs")
def test_a_job_returns_what_its_function_returns(request_: CompileRequest) -> None:
    chain = tools(request_)
    result = chain.run_job("some_jobs:double", {"numbers": [1, 2]}, subject="doubling")
    assert result == {"doubled": [2, 4]}
    assert "noise" in chain.log.read_text()
    assert [path.name for path in request_.output_dir.iterdir()] == ["compile.log"]


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize(
    ("function", "error", "message", "log"),
    [
        ("refuse", CompileError, "acme, target x: the model is too large", ""),
        ("unavailable", BackendUnavailableError, "acme, target x: no library", ""),
        ("stumble", CompileError, "acme, target x: stumble failed: KeyError: 'soc'", "Traceback"),
        ("crash", CompileError, "the compiler crashed with signal SIGABRT without a result; its last words: last words", "last"),
        ("leave", CompileError, "the compiler ended with exit code 3 without a result; its last words: no space", "no space"),
        ("crash_at_exit", CompileError, "the compiler crashed with signal SIGABRT without a result", ""),
        ("absent", CompileError, "absent failed: AttributeError: module 'some_jobs' has no attribute 'absent'", ""),
    ],
)  # fmt: skip
def test_a_job_that_fails(
    function: str, error: type[Exception], message: str, log: str, request_: CompileRequest, tmp_path: Path
) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        tools(request_).run_job(f"some_jobs:{function}", {}, subject="the compiler")
    assert type(caught.value) is error
    assert log in kept(caught.value, tmp_path)


@pytest.mark.usefixtures("jobs")
def test_a_job_that_does_not_end(request_: CompileRequest) -> None:
    with pytest.raises(CompileError, match=r"the compiler did not end within 0\.005 minutes"):
        tools(request_, minutes=0.005).run_job("some_jobs:hang", {}, subject="the compiler")


# --- messages ---------------------------------------------------------------------------------------------------------

ACME = Diagnosis(
    error_line=re.compile("error", re.IGNORECASE),
    skipped_line=re.compile(r"^ERROR:$"),
    advice=(("memory", "use fewer threads"), ("flag", "leave it out")),
    advice_when_killed="take a larger machine",
)


@pytest.mark.parametrize(
    ("exit_code", "output", "text"),
    [
        (1, "reading\nERROR:\nerror: bad flag\nbye\n", "acme ended with exit code 1: error: bad flag. Leave it out"),
        (2, "only progress\nlast words\n", "acme ended with exit code 2: last words"),
        (2, "\nERROR:\n", "acme ended with exit code 2 without naming an error"),
        (0, "", "acme ended with exit code 0, but left no program"),
        (0, "error: memory\n", "acme ended with exit code 0, but left no program: error: memory. Use fewer threads"),
        (-11, "step 3\n", "acme crashed with signal SIGSEGV: step 3"),
        (-9, "error: flag\n", "acme was killed by signal SIGKILL, probably because the host ran out of memory. Take a larger"),
    ],
)  # fmt: skip
def test_the_first_useful_line_and_what_to_do(exit_code: int, output: str, text: str) -> None:
    ended = Ended(exit_code=exit_code, timed_out=False, output=output)
    assert ACME.explain("acme", ended, missing="program").startswith(text)


def test_a_log_is_kept_even_where_the_store_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    log, blocker = tmp_path / "compile.log", tmp_path / "logs"
    log.write_text("output")
    blocker.write_text("a file where the folder should be")
    for directory in (blocker, None):
        copy = keep_log(log, directory, "a/b")
        assert (copy.parent, copy.read_text()) == (tmp_path, "output")
    assert json.dumps(copy.name).startswith('"a-b-')


def test_without_a_log_the_message_names_none(request_: CompileRequest) -> None:
    error: Any = tools(request_).failure("no input", kind=InputError)
    assert (type(error), str(error)) == (InputError, "acme, target x: no input")
