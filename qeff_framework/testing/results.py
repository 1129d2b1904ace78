"""What became of the checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """What became of a check."""

    PASSED = "passed"
    FAILED = "failed"
    #: It failed, as the settings say.
    EXPECTED_FAILURE = "expected failure"
    #: The settings say that it fails, and it passes: the entry has to be removed.
    UNEXPECTED_PASS = "unexpected pass"  # noqa: S105 -- not a password
    #: The backend does not claim what the check is about.
    NOT_CLAIMED = "not claimed"
    #: An SDK or a device that it needs is not here.
    UNAVAILABLE = "unavailable"


#: What the command's exit code is 1 for.
BAD = (Outcome.FAILED, Outcome.UNEXPECTED_PASS)


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What became of one check, or of one case of it."""

    id: str
    group: str
    #: The promise that was checked.
    summary: str
    outcome: Outcome
    #: Why it did not pass.
    message: str = ""
    seconds: float = 0.0
    #: Traceback of an exception that the check did not expect.
    traceback: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The results of a run."""

    backend: str
    #: Package and version.
    origin: str
    #: Names and versions of what took part.
    versions: Mapping[str, str]
    precision: str
    results: Sequence[CheckResult]
    seconds: float
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> dict[Outcome, int]:
        """Results by outcome; every outcome is there."""
        found = Counter(result.outcome for result in self.results)
        return {outcome: found[outcome] for outcome in Outcome}

    @property
    def bad(self) -> list[CheckResult]:
        """What keeps the backend from conforming."""
        return [result for result in self.results if result.outcome in BAD]

    @property
    def conforms(self) -> bool:
        """Something was checked, and nothing failed that was not expected to."""
        return not self.bad and self.counts[Outcome.PASSED] > 0

    @property
    def badge(self) -> str:
        """One line for a README: ``qeff conformance: 131 passed, 2 expected failures``."""
        counts = self.counts
        told = [f"{counts[outcome]} {outcome}" for outcome in Outcome if counts[outcome] or outcome is Outcome.PASSED]
        return f"qeff conformance of {self.backend}: {', '.join(told)}"
