"""Keeps what libraries say off the terminal in one thread. Other threads, and what they have set up, notice nothing.

Levels of loggers, `warnings.catch_warnings` and `contextlib.redirect_stderr` hold for the whole process: they would hide what
other threads say, and where two threads use them at a time, one restores what the other has set.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

#: Names of loggers, and the level from which on they are heard.
_MUTED: ContextVar[tuple[tuple[str, int], ...]] = ContextVar("qeff_muted_loggers", default=())
_SWALLOWED: ContextVar[io.StringIO | None] = ContextVar("qeff_swallowed_stderr", default=None)


#: Names of loggers that repeat nothing, and what they have said in such a body.
_HEARD_ONCE: ContextVar[tuple[str, ...]] = ContextVar("qeff_heard_once", default=())
_said: set[tuple[str, str]] = set()


class _MutedLoggers(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Lets pass what the running thread has not muted, and what is no repetition where it wants none."""
        if any(record.levelno < level and _belongs_to(record.name, name) for name, level in _MUTED.get()):
            return False
        return not any(_belongs_to(record.name, name) for name in _HEARD_ONCE.get()) or not _is_repetition(record)


def _is_repetition(record: logging.LogRecord) -> bool:
    """Decided once for a record, which several handlers get."""
    known: bool | None = getattr(record, "qeff_is_repetition", None)
    if known is None:
        key = (record.name, record.getMessage())
        known = key in _said
        _said.add(key)
        record.qeff_is_repetition = known
    return known


_FILTER = _MutedLoggers()


@contextmanager
def muted_loggers(*names: str, heard_from: int = logging.ERROR) -> Iterator[None]:
    """Hides what the loggers `names`, and those below them, say in this thread, unless it is an error.

    `heard_from`: another level than that of errors, for code whose errors are raised as well.
    """
    _filter_handlers(names)
    token = _MUTED.set((*_MUTED.get(), *((name, heard_from) for name in names)))
    try:
        yield
    finally:
        _MUTED.reset(token)


@contextmanager
def heard_once(*names: str) -> Iterator[None]:
    """Hides what the loggers `names`, and those below them, say in this thread and have said in such a body before."""
    _filter_handlers(names)
    token = _HEARD_ONCE.set((*_HEARD_ONCE.get(), *names))
    try:
        yield
    finally:
        _HEARD_ONCE.reset(token)


def _filter_handlers(names: Sequence[str]) -> None:
    for name in names:
        for handler in _handlers(name):
            handler.addFilter(_FILTER)  # Once: a filter that is there already is not added again.


@contextmanager
def ignored_warning(message: str, category: type[Warning]) -> Iterator[None]:
    """Ignores one kind of warning, by a regular expression, and leaves all other filters as they are, or become meanwhile."""
    filters: Any = warnings.filters
    entry = ("ignore", re.compile(message, re.IGNORECASE), category, None, 0)
    # `warnings.filterwarnings` would take the place of an equal filter of the user's, which would then go with ours.
    filters.insert(0, entry)
    try:
        yield
    finally:
        if entry in filters:
            filters.remove(entry)


@contextmanager
def swallowed_stderr() -> Iterator[None]:
    """Drops what this thread writes to `sys.stderr`; what other threads write goes where it went before."""
    before = sys.stderr
    replacement: Any = _ByThread(before)
    token = _SWALLOWED.set(io.StringIO())
    sys.stderr = replacement
    try:
        yield
    finally:
        if sys.stderr is replacement:
            sys.stderr = before
        _SWALLOWED.reset(token)


class _ByThread:
    """A stream that is another one in a thread that swallows its output. Whoever keeps it loses nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(_SWALLOWED.get() or self._stream, name)


def _handlers(name: str) -> Iterator[logging.Handler]:
    """The handlers that get the records of a logger."""
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None
    if logging.lastResort is not None:
        yield logging.lastResort


def _belongs_to(logger: str, name: str) -> bool:
    return logger == name or logger.startswith(f"{name}.")
