"""Checks of many model types, each in its own process with a time limit: one that hangs or dies costs only its own line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

#: Checks one model type and returns the facts that belong in its line.
Check = Callable[[str], dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What became of one type: the facts that its check returned, or the first line of what it raised."""

    model_type: str
    ok: bool
    seconds: float
    error: str | None = None
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """One JSON object without line breaks; the facts stand beside the other fields."""
        fields = dataclasses.asdict(self)
        facts = fields.pop("facts")
        return json.dumps({name: value for name, value in fields.items() if value is not None} | facts)


class CheckError(Exception):
    """A check's verdict that a type fails; `facts` say what is known all the same."""

    def __init__(self, message: str, facts: dict[str, Any]) -> None:
        super().__init__(message)
        self.facts = facts


def sweep(check: Check, model_types: Sequence[str], *, time_limit: float, jobs: int = 2) -> Iterator[Report]:
    """Checks each type in its own process, `jobs` at a time; reports come in the order in which types finish."""
    _load_libraries()
    waiting = list(reversed(model_types))
    running: dict[Connection, _Running] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                started = _start(check, waiting.pop())
                running[started.answers] = started
            for receiver in _finished(list(running.values()), time_limit):
                yield running.pop(receiver).report(time_limit)
    finally:
        for left in running.values():
            left.end()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Running:
    model_type: str
    process: BaseProcess
    answers: Connection
    start: float
    folder: tempfile.TemporaryDirectory[str]

    def report(self, time_limit: float) -> Report:
        """Ends the process, if it has not ended, and tells how it went."""
        facts: dict[str, Any] = {}
        error: str | None
        try:
            if self.answers.poll():
                facts, error = self.answers.recv()
            else:
                error = f"no result within {time_limit:g} s"
        except EOFError:
            self.process.join()
            error = f"the process ended with exit code {self.process.exitcode}"
        self.end()
        seconds = round(time.monotonic() - self.start, 2)
        return Report(model_type=self.model_type, ok=error is None, seconds=seconds, error=error, facts=facts)

    def end(self) -> None:
        """Kills the process and what it has started, and removes its folder."""
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.answers.close()
        self.folder.cleanup()


def _load_libraries() -> None:
    """Imports once, in the parent, what every forked process would import for itself: 3 s each."""
    import torch  # noqa: F401
    from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig, modeling_utils  # noqa: F401


def _start(check: Check, model_type: str) -> _Running:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    folder = tempfile.TemporaryDirectory(prefix="qeff-coverage-", ignore_cleanup_errors=True)
    process = context.Process(target=_work, args=(sender, check, model_type, Path(folder.name)))
    process.start()
    sender.close()
    return _Running(model_type=model_type, process=process, answers=receiver, start=time.monotonic(), folder=folder)


def _finished(running: Sequence[_Running], time_limit: float) -> list[Connection]:
    """The receivers of processes that have answered, died or used up their time; waits for the first of them."""
    deadline = min(each.start for each in running) + time_limit
    wait([each.answers for each in running], timeout=max(0.0, deadline - time.monotonic()))
    now = time.monotonic()
    return [each.answers for each in running if each.answers.poll() or now - each.start >= time_limit]


def _work(sender: Connection, check: Check, model_type: str, folder: Path) -> None:
    import torch

    os.setpgid(0, 0)  # so that the parent can end what the check starts along with it
    os.chdir(folder)
    os.environ["QEFF_HOME"] = str(folder / "store")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # some modelling code prints; stdout is for the reports
    try:
        sender.send((check(model_type), None))
    except CheckError as verdict:
        sender.send((verdict.facts, str(verdict)))
    except Exception as error:  # noqa: BLE001  (whatever a family raises is the result)
        sender.send(({"where": where(error)}, first_line(error)))


def first_line(error: BaseException) -> str:
    """Type and first line of an exception."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def where(error: BaseException) -> str:
    """The innermost line of Transformers in the traceback, relative to the package."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/transformers/" in frame.filename]
    return f"{frames[-1].filename.rpartition('/transformers/')[2]}:{frames[-1].lineno}" if frames else "qeff_framework"
