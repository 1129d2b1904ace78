"""Answers to the rows of a file: each gets one line of the output, also when the work is interrupted and started again.

A line of the output is written when its answer is complete, in whatever order that happens, and names the row of the input by its
number and by a digest of its content and settings. What a killed process leaves is at most one broken line at the end, which the
next run removes; rows that have a line are not computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qeff_framework.errors import InputError, QEFFError
from qeff_framework.serving.answer import Delta
from qeff_framework.serving.engine import Engine, Job

#: Fields of an input row that are not settings of the generation.
_PROMPTS = ("prompt", "messages")
#: What `Engine.prepare` takes beside settings.
_NOT_FOR_ROWS = frozenset(
    {"n", "priority", "deadline", "logprobs", "chat", "settings", "generation_config", "deliver", "on_end"}
)


@dataclass(frozen=True, kw_only=True)
class BatchProgress:
    """How far a batch is."""

    rows: int
    #: Rows that have a line in the output, those of earlier runs included.
    done: int
    failed: int
    #: Rows per second in this run.
    rate: float

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end at this rate; `None` before there is one."""
        return (self.rows - self.done) / self.rate if self.rate > 0 else None


def run_batch(
    engine: Engine,
    source: Path,
    target: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    on_progress: Callable[[BatchProgress], None] | None = None,
) -> BatchProgress:
    """Answers every row of `source` that has no line in `target`.

    A row of `source` is a JSON object on a line of its own, with a ``prompt`` (a text or token ids) or ``messages`` (a
    conversation); its other fields are settings of the generation, which win over `settings`. A line of `target` has the row's
    number (``row``) and ``key``, and either ``text``, ``token_ids`` and ``finish_reason``, or ``error``.

    A row that fails does not stop the others. Raises `InputError` where `target` holds lines of another input or of other
    settings.
    """
    shared = dict(settings or {})
    total = sum(1 for _ in _rows(source))
    failed_before, done = _finished(source, target, shared)
    run = _Run(engine=engine, total=total, done=len(done), failed=failed_before, on_progress=on_progress)
    waiting = ((number, row) for number, row in _rows(source) if number not in done)
    places = 2 * engine.generator.shape.batch_size
    with target.open("ab", buffering=0) as output:
        is_exhausted = False
        while not is_exhausted or run.jobs:
            while not is_exhausted and len(run.jobs) < places:
                entry = next(waiting, None)
                if entry is None:
                    is_exhausted = True
                    break
                run.add(*entry, shared, output)
            engine.step()
            run.write_ended(output)
    return run.progress


class _Run:
    """The rows that are under way."""

    def __init__(
        self,
        *,
        engine: Engine,
        total: int,
        done: int,
        failed: int,
        on_progress: Callable[[BatchProgress], None] | None,
    ) -> None:
        self._engine = engine
        self._total, self._done, self._failed = total, done, failed
        self._before = done
        self._started = time.perf_counter()
        self._on_progress = on_progress
        #: Rows with their numbers, keys and texts up to now.
        self.jobs: dict[int, tuple[Job, str, list[str]]] = {}
        self._ended: list[int] = []

    @property
    def progress(self) -> BatchProgress:
        seconds = time.perf_counter() - self._started
        rate = (self._done - self._before) / seconds if seconds > 0 else 0.0
        return BatchProgress(rows=self._total, done=self._done, failed=self._failed, rate=rate)

    def add(self, number: int, text: str, shared: Mapping[str, Any], output: IO[bytes]) -> None:
        """Queues a row; one that cannot be answered gets its line at once."""
        key = _key(text, shared)
        pieces: list[str] = []

        def deliver(piece: Delta) -> None:
            pieces.append(piece.text)

        try:
            prompt, options = _parsed(text)
            job = self._engine.prepare(
                prompt, deliver=deliver, on_end=lambda: self._ended.append(number), **{**shared, **options}
            )
            self._engine.submit(job)
        except Exception as error:  # noqa: BLE001 - whatever the values of a row lead to
            message = str(error) if isinstance(error, QEFFError) else f"{type(error).__name__}: {error}"
            self._write({"row": number, "key": key, "error": message}, output)
            return
        self.jobs[number] = job, key, pieces

    def write_ended(self, output: IO[bytes]) -> None:
        """Writes the lines of the rows that have ended."""
        ended, self._ended = self._ended, []
        for number in ended:
            job, key, pieces = self.jobs.pop(number)
            (row,) = job.request.rows
            if job.request.error is not None:
                self._write({"row": number, "key": key, "error": str(job.request.error)}, output)
                continue
            line = {"row": number, "key": key, "text": "".join(pieces), "token_ids": row.generated}
            self._write({**line, "finish_reason": row.finish_reason}, output)

    def _write(self, line: Mapping[str, Any], output: IO[bytes]) -> None:
        output.write(json.dumps(line).encode() + b"\n")
        self._done += 1
        self._failed += "error" in line
        if self._on_progress is not None:
            self._on_progress(self.progress)


def _rows(source: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each row; empty lines do not count."""
    with source.open(encoding="utf-8") as lines:
        number = 0
        try:
            for line in lines:
                if line.strip():
                    yield number, line.strip()
                    number += 1
        except UnicodeDecodeError as error:
            raise InputError(f"{source} is not UTF-8 behind row {number}: {error}") from error


def _parsed(text: str) -> tuple[Any, dict[str, Any]]:
    """The prompt of a row and its settings."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the row is no JSON: {error}") from error
    given = [name for name in _PROMPTS if isinstance(row, dict) and name in row]
    if len(given) != 1:
        raise InputError('a row is an object with either "prompt" or "messages"')
    prompt = row.pop(given[0])
    if refused := sorted(_NOT_FOR_ROWS & row.keys()):
        raise InputError(f"{', '.join(refused)} cannot be set for a row")
    return prompt, row


def _key(text: str, shared: Mapping[str, Any]) -> str:
    """A digest of what a row's answer depends on beside the program."""
    return hashlib.sha256(json.dumps([text, dict(shared)], sort_keys=True).encode()).hexdigest()[:16]


def _finished(source: Path, target: Path, shared: Mapping[str, Any]) -> tuple[int, set[int]]:
    """How many rows have failed before, and the rows that have a line; removes a broken line at the end of `target`."""
    done: dict[int, str] = {}
    failed = 0
    if not target.exists():
        return failed, set()
    with target.open("r+b") as lines:
        end = 0
        for line in lines:
            if not line.endswith(b"\n"):
                break
            number, key, has_failed = _output_line(line, target)
            done[number] = key
            failed += has_failed
            end += len(line)
        os.ftruncate(lines.fileno(), end)
    for number, text in _rows(source):
        if number in done and done[number] != _key(text, shared):
            raise InputError(
                f"{target} holds an answer to row {number} of another input, or with other settings; give another output, or "
                "remove it"
            )
    return failed, set(done)


def _output_line(line: bytes, target: Path) -> tuple[int, str, bool]:
    try:
        content = json.loads(line)
        return int(content["row"]), str(content["key"]), "error" in content
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{target} is no output of `qeff batch`; give another file") from error
