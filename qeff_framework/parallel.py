"""Parts of one task in threads: all of them succeed, or the first failure stops the others.

Compilations are such parts. Their tools are child processes, and ONNX Runtime computes without Python's lock.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

#: Seconds between two looks whether somebody has stopped the work that waits.
LOOK_SECONDS = 0.1


class Stopped(KeyboardInterrupt):
    """Raised in a part that nobody waits for any more; plugins let it pass as they let an interruption by the user pass."""


@dataclass(eq=False, kw_only=True)
class _Part:
    #: For people; "" for one that is made of parts itself.
    name: str
    #: Set when the other parts are to end as well.
    stop: threading.Event = field(repr=False)


_PART: ContextVar[_Part | None] = ContextVar("qeff_part", default=None)


def usable_processors() -> int:
    """Processors that this process may use: fewer than the machine has under ``taskset`` or in a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


#: One for the process: parts of several tasks share its processors. Two, so that what was asked for happens anywhere.
_PLACES = threading.BoundedSemaphore(max(2, usable_processors()))


def run_parts(
    parts: Mapping[str, Callable[[], T]],
    *,
    computes: bool = True,
    on_end: Callable[[list[str]], None] = lambda left: None,
) -> dict[str, T]:
    """Runs each part in a thread of its own, with the context variables of the caller, and returns the results by name.

    When a part fails, or the caller is interrupted, the other parts end at their next `check_stopped`. Nothing runs any more when
    this function returns or raises; a second interruption does not wait for that.

    Args:
        parts: what is done, by the name of the part. `report` puts the name in front of the part's messages.
        computes: as many parts run at a time as there are processors, two at least. False for parts that are made of such parts.
        on_end: called in the thread of a part that has succeeded, with the names of those that have not ended yet.

    Raises:
        BaseException: that of the part that failed first.
    """
    context = contextvars.copy_context()
    stop, failures = threading.Event(), list[BaseException]()
    left, results = dict.fromkeys(parts), dict[str, T]()
    #: Not `Thread.join`: when it is interrupted, Python 3.11 and 3.12 take the thread for one that has ended.
    ended = {name: threading.Event() for name in parts}

    def work(name: str, function: Callable[[], T]) -> None:
        _PART.set(_Part(name=name if computes else "", stop=stop))
        try:
            with _place() if computes else nullcontext():
                results[name] = function()
            left.pop(name)
            on_end([*left])
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)
            stop.set()
        finally:
            ended[name].set()

    threads = [
        threading.Thread(target=context.copy().run, args=(work, name, function), name=f"qeff {name}")
        for name, function in parts.items()
    ]
    try:
        for thread in threads:
            thread.start()
        for has_ended in ended.values():
            while not has_ended.wait(LOOK_SECONDS):
                check_stopped()
    except BaseException:
        stop.set()
        for thread, has_ended in zip(threads, ended.values(), strict=True):
            if thread.ident is not None:
                has_ended.wait()
        raise
    if failures:
        raise failures[0]
    return {name: results[name] for name in parts}


def check_stopped() -> None:
    """Raises `Stopped` in a part whose task has failed elsewhere or was interrupted; whatever waits or takes long calls it."""
    part = _PART.get()
    if part is not None and part.stop.is_set():
        raise Stopped


def part_name() -> str:
    """The name of the part that the caller belongs to; "" where it belongs to none."""
    part = _PART.get()
    return "" if part is None else part.name


class Claims(Generic[T]):
    """What each part has said that it needs of something that all share; forgotten with the part."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claims: dict[_Part, T] = {}

    def claim(self, needs: T) -> list[T]:
        """Remembers what the calling part needs, instead of what it said before; returns what the other parts need.

        Outside of parts nothing is remembered.
        """
        part = _PART.get()
        with self._lock:
            self._claims = {each: claimed for each, claimed in self._claims.items() if each in _running}
            others = [claimed for each, claimed in self._claims.items() if each is not part]
            if part is not None and part in _running:
                self._claims[part] = needs
        return others


#: The parts that have a place.
_running: set[_Part] = set()


@contextmanager
def _place() -> Iterator[None]:
    """One of the places for parts that compute."""
    while not _PLACES.acquire(timeout=LOOK_SECONDS):
        check_stopped()
    part = _PART.get()
    try:
        check_stopped()
        if part is not None:
            _running.add(part)
        yield
    finally:
        if part is not None:
            _running.discard(part)
        _PLACES.release()
