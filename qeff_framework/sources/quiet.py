"""Keeps the bars and warnings of the libraries that load checkpoints off the terminal."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

from qeff_framework.thread_quiet import muted_loggers


def first_line(error: BaseException) -> str:
    """Returns the type of an error and the first line of its message, with those after it that its sentence goes on in."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ends = (number for number, line in enumerate(lines, start=1) if not line.endswith(_GOES_ON))
    told = " ".join(lines[: min(next(ends, 1), _MOST_LINES)])
    return f"{type(error).__name__}: {told}" if told else type(error).__name__


#: How a line ends whose sentence goes on in the next one, and how many lines are taken of a long list.
_GOES_ON, _MOST_LINES = (":", ",", " or", " and"), 6


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Keeps the hub's retries, which it tells as warnings, off the terminal: the error in the end is what counts."""
    with muted_loggers("huggingface_hub"):
        yield


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps Transformers' messages and progress bars off the terminal: ours says what goes on."""
    import transformers

    with muted_loggers("transformers"), _without_progress_bars(_OF_TRANSFORMERS, transformers.logging):
        yield


@contextlib.contextmanager
def quiet_diffusers() -> Iterator[None]:
    """The same, and keeps the progress bars of diffusers off the terminal; its warnings about a pipeline are told."""
    with quiet_transformers():
        from diffusers.utils import logging as library

        with _without_progress_bars(_OF_DIFFUSERS, library):
            yield


@contextlib.contextmanager
def captured_transformers() -> Iterator[list[str]]:
    """Like `quiet_transformers`, and collects this thread's warnings: some errors only refer to them."""
    messages: list[str] = []
    thread = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                messages.append(record.getMessage())

    library, collector = logging.getLogger("transformers"), Collector(logging.WARNING)
    with quiet_transformers(), _making_warnings(library):
        library.addHandler(collector)
        try:
            yield messages
        finally:
            library.removeHandler(collector)


class _Level:
    """A library's level is one for all threads: the first one that collects lowers it, the last one leaves it as it was."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.collecting = 0
        self.before: int | None = None


_LEVEL = _Level()


@contextlib.contextmanager
def _making_warnings(library: logging.Logger) -> Iterator[None]:
    """Warnings are made while the body runs, also where the user's level keeps them away (``TRANSFORMERS_VERBOSITY``)."""
    with _LEVEL.lock:
        if not _LEVEL.collecting and library.getEffectiveLevel() > logging.WARNING:
            _LEVEL.before = library.level
            library.setLevel(logging.WARNING)
        _LEVEL.collecting += 1
    try:
        yield
    finally:
        with _LEVEL.lock:
            _LEVEL.collecting -= 1
            if not _LEVEL.collecting and _LEVEL.before is not None:
                library.setLevel(_LEVEL.before)
                _LEVEL.before = None


class _ProgressBars:
    """A library's switch is one for all threads: the first one that is quiet switches off, the last one as it was."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.quiet = 0
        self.were_on = False


_OF_TRANSFORMERS, _OF_DIFFUSERS = _ProgressBars(), _ProgressBars()


@contextlib.contextmanager
def _without_progress_bars(bars: _ProgressBars, library: Any) -> Iterator[None]:
    """`library`: the module with the switch; both libraries leave these functions without types."""
    with bars.lock:
        if not bars.quiet:
            bars.were_on = library.is_progress_bar_enabled()
            library.disable_progress_bar()
        bars.quiet += 1
    try:
        yield
    finally:
        with bars.lock:
            bars.quiet -= 1
            if not bars.quiet and bars.were_on:
                library.enable_progress_bar()


def missing_library(error: ImportError) -> str:
    """What Transformers says of a library that is missing or does not load, without its addresses, and what to do."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    told = " ".join(str(cause).split()).partition(" Check out the ")[0]
    advice = "install it, in the version and the build that belong to the other libraries"
    return f"{told.removesuffix('.')}; {advice} (torchvision: pip install 'qeff-framework[video]')"
