"""The conformance kit: whether a backend keeps the promises of the contract, from its own declared capabilities.

Three doors lead to the same checks: the command ``qeff test-backend NAME``, a class to subclass in the tests of the backend's
own repository (`BackendConformance`), and plain functions (`run_conformance`, or each check of `all_checks` by itself). Only the
class needs pytest. See docs/testing_a_backend.md.
"""

from __future__ import annotations

from qeff_framework.testing.checks import (
    GROUPS,
    BrokenPromiseError,
    CheckCase,
    ConformanceCheck,
    NotClaimedError,
    UnavailableError,
    all_checks,
)
from qeff_framework.testing.conformance import BackendConformance
from qeff_framework.testing.results import CheckResult, Outcome, Report
from qeff_framework.testing.running import chosen_cases, run_check, run_conformance
from qeff_framework.testing.settings import Settings, Tolerance
from qeff_framework.testing.subject import Subject

__all__ = [
    "GROUPS",
    "BackendConformance",
    "BrokenPromiseError",
    "CheckCase",
    "CheckResult",
    "ConformanceCheck",
    "NotClaimedError",
    "Outcome",
    "Report",
    "Settings",
    "Subject",
    "Tolerance",
    "UnavailableError",
    "all_checks",
    "chosen_cases",
    "run_check",
    "run_conformance",
]
