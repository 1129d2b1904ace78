"""Child processes end: by themselves, by force, with all their helpers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qeff_framework.toolchains import Ended, Outcome, run_process


def run(argv: list[str], folder: Path, **options: object) -> Ended:
    return run_process(argv, folder, log=folder / "tool.log", **{"time_limit_seconds": 20, **options})


def is_alive(pid: int) -> bool:
    """The process runs; a zombie that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    for _ in range(200):
        if not is_alive(pid):
            return
        time.sleep(0.02)
    pytest.fail(f"process {pid} is still there")


def test_arguments_directory_environment_and_output(tmp_path: Path) -> None:
    """No shell reads the arguments, and the log says what was run with which result."""
    folder = tmp_path / "a folder with 'quotes'"
    folder.mkdir()
    lines: list[str] = []
    code = "import os, sys; print(sys.argv[1]); print(os.getcwd()); print(os.environ['WHO'], file=sys.stderr)"
    ended = run([sys.executable, "-c", code, "$HOME; *"], folder, environment={"WHO": "me"}, on_line=lines.append)
    assert (ended.outcome, ended.exit_code) == (Outcome.SUCCESS, 0)
    assert sorted(ended.output.splitlines()) == sorted(["$HOME; *", str(folder), "me"])
    assert lines == ended.output.splitlines()
    run(["true"], folder)
    log = (folder / "tool.log").read_text()
    assert log.startswith(f"$ {sys.executable} -c ")
    assert log.endswith("[exit code 0]\n$ true\n[exit code 0]\n")
    with pytest.raises(OSError, match="nothing-here"):
        run(["nothing-here"], folder)


def test_lines_are_passed_on_while_the_process_runs(tmp_path: Path) -> None:
    """The process waits for a file that is written when its first line has arrived."""
    seen: list[str] = []

    def on_line(line: str) -> None:
        seen.append(line)
        (tmp_path / "seen").touch()

    script = "echo; echo first; until [ -e seen ]; do sleep 0.01; done; printf last"
    assert run(["sh", "-c", script], tmp_path, on_line=on_line).outcome is Outcome.SUCCESS
    assert seen == ["", "first", "last"]


@pytest.mark.parametrize(
    ("ending", "seconds", "outcome", "text"),
    [
        ("exit 0", 20, Outcome.SUCCESS, "ended with exit code 0"),
        ("exit 255", 20, Outcome.REFUSED, "ended with exit code 255"),
        ("kill -SEGV $$", 20, Outcome.CRASHED, "crashed with signal SIGSEGV"),
        ("kill -KILL $$", 20, Outcome.KILLED, "killed by signal SIGKILL, probably because the host ran out of memory"),
        ("wait", 0.3, Outcome.TIMED_OUT, "did not end in time and was stopped"),
    ],
    ids=["success", "refused", "crash", "killed", "time limit"],
)
def test_helpers_end_with_the_process(ending: str, seconds: float, outcome: Outcome, text: str, tmp_path: Path) -> None:
    ended = run(["sh", "-c", f"sleep 60 & echo $!; {ending}"], tmp_path, time_limit_seconds=seconds)
    assert ended.outcome is outcome
    assert text in ended.description
    wait_until_gone(int(ended.output))


def test_an_interruption_ends_the_process_and_its_helpers(tmp_path: Path) -> None:
    code = (
        # A run of the tests in the background ignores the signal, and its processes do as well.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path; from qeff_framework.toolchains import run_process\n"
        "tool = 'sleep 60 & echo $! >helper; wait'\n"
        "run_process(['sh', '-c', tool], Path(), log=Path('tool.log'), time_limit_seconds=60)"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    helper = tmp_path / "helper"
    while not (helper.is_file() and helper.read_text().strip()):
        assert caller.poll() is None
        time.sleep(0.02)
    caller.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in caller.communicate(timeout=20)[1]
    wait_until_gone(int(helper.read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_a_process_starts_ends_it(number: int, tmp_path: Path, monkeypatch) -> None:
    """Python loses a process when a handler raises inside of Popen; and the handlers are as before afterwards."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def interrupted(*args: Any, **keywords: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **keywords))
        signal.raise_signal(number)
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        for one in before:
            signal.signal(one, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            run(["sleep", "60"], tmp_path)
        assert all(signal.getsignal(one) is signal.default_int_handler for one in before)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert started[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("exit_code", "outcome", "text"),
    [
        (139, Outcome.CRASHED, "crashed with signal SIGSEGV"),
        (137, Outcome.KILLED, "was killed by signal SIGKILL, probably"),
        (-int(signal.SIGTERM), Outcome.KILLED, "was killed by signal SIGTERM"),
        (143, Outcome.REFUSED, "ended with exit code 143"),
        (0xC0000005, Outcome.CRASHED, "crashed with exit code 0xC0000005 (access violation)"),
        (0xC0001234, Outcome.CRASHED, "crashed with exit code 0xC0001234"),
        (-50, Outcome.KILLED, "was killed by signal 50"),
    ],
)
def test_exit_codes_of_shells_and_of_windows(exit_code: int, outcome: Outcome, text: str) -> None:
    ended = Ended(exit_code=exit_code, timed_out=False)
    assert ended.outcome is outcome
    assert ended.description.startswith(text)
    assert os.linesep not in ended.description
