"""What holds for every subcommand: exit codes, streams, JSON, interruption."""

from __future__ import annotations

import atexit
import gc
import json
import os
import shlex
import signal
import subprocess
import time
from functools import partial

import pytest

from qeff_framework.cli.app import build_parser
from qeff_framework.cli.models import open_model
from tests.cli.conftest import command, interrupt, run_process

COMMANDS = [
    "backends",
    "doctor",
    "export",
    "compile",
    "generate",
    "bench",
    "compare",
    "inspect",
    "cache",
    "coverage",
    "test-backend",
]
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "numpy", "onnx_ir")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(qeff, name):
    result = qeff(name, "--help")

    assert result.code == 0
    assert f"  qeff {name}" in result.out.partition("example")[2]


def test_a_misspelt_variable_is_told_by_every_command(qeff, monkeypatch):
    """It changes nothing, and what it was meant for would go its way."""
    monkeypatch.setenv("QEFF_HOMME", "/elsewhere")
    monkeypatch.setenv("QEFF_OF_A_BACKEND", "x")
    warnings = [line for line in qeff("cache", "ls").err.splitlines() if "variable" in line]
    assert warnings == ["qeff: warning: the variable QEFF_HOMME is read by nobody here; did you mean QEFF_HOME?"]


def test_importing_the_command_imports_nothing_heavy(environment):
    source = (
        f"import sys, qeff_framework.cli as c; c.main(['--version']); print([m for m in {HEAVY!r} if m in sys.modules])"
    )

    done = subprocess.run([*command()[:1], "-c", source], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[1] == "[]"


def test_no_cycles_are_looked_for_when_the_command_ends(qeff, monkeypatch):
    called_at_exit = []
    monkeypatch.setattr(atexit, "register", called_at_exit.append)

    qeff("--version")

    assert called_at_exit == [gc.freeze]


def test_a_model_is_opened_while_cycles_are_looked_for_rarely(monkeypatch):
    """Torch and Transformers make half a million objects when they are imported."""
    before = gc.get_threshold()
    monkeypatch.setattr("qeff_framework.auto.model.model_of_checkpoint", lambda *_, **__: gc.get_threshold())
    assert open_model(build_parser().parse_args(["export", "some"]))[0] > before[0]
    assert gc.get_threshold() == before


def test_version(qeff):
    result = qeff("--version")

    assert result.code == 0
    assert result.out.startswith("qeff-framework ")


def test_no_command_shows_the_help(qeff):
    result = qeff()

    assert result.code == 2
    assert result.out == ""
    assert all(name in result.err for name in COMMANDS)


@pytest.mark.parametrize(
    "argv",
    [
        ["bakends"],
        ["backends", "--jsno"],
        ["backends", "--options"],
        ["compile"],
        ["compile", "model", "-O", "no_equals_sign"],
        ["generate", "model", "--prompt", "x", "--top-k", "many"],
        ["generate", "model"],
        ["generate", "model", "--prompt", "x", "--temperature", "0.5"],
        ["generate", "model", "--prompt", "x", "--do-sample", "--top-p", "7"],
        ["cache"],
        ["cache", "rm"],
        ["cache", "rm", "--all", "something"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_with_one_message(qeff, argv):
    result = qeff(*argv)

    assert result.code == 2
    assert result.out == ""
    assert result.err.splitlines()[-1].startswith("qeff: error: ")
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["bakends"], "did you mean backends?"),
        (["generate", "model", "--promt", "x"], "unrecognized arguments: --promt x; did you mean --prompt?"),
        (["cache", "ls", "--jsn"], "unrecognized arguments: --jsn; did you mean --json?"),
        (["inspect", "model", "--verify", "ful"], "did you mean full?"),
    ],
)
def test_near_misses_are_told_what_was_meant(qeff, argv, told):
    last = qeff(*argv).err.splitlines()[-1]

    assert last.startswith("qeff: error: ")
    assert last.endswith(told)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["export", "./nonexistent"], "does not exist"),
        (["compile", "./nonexistent", "--backend", "ort_sim"], "does not exist"),
        (["generate", "./nonexistent", "--backend", "ort_sim", "--prompt", "x"], "does not exist"),
        (["generate", "./nonexistent", "--prompts-file", "./nonexistent.txt"], "cannot be read"),
        (["generate", "./nonexistent", "--prompts-file", os.devnull], "holds no prompts"),
        (["export", ""], "the name of the model is empty"),
        (["inspect", "./nonexistent"], "is not a directory"),
        (["inspect", "."], "holds neither compiled.json nor exported.json"),
        (["cache", "rm", "nonexistent", "--yes"], "no artifact"),
        (["cache", "verify", "nonexistent"], "no artifact"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_failure_is_1_with_one_message(qeff, argv, told):
    result = qeff(*argv)

    assert result.code == 1
    assert result.out == ""
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("qeff: error: ")
    assert told in result.err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["backends", "ort_simm"], "did you mean 'ort_sim'?"),
        (["doctor", "nonexistent"], "no backend named 'nonexistent'"),
        (["compile", "./nonexistent", "--backend", "ort_simm"], "did you mean 'ort_sim'?"),
        (["coverage", "llama", "--backend", "ort_simm"], "did you mean 'ort_sim'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_unknown_backend_is_2(qeff, argv, told):
    result = qeff(*argv)

    assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1)
    assert told in result.err


