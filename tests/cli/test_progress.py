"""The live line on a terminal, and the plain lines elsewhere."""

from __future__ import annotations

import io
import logging
import time

import pytest

from qeff_framework import progress
from qeff_framework.cli.progress import shown_progress
from qeff_framework.progress import report, reported_parts

logger = logging.getLogger("qeff_framework.somewhere")


class Terminal(io.StringIO):
    def isatty(self):
        return True

    @property
    def screen(self):
        """The lines as a person sees them: a carriage return writes over what was there."""
        lines = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for part in line.split("\r"):
                shown = part + shown[len(part) :]
            lines.append(shown.rstrip())
        return lines


def test_plain_lines():
    stream = io.StringIO()

    with shown_progress(stream, logging.INFO):
        report("exporting")
        logger.info("backend 'x' chosen")
        logger.warning("careful")
        logger.debug("detail")

    assert stream.getvalue().splitlines() == ["exporting", "backend 'x' chosen", "qeff: warning: careful"]


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_parts_are_a_bar_on_a_terminal_only(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PART_SECONDS", 0.0)

    with shown_progress(stream, logging.INFO):
        done = reported_parts("writing 8 weights", 8)
        done(2)
        done(6)

    if isinstance(stream, Terminal):
        assert f"writing 8 weights [{'#' * 18}{'.' * 6}] 6/8" in stream.getvalue()
        assert stream.screen == [""]
    else:
        assert stream.getvalue() == "writing 8 weights\n"


def test_quiet_shows_warnings_only():
    stream = io.StringIO()

    with shown_progress(stream, logging.WARNING):
        report("exporting")
        logger.warning("careful")

    assert stream.getvalue() == "qeff: warning: careful\n"


def test_live_line_counts_and_vanishes():
    terminal = Terminal()

    with shown_progress(terminal, logging.INFO):
        report("a rather long name of a stage")
        assert terminal.screen == ["a rather long name of a stage 0.0 s"]
        deadline = time.monotonic() + 30
        while terminal.screen == ["a rather long name of a stage 0.0 s"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        report("short")
        assert terminal.screen == ["short 0.0 s"]

    assert terminal.screen == [""]


def test_other_lines_stay_above_the_live_line():
    terminal = Terminal()

    with shown_progress(terminal, logging.INFO) as progress:
        report("compiling something with a name")
        logger.warning("careful")
        assert terminal.screen[0] == "qeff: warning: careful"
        assert terminal.screen[1].startswith("compiling something with a name ")
        progress.clear()
        assert terminal.screen == ["qeff: warning: careful", ""]


def test_long_stage_does_not_wrap(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    terminal = Terminal()

    with shown_progress(terminal, logging.INFO):
        report("x" * 100)
        assert len(terminal.screen[0]) < 30
        assert terminal.screen[0].endswith("0.0 s")


def test_reader_that_has_gone_does_not_stop_the_work():
    stream = io.StringIO()
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        stream.write("")

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with shown_progress(Closed(), logging.INFO):
        report("exporting")
        logger.warning("careful")


def test_logging_is_left_as_it_was():
    framework = logging.getLogger("qeff_framework")
    before = (framework.level, list(framework.handlers))

    with shown_progress(io.StringIO(), logging.DEBUG):
        assert framework.level == logging.DEBUG

    assert (framework.level, list(framework.handlers)) == before
