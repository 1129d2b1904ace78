"""From a failed tool's output to a message: its own first useful line, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qeff_framework.toolchains.processes import Ended, Outcome


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What a backend knows about the messages of its tools.

    Example::

        ACME = Diagnosis(
            error_line=re.compile("error", re.IGNORECASE),
            advice=(("out of memory", "compile with fewer threads"),),
        )
        toolchain.check(ended, "acme-compile", result, ACME)
    """

    #: Found in lines that name an error.
    error_line: re.Pattern[str]
    #: Found in lines that announce an error whose text follows, or that are noise.
    skipped_line: re.Pattern[str] | None = None
    #: Pattern, searched in the whole output, and what to do; the first that is found counts.
    advice: Sequence[tuple[str, str]] = ()
    #: What to do when the tool was killed from outside.
    advice_when_killed: str = ""

    def explain(self, tool: str, ended: Ended, *, missing: str = "result") -> str:
        """One or two sentences: how `tool` ended, its own first useful line, and what to do where that is known.

        `missing` is what a tool that ended well should have left.
        """
        text = f"{tool} {ended.description}" + (f", but left no {missing}" if ended.outcome is Outcome.SUCCESS else "")
        if ended.outcome is Outcome.KILLED:
            # The lines before it know nothing of a signal from outside.
            return _with_advice(text, self.advice_when_killed)
        line = self.first_error_line(ended.output)
        if line is None:
            return f"{text} without naming an error" if ended.outcome is Outcome.REFUSED else text
        advice = next((remedy for pattern, remedy in self.advice if re.search(pattern, ended.output)), "")
        return _with_advice(f"{text}: {line}", advice)

    def first_error_line(self, output: str) -> str | None:
        """The first line that names an error; else the last line of the output, if there is any."""
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        useful = [line for line in lines if self.skipped_line is None or not self.skipped_line.search(line)]
        found = next((line for line in useful if self.error_line.search(line)), None)
        return found or (useful[-1] if useful else None)


def _with_advice(text: str, advice: str) -> str:
    return f"{text}. {advice[0].upper()}{advice[1:]}" if advice else text
