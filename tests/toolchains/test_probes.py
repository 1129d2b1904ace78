"""A probe answers, or says in one sentence why there is no answer."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qeff_framework.toolchains import ProbeError, ask_command, ask_python


def test_an_answer_may_follow_notices_and_a_local_file_hides_no_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    code = "import json, sys; print('notice'); print(json.dumps({'arguments': sys.argv[1:]}))"
    assert ask_python(code, "a b", subject="asking") == {"arguments": ["a b"]}
    assert ask_command(["sh", "-c", "echo $WHO; echo noise >&2"], environment={"WHO": "me"}) == "me\n"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('libfoo.so: cannot open')", "asking ended with exit code 1: ImportError: libfoo.so: cannot open"),
        ("import os; os.abort()", "asking crashed with signal SIGABRT"),
        ("print()", "asking gave no answer: Expecting value"),
        ("print('[1]')", r"asking gave no answer: '\[1\]' is not a JSON object"),
    ],
)  # fmt: skip
def test_python_that_gives_no_answer(code: str, reason: str) -> None:
    with pytest.raises(ProbeError, match=f"^{reason}"):
        ask_python(code, subject="asking")


def test_a_hanging_helper_does_not_hold_up_the_probe() -> None:
    """The helper keeps the output open; a probe that read a pipe until its end would wait for it."""
    started = time.monotonic()
    with pytest.raises(ProbeError, match=r"sh -c sleep 30 & sleep 30 did not end within 0\.2 s"):
        ask_command(["sh", "-c", "sleep 30 & sleep 30"], time_limit_seconds=0.2)
    assert ask_command(["sh", "-c", "echo done; sleep 30 &"]) == "done\n"
    assert time.monotonic() - started < 10


def test_commands_that_fail() -> None:
    with pytest.raises(ProbeError, match=r"^nothing-here cannot be run: .*nothing-here"):
        ask_command(["nothing-here"])
    with pytest.raises(ProbeError, match="^the tool ended with exit code 3: no driver$"):
        ask_command(["sh", "-c", "echo warning >&2; echo no driver >&2; exit 3"], subject="the tool")
