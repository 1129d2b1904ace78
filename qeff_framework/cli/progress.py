"""Shows the framework's log on stderr: long stages as a live line on a terminal, as one plain line each elsewhere."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from qeff_framework.progress import logger as stages

_REDRAW_SECONDS = 0.2
_BAR_WIDTH = 24


class ProgressHandler(logging.Handler):
    """Writes log records to `stream`. With `live`, a stage is a line that counts the seconds and vanishes in the end."""

    def __init__(self, stream: TextIO, *, live: bool) -> None:
        super().__init__()
        self._stream = stream
        self._live = live
        self._drawing = threading.RLock()
        self._stage = ""
        self._since = 0.0
        self._drawn = 0
        self._stopped = threading.Event()
        self._clock: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Shows one record."""
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - a message that cannot be formatted must not stop the work
            self.handleError(record)
            return
        part: tuple[int, int] | None = getattr(record, "part", None)
        if part is not None:
            if self._live:
                self._show_part(message, *part)
            return
        if record.levelno >= logging.WARNING:
            message = f"qeff: {record.levelname.lower()}: {message}"
        elif record.name == stages.name and record.levelno == logging.INFO and self._live:
            self._begin(message)
            return
        with self._drawing:
            self._erase()
            self._write(f"{message}\n")
            self._draw()

    def clear(self) -> None:
        """Ends the current stage: something else is about to be printed."""
        with self._drawing:
            self._stage = ""
            self._erase()

    def close(self) -> None:
        """Removes the live line and stops its clock."""
        self._stopped.set()
        if self._clock is not None:
            self._clock.join()
        self.clear()
        super().close()

    def _begin(self, stage: str) -> None:
        with self._drawing:
            self._stage, self._since = stage, time.monotonic()
            self._draw()
        if self._clock is None:
            self._clock = threading.Thread(target=self._tick, name="qeff-progress", daemon=True)
            self._clock.start()

    def _show_part(self, stage: str, done: int, total: int) -> None:
        """Adds a bar to the live line, which goes on counting the seconds of its stage."""
        if not self._stage.startswith(stage):
            self._begin(stage)
        filled = _BAR_WIDTH * done // max(total, 1)
        with self._drawing:
            self._stage = f"{stage} [{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {done}/{total}"
            self._draw()

    def _tick(self) -> None:
        while not self._stopped.wait(_REDRAW_SECONDS):
            with self._drawing:
                self._draw()

    def _draw(self) -> None:
        if not self._stage:
            return
        elapsed = f" {time.monotonic() - self._since:.1f} s"
        # A line that reaches the last column would wrap, and \r would no longer lead to its beginning.
        room = max(shutil.get_terminal_size().columns - len(elapsed) - 1, 1)
        self._put(f"{self._stage[:room]}{elapsed}")

    def _erase(self) -> None:
        if self._drawn:
            self._put("")
            self._write("\r")

    def _put(self, line: str) -> None:
        self._write(f"\r{line.ljust(self._drawn)}")
        self._drawn = len(line)

    def _write(self, text: str) -> None:
        # Nobody may be listening any more; that is no reason to stop the work.
        with suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


@contextmanager
def shown_progress(stream: TextIO, level: int) -> Iterator[ProgressHandler]:
    """Shows the framework's log from `level` on while the body runs."""
    framework = logging.getLogger("qeff_framework")
    handler = ProgressHandler(stream, live=stream.isatty())
    before = framework.level
    framework.addHandler(handler)
    framework.setLevel(level)
    try:
        yield handler
    finally:
        framework.removeHandler(handler)
        framework.setLevel(before)
        handler.close()
