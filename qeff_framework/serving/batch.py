"""Answers to the rows of a file: each gets one line of the output, also when the work is interrupted and started again.

A line of the output is written when its answer is complete, in whatever order that happens, and names the row of the input by its
number and by a digest of its content, the settings and the program. What a killed process leaves is at most one broken line at
the end, which the next run removes; rows that have a line are not computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from qeff_framework.artifacts import Manifest
from qeff_framework.errors import ExecutionError, InputError, QEFFError
from qeff_framework.serving.answer import Delta
from qeff_framework.serving.engine import Engine, Job
from qeff_framework.serving.parquet import parquet_rows
from qeff_framework.textfiles import parse_json
from qeff_framework.tokenization import is_conversation

#: Fields of an input row that are not settings of the generation.
_PROMPTS = ("prompt", "messages")
#: How each line of an output begins.
_BEGINNING = b'{"row": '
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

    A row of `source` is a JSON object on a line of its own, or a row of a ``.parquet`` file (extra ``parquet``), with a
    ``prompt`` (a text or token ids) or ``messages`` (a conversation); its other fields are settings of the generation, which win
    over `settings`. A line of `target` has the row's number (``row``) and ``key``, and either ``text``, ``token_ids`` and
    ``finish_reason``, or ``error``.

    A row that fails does not stop the others. Raises `InputError` where `target` holds lines of another input, of other settings
    or of another program.
    """
    shared = dict(settings or {})
    return complete(
        source,
        target,
        lambda rows: answers(engine, rows, shared),
        settings=shared,
        program=engine.generator.session.compiled.directory,
        on_progress=on_progress,
    )


def complete(
    source: Path,
    target: Path,
    answer: Callable[[Iterator[tuple[int, str]]], Generator[Mapping[str, Any]]],
    *,
    settings: Mapping[str, Any],
    program: str | os.PathLike[str],
    on_progress: Callable[[BatchProgress], None] | None = None,
) -> BatchProgress:
    """What `run_batch` does, with answers from wherever they are computed.

    Args:
        source: the rows.
        target: where a line for each of them is appended.
        answer: gets number and JSON text of each row without a line, and yields an answer to each, in any order.
        settings: what the answers depend on beside the rows and the program.
        program: the directory of the artifact that answers.
        on_progress: is called behind each line.

    Raises:
        ExecutionError: rows were left without an answer.
        InputError: another process writes `target`, or it holds lines of another input or program.
    """
    shared = {"program": Manifest.load(Path(program)).key, "settings": dict(settings)}
    if target.exists() and target.samefile(source):
        raise InputError(f"{target} is the input itself; give another output")
    with _only_writer(target):
        return _completed(source, target, answer, shared=shared, on_progress=on_progress)


def _completed(
    source: Path,
    target: Path,
    answer: Callable[[Iterator[tuple[int, str]]], Generator[Mapping[str, Any]]],
    *,
    shared: Mapping[str, Any],
    on_progress: Callable[[BatchProgress], None] | None,
) -> BatchProgress:
    total = sum(1 for _ in input_rows(source))
    failed, done = _finished(source, target, shared)
    before, count, started = len(done), len(done), time.perf_counter()
    keys: dict[int, str] = {}

    def waiting() -> Iterator[tuple[int, str]]:
        for number, text in input_rows(source):
            if number not in done:
                keys[number] = _key(text, shared)
                yield number, text

    def progress() -> BatchProgress:
        seconds = time.perf_counter() - started
        rate = (count - before) / seconds if seconds > 0 else 0.0
        return BatchProgress(rows=total, done=count, failed=failed, rate=rate)

    with target.open("ab", buffering=0) as output, closing(answer(waiting())) as answered:
        for line in answered:
            number = line["row"]
            _write(
                cast("BinaryIO", output), json.dumps({"row": number, "key": keys.pop(number), **line}).encode() + b"\n"
            )
            count += 1
            failed += "error" in line
            if on_progress is not None:
                on_progress(progress())
    if count != total:
        raise ExecutionError(f"{total - count} of {total} rows got no answer; start the command again for them")
    return progress()


def _write(output: BinaryIO, line: bytes) -> None:
    """All of `line`: of the last bytes on a disk that becomes full the system writes some, and says so by their number."""
    left = memoryview(line)
    while left:
        left = left[output.write(left) :]


@contextmanager
def _only_writer(target: Path) -> Iterator[None]:
    """Two processes with one output would both answer the rows that are left. The lock goes with its process."""
    from filelock import FileLock, Timeout

    from qeff_framework.artifacts import store_root

    name = hashlib.sha256(str(target.resolve()).encode()).hexdigest()[:16]
    locks = store_root() / "locks"
    lock = FileLock(locks / f"batch-{name}.lock", timeout=0)
    try:
        locks.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(f"another process writes {target}; wait for it, or give another output") from error
    except OSError as error:
        raise InputError(
            f"{target} cannot be locked in {locks}: {error}; set QEFF_HOME to a writable directory"
        ) from error
    try:
        yield
    finally:
        lock.release()