def test_failure_with_json_is_a_document_too(qeff):
    result = qeff("inspect", "./nonexistent", "--json")

    assert result.code == 1
    assert result.json["error"]["type"] == "ArtifactError"
    assert result.json["error"]["message"] in result.err


@pytest.mark.parametrize("argv", [["--debug", "inspect", "x"], ["inspect", "x", "--debug"]], ids=["before", "after"])
def test_debug_adds_the_traceback(qeff, argv):
    result = qeff(*argv)

    assert result.code == 1
    assert "Traceback (most recent call last)" in result.err
    assert result.err.splitlines()[-1].startswith("qeff: error: ")


def test_an_error_in_a_backend_is_one_line_that_names_the_backend(model_qeff, llama):
    result = model_qeff("-q", "compile", llama, "--backend", "toy", "-O", "mode=crash")

    assert result.code == 1
    assert result.err == (
        "qeff: error: backend 'toy' (qeff-toy-backend 0.3.0) failed to compile: ZeroDivisionError: a bug of the toy backend; "
        "--debug shows the traceback\n"
    )


def test_unexpected_error_is_one_line_that_names_debug(qeff, monkeypatch):
    def list_backends():
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr("qeff_framework.registry.list_backends", list_backends)
    result = qeff("-q", "backends")

    assert result.code == 1
    assert result.err == "qeff: error: unexpected ZeroDivisionError: a bug of ours; --debug shows the traceback\n"


@pytest.mark.parametrize("quiet", [["-q"], ["--quiet"]], ids=" ".join)
@pytest.mark.parametrize("place", ["before", "after"])
def test_quiet_hides_progress_and_figures(model_qeff, toy_artifact, quiet, place):
    argv = ["generate", toy_artifact, "--prompt", "one", "--max-new-tokens", "2"]

    result = model_qeff(*quiet, *argv) if place == "before" else model_qeff(*argv, *quiet)

    assert (result.out, result.err) == ("two three\n", "")


def test_stdout_carries_the_document_alone(environment, toy_site, llama, store):
    environment |= {"PYTHONPATH": f"{environment['PYTHONPATH']}:{toy_site}", "QEFF_HOME": str(store)}

    result = run_process(environment, "compile", llama, "--backend", "toy", "-O", "mode=noisy", "--json")

    assert result.code == 0
    assert result.json["backend"] == "toy"
    assert "printed by Python" in result.err
    assert "written by native code" in result.err


def test_interruption_leaves_nothing_behind(environment, toy_site, llama, store, tmp_path):
    waiting = tmp_path / "waiting"
    environment |= {
        "PYTHONPATH": f"{environment['PYTHONPATH']}:{toy_site}",
        "QEFF_HOME": str(store),
        "TOY_WAITING": str(waiting),
    }
    argv = command("compile", llama, "--backend", "toy", "-O", "mode=wait", "--json")
    before = sorted(path.name for path in (store / "compiled").glob("*"))

    with subprocess.Popen(
        argv,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a shell ignores interruptions, and hands that on.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - the call starts no thread
    ) as process:
        deadline = time.monotonic() + 120
        while not waiting.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        out, err = interrupt(process)

    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "qeff: interrupted"
    assert "Traceback" not in err
    assert sorted(path.name for path in (store / "compiled").glob("*")) == before
    assert list((store / "staging").iterdir()) == []


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("option", ["--json", "-q"])
def test_reader_that_has_gone_is_no_error(environment, option, unbuffered):
    environment["PYTHONUNBUFFERED"] = unbuffered
    with subprocess.Popen(
        command("backends", option), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        err = process.stderr.read()

    assert process.returncode == 141
    assert err == b""


@pytest.mark.parametrize(
    ("redirection", "code", "told"),
    [
        ("1>&-", 0, ""),
        ("2>&-", 0, ""),
        ("1>/dev/full", 1, "qeff: error: the output cannot be written: [Errno 28] No space left on device\n"),
    ],
)
def test_output_that_goes_nowhere(environment, redirection, code, told):
    """Closed by a shell or a service manager, Python has no stream for it, and a file that is opened next gets its number."""
    shell = f"exec {shlex.join(command('backends', '--json'))} {redirection}"

    done = subprocess.run(["sh", "-c", shell], env=environment, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (code, told)
    if redirection == "2>&-":
        assert json.loads(done.stdout)["backends"]


def test_text_that_the_terminal_cannot_show(environment, toy_site, toy_artifact):
    environment["PYTHONIOENCODING"] = "ascii"
    environment["PYTHONPATH"] += f":{toy_site}"
    argv = ["-q", "generate", toy_artifact, "--prompt", "is", "--max-new-tokens", "1"]

    shown, document = run_process(environment, *argv), run_process(environment, *argv, "--json")

    assert (shown.code, shown.out) == (0, "sch?n\n")
    assert document.json["results"][0]["text"] == "sch\u00f6n"
