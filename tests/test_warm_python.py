"""A process of `tests.warm_python` does what one of Python's own does, and has nothing of another one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qeff_framework.toolchains import processes
from tests.forked_compilers import forking
from tests.warm_python import REFUSED, WarmPython, interpreter

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="forks need Linux")


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One without libraries."""
    python = WarmPython(tmp_path_factory.mktemp("warm"), ["json"])
    yield python.interpreter
    python.close()


def run(python: Path | str, *arguments: str, **keywords: Any) -> tuple[int, str, str]:
    done = subprocess.run(
        [python, *arguments], capture_output=True, text=True, check=False, timeout=60, **{"input": "", **keywords}
    )
    return done.returncode, done.stdout, done.stderr


SCRIPT = """\
import os, sys
print(__name__, __file__, sys.argv, sys.path[0], os.getcwd(), sorted(os.environ.items()), sys.stdin.read())
print(sorted(name for name in sys.modules if name.startswith(("tests", "qeff", "_pytest"))))
print(sys.stdout.name, sys.stdout.mode, sys.stdout.encoding, sys.stderr.errors, sys.stderr.line_buffering, os.umask(0))
"""


@pytest.mark.parametrize(
    "code",
    [
        SCRIPT,
        "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)",
        "raise SystemExit('a message')",
        "raise SystemExit(True)",
        "def inner():\n    return 1 / 0\ninner()",
        "def broken(:\n",
        "raise KeyboardInterrupt",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import atexit; atexit.register(print, 'at exit'); print('before', end='')",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('from a thread'))).start()",
        "import os; os.write(1, b'of a descriptor'); os._exit(3)",
        "import sys; sys.excepthook = lambda *_: print('hooked'); raise ValueError",
    ],
)
def test_it_does_what_python_does(warm: Path, tmp_path: Path, code: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(code, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
    environment = {**kept, "LANG": "C.UTF-8", "WHO": "me"}
    keywords: dict[str, Any] = {"input": "given", "cwd": tmp_path, "env": environment, "umask": 0o27}

    assert run(warm, str(script), "-x", "a b", **keywords) == run(sys.executable, str(script), "-x", "a b", **keywords)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import sys; print(sys.argv, sys.path)", "-c", "a"],
        ["-P", "-c", "import sys; print(sys.path)"],
        ["-I", "-c", "import sys; print(sys.path)"],
        ["-m", "here", "1"],
        ["-P", "-m", "here"],
        ["-m", "json.tool"],
        ["-m", "not_there"],
    ],
    ids=" ".join,
)
def test_modules_are_found_where_python_finds_them(warm: Path, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "here.py").write_text("import sys; print(__name__, sys.argv, sys.path)", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'one'}{os.pathsep}{tmp_path / 'two'}"}

    found, expected = (
        run(python, *arguments, input="[1]", cwd=tmp_path, env=environment) for python in (warm, sys.executable)
    )

    assert found == expected


def test_one_leaves_nothing_to_the_next(warm: Path) -> None:
    code = (
        "import os, sys, random; print(os.environ.pop('WHO', 0), hasattr(sys, 'left'), random.random()); sys.left = 1"
    )
    first, second = (run(warm, "-c", code, env={**os.environ, "WHO": who}) for who in "ab")

    assert [first[1].split()[:2], second[1].split()[:2]] == [["a", "False"], ["b", "False"]]
    assert first[1].split()[2] != second[1].split()[2]


def test_signals_reach_it_and_its_end_is_told(warm: Path) -> None:
    code = "import sys, time\ntry:\n    print('here', flush=True)\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    sys.exit(9)"
    for number, expected in ((signal.SIGINT, 9), (signal.SIGTERM, -signal.SIGTERM)):
        with subprocess.Popen(
            [warm, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            # A shell that runs the tests in the background has them ignore the signal.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - the call starts no thread
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
            process.send_signal(number)
            assert process.wait(60) == expected


def test_who_is_killed_takes_it_along(warm: Path) -> None:
    with subprocess.Popen(
        [warm, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        forked = Path("/proc") / process.stdout.readline().strip()
        process.kill()
        deadline = time.monotonic() + 30
        while forked.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not forked.exists()


@pytest.mark.parametrize(
    ("arguments", "variables", "told"),
    [
        (["-W", "error", "-c", "1"], {}, "-W"),
        (["-c", "1"], {"PYTHONHASHSEED": "1"}, "PYTHONHASHSEED=1"),
        (["-c", "1"], {"PYTHONWARNINGS": "error"}, "PYTHONWARNINGS=error"),
        ([], {}, "no program"),
    ],
)
def test_what_a_fork_cannot_have_is_refused(
    warm: Path, arguments: list[str], variables: dict[str, str], told: str
) -> None:
    code, out, error = run(warm, *arguments, env={**os.environ, **variables})

    assert (code, out) == (REFUSED, "")
    assert error.startswith(f"{told}: a fork cannot have this; run ")


def test_a_server_with_threads_forks_nothing() -> None:
    code = (
        "import threading, time; from tests.warm_python import _serve\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); _serve(None, ['json'])"
    )
    root = str(Path(__file__).parents[1])

    found = run(sys.executable, "-c", code, env={**os.environ, "PYTHONPATH": root})

    assert found == (1, "", "1 threads were started by importing json\n")


def test_what_the_server_said_is_named(tmp_path: Path) -> None:
    python = WarmPython(tmp_path, ["not_there"])

    code, _, error = run(python.interpreter, "-c", "print('forked')")

    python.close()
    assert (code, error.partition(":")[0]) == (REFUSED, "no process can be forked")
    assert f"is in {python.log}" in error
    assert "No module named 'not_there'" in python.log.read_text(encoding="utf-8")


def test_the_libraries_are_there_and_start_no_thread() -> None:
    code = "import sys, pathlib; print('onnx' in sys.modules, len([*pathlib.Path('/proc/self/task').iterdir()]))"

    assert run(interpreter(), "-c", code) == (0, "True 1\n", "")


def test_what_a_toolchain_runs_is_a_fork_and_its_log_names_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "run_to_end", forking(processes.run_to_end))
    command = [sys.executable, "-P", "-c", "import sys; print('onnx' in sys.modules)"]

    ended = processes.run_process(command, tmp_path, log=tmp_path / "log", time_limit_seconds=60)

    assert (ended.exit_code, ended.output) == (0, "True\n")
    assert (tmp_path / "log").read_text(encoding="utf-8").startswith(f"$ {sys.executable} -P -c ")