def answers(
    engine: Engine, rows: Iterable[tuple[int, str | Mapping[str, Any]]], settings: Mapping[str, Any]
) -> Generator[dict[str, Any]]:
    """An answer to each row, in the order in which they are complete.

    A row is an object, or its JSON text. An answer has the row's number (``row``), and either ``text``, ``token_ids`` and
    ``finish_reason``, or ``error``. Rows under way are cancelled where the generator is closed before its end.
    """
    waiting = iter(rows)
    places = 2 * engine.generator.shape.batch_size
    under_way: dict[int, _UnderWay] = {}
    ended: list[int] = []
    is_exhausted = False
    try:
        while not is_exhausted or under_way:
            while not is_exhausted and len(under_way) < places:
                entry = next(waiting, None)
                if entry is None:
                    is_exhausted = True
                    break
                number, row = entry
                try:
                    under_way[number] = _submitted(engine, number, row, settings, ended)
                except Exception as error:  # noqa: BLE001 - whatever the values of a row lead to
                    message = str(error) if isinstance(error, QEFFError) else f"{type(error).__name__}: {error}"
                    yield {"row": number, "error": message}
            engine.step()
            while ended:
                number = ended.pop(0)
                yield {"row": number, **under_way.pop(number).answer()}
    finally:
        for left in under_way.values():
            engine.cancel(left.job.id)


@dataclass(frozen=True, kw_only=True)
class _UnderWay:
    """A row that the engine has, and its text up to now."""

    job: Job
    pieces: list[str]

    def answer(self) -> dict[str, Any]:
        if self.job.request.error is not None:
            return {"error": str(self.job.request.error)}
        (row,) = self.job.request.rows
        return {"text": "".join(self.pieces), "token_ids": row.generated, "finish_reason": row.finish_reason}


def _submitted(
    engine: Engine, number: int, row: str | Mapping[str, Any], shared: Mapping[str, Any], ended: list[int]
) -> _UnderWay:
    """Queues a row; its number is added to `ended` when its answer is complete."""
    prompt, options = _parsed(row)
    pieces: list[str] = []

    def deliver(piece: Delta) -> None:
        pieces.append(piece.text)

    job = engine.prepare(prompt, deliver=deliver, on_end=lambda: ended.append(number), **{**shared, **options})
    engine.submit(job)
    return _UnderWay(job=job, pieces=pieces)


def input_rows(source: Path) -> Iterator[tuple[int, str]]:
    """Number and JSON text of each row of a file."""
    return parquet_rows(source) if source.suffix == ".parquet" else _json_rows(source)


def _json_rows(source: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each row; empty lines, and a byte order mark, do not count."""
    with source.open(encoding="utf-8-sig") as lines:
        number = 0
        try:
            for line in lines:
                if line.strip():
                    yield number, line.strip()
                    number += 1
        except UnicodeDecodeError as error:
            raise InputError(f"{source} is not UTF-8 behind row {number}: {error}") from error


def _parsed(content: str | Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The prompt of a row and its settings."""
    try:
        row = parse_json(content) if isinstance(content, str) else dict(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the row is no JSON: {error}") from error
    given = [name for name in _PROMPTS if isinstance(row, dict) and name in row]
    if len(given) != 1:
        raise InputError('a row is an object with either "prompt" or "messages"')
    prompt = row.pop(given[0])
    plain = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    # A text there would be read as a prompt, past the chat template.
    if given[0] == "messages" and not is_conversation(plain):
        raise InputError('"messages" must be a list of messages, [{"role": "user", "content": "..."}]')
    if not isinstance(plain, (str, list, tuple)):
        raise InputError(f'"prompt" must be a text or a list of token ids, got {json.dumps(plain, default=str):.80}')
    if refused := sorted(_NOT_FOR_ROWS & row.keys()):
        raise InputError(f"{', '.join(refused)} cannot be set for a row")
    return prompt, row


def _key(text: str, shared: Mapping[str, Any]) -> str:
    """A digest of what a row's answer depends on."""
    return hashlib.sha256(json.dumps([text, dict(shared)], sort_keys=True).encode()).hexdigest()[:16]


def _finished(source: Path, target: Path, shared: Mapping[str, Any]) -> tuple[int, set[int]]:
    """How many rows have failed before, and the rows that have a line; removes a broken line at the end of `target`."""
    done: dict[int, str] = {}
    failed = 0
    if not target.exists():
        return failed, set()
    end = 0
    with target.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                if line[: len(_BEGINNING)] != _BEGINNING[: len(line)]:
                    raise _no_output(target)
                break
            number, key, has_failed = _output_line(line, target)
            done[number] = key
            failed += has_failed
            end += len(line)
    strangers = set(done)
    for number, text in input_rows(source):
        if done.get(number) == _key(text, shared):
            strangers.remove(number)
    if strangers:
        raise InputError(
            f"{target} holds an answer to row {min(strangers)} of another input, with other settings, or of another program; "
            "give another output, or remove it"
        )
    # What lies behind the last complete line; not before it is known that the file is ours.
    os.truncate(target, end)
    return failed, set(done)


def _output_line(line: bytes, target: Path) -> tuple[int, str, bool]:
    try:
        content = json.loads(line)
        return int(content["row"]), str(content["key"]), "error" in content
    except (ValueError, KeyError, TypeError) as error:
        raise _no_output(target) from error


def _no_output(target: Path) -> InputError:
    return InputError(f"{target} is no output of `qeff batch`; give another file")
