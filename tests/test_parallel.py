from __future__ import annotations

import _thread
import logging
import os
import shutil
import signal
import sys
import threading
import time
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from qeff_framework.artifacts import Store, memory
from qeff_framework.artifacts.disk import require_space
from qeff_framework.artifacts.memory import Memory, announce_memory
from qeff_framework.errors import ArtifactError, CompileError
from qeff_framework.parallel import Stopped, check_stopped, run_parts
from qeff_framework.plugin_answers import blamed
from qeff_framework.progress import report, reported_parts
from qeff_framework.toolchains import run_process

WAIT_SECONDS = 30.0


def until_stopped() -> None:
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        check_stopped()
        time.sleep(0.01)


def test_parts_run_beside_each_other_as_their_caller_does(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    both, variable = threading.Barrier(2, timeout=WAIT_SECONDS), ContextVar("variable", default="")
    variable.set("the caller's")

    def part(number: int) -> tuple[int, str]:
        both.wait()
        report("begins")
        reported_parts("a long step", 2, announce=lambda message: None)(1)
        return number, variable.get()

    left: list[list[str]] = []
    found = run_parts({"b": lambda: part(1), "a": lambda: part(2)}, on_end=left.append)
    assert list(found.items()) == [("b", (1, "the caller's")), ("a", (2, "the caller's"))]
    assert len(left) == 2
    assert left[-1] == []
    assert sorted(record.getMessage() for record in caplog.records) == ["a: begins", "b: begins"]


def test_no_more_parts_compute_at_a_time_than_there_are_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qeff_framework.parallel._PLACES", threading.BoundedSemaphore(2))
    at_work, most, lock = set[int](), list[int](), threading.Lock()

    def part(number: int) -> None:
        with lock:
            at_work.add(number)
            most.append(len(at_work))
        time.sleep(0.02)
        with lock:
            at_work.remove(number)

    # The parts of parts share the places, and their callers take none.
    def group(first: int) -> None:
        run_parts({str(number): lambda number=number: part(number) for number in range(first, first + 3)})

    run_parts({"x": lambda: group(0), "y": lambda: group(3), "z": lambda: group(6)}, computes=False)
    assert len(most) == 9
    assert max(most) == 2


def test_the_first_failure_stops_processes_parts_and_waiting_for_a_lock(tmp_path: Path) -> None:
    store, pid = Store(tmp_path / "store"), tmp_path / "pid"
    (tmp_path / "store" / "locks").mkdir(parents=True)
    code = (
        f"import os, time; file = {str(pid)!r}; open(file + '.new', 'w').write(str(os.getpid())); "
        "os.rename(file + '.new', file); time.sleep(60)"
    )

    def tool() -> None:
        with blamed("backend 'acme' (acme 1.0)", "failed to compile", CompileError):
            run_process([sys.executable, "-c", code], tmp_path, log=tmp_path / "log", time_limit_seconds=60)

    def fail() -> None:
        while not pid.exists():
            check_stopped()
            time.sleep(0.01)
        raise CompileError("refused")

    def lock() -> None:
        store.get_or_build("compiled", "a", "0" * 16, {}, lambda place: None)

    ended: list[str] = []

    def built() -> None:
        def build(place: Path) -> None:
            (place / "half").write_text("made")
            try:
                run_parts({"tool": tool, "fail": fail, "part": until_stopped})
            finally:
                ended.append((place / "half").read_text())

        store.get_or_build("compiled", "b", "1" * 16, {}, build)

    begin = time.monotonic()
    with (
        FileLock(tmp_path / "store" / "locks" / f"compiled-{'0' * 16}.lock"),
        pytest.raises(CompileError, match="^refused$"),
    ):
        run_parts({"lock": lock, "built": built}, computes=False)
    assert time.monotonic() - begin < WAIT_SECONDS
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    # Nobody wrote any more when the directory was removed.
    assert ended == ["made"]
    assert not list((tmp_path / "store" / "staging").iterdir())
    assert not list((tmp_path / "store" / "compiled").iterdir())


def test_an_interruption_stops_all_parts_and_is_raised_once_they_have_ended() -> None:
    ended: list[str] = []
    both = threading.Barrier(2, timeout=WAIT_SECONDS)

    def part(name: str) -> None:
        both.wait()
        if name == "a":
            _thread.interrupt_main()
        try:
            until_stopped()
        except Stopped:
            # An interrupted `Thread.join` of Python 3.11 takes the thread, which is the first one, for one that has ended.
            time.sleep(0.3 if name == "a" else 0)
            ended.append(name)
            raise

    # A shell starts what runs in the background with interruptions ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            run_parts({"a": lambda: part("a"), "b": lambda: part("b")})
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.type is KeyboardInterrupt
    assert sorted(ended) == ["a", "b"]


def test_what_parts_take_at_a_time_is_told_as_a_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one_after_the_other = threading.Lock()
    told: list[float] = []
    monkeypatch.setattr(memory, "memory", lambda: Memory(free=5_000_000_000, total=6_000_000_000))

    def part(least: float) -> None:
        with one_after_the_other:
            announce_memory("compiling", 3e9, least=least)
        told.append(least)
        while len(told) % 2:
            check_stopped()
            time.sleep(0.01)

    run_parts({"unet": lambda: part(0), "vae": lambda: part(0)})
    first, second, warning = (record.getMessage() for record in caplog.records)
    assert "compiling takes about 3.0 GB" in first
    assert "compiling, with what is compiled beside it, takes about 6.0 GB" in second
    assert "5.0 GB are free" in warning
    with pytest.raises(ArtifactError, match=r"holds at least 8.0 GB .* or compile one program after the other"):
        run_parts({"unet": lambda: part(4e9), "vae": lambda: part(4e9)})
    announce_memory("what comes later", 3e9)
    assert caplog.records[-1].getMessage() == "what comes later takes about 3.0 GB of memory"


def test_the_disk_must_hold_what_other_parts_have_yet_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1500))
    reserved, asked = threading.Event(), threading.Event()
    places = {name: tmp_path / name for name in ("unet", "vae")}
    for place in places.values():
        place.mkdir()

    def first(written: int) -> None:
        require_space(places["unet"], 1000, "writing")
        (places["unet"] / "weights").write_bytes(bytes(written))
        reserved.set()
        while not asked.wait(0.01):
            check_stopped()

    def second() -> None:
        assert reserved.wait(WAIT_SECONDS)
        require_space(places["vae"], 600, "writing the VAE")
        asked.set()

    with pytest.raises(ArtifactError, match="writing the VAE needs 0.6 kB beside 1.0 kB of the programs"):
        run_parts({"unet": lambda: first(0), "vae": second})
    # What is written is no longer to be written: 1500 bytes are left beside it.
    reserved.clear()
    (places["unet"] / "weights").unlink()
    run_parts({"unet": lambda: first(900), "vae": second})
