"""Runs checks over a backend."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from qeff_framework.errors import OptionError
from qeff_framework.plugin_api import Backend
from qeff_framework.testing.checks import (
    BrokenPromiseError,
    CheckCase,
    NotClaimedError,
    UnavailableError,
    all_checks,
)
from qeff_framework.testing.results import CheckResult, Outcome, Report
from qeff_framework.testing.settings import Settings
from qeff_framework.testing.subject import Subject

#: Called with each result as it comes, its number and the total.
OnResult = Callable[[CheckResult, int, int], None]


def run_conformance(
    backend: str | Backend | type[Backend],
    *,
    settings: Settings | None = None,
    groups: Sequence[str] = (),
    only: Sequence[str] = (),
    workspace: Path | None = None,
    on_result: OnResult | None = None,
) -> Report:
    """Runs the checks over `backend` and returns what became of them.

    Args:
        backend: name of an installed backend, or a descriptor.
        settings: `None` reads the ``conformance.toml`` of the backend's package.
        groups: names of groups; all by default.
        only: ids of checks, with or without a case; all of the groups by default.
        workspace: a folder for exports and programs, which stay there; by default a temporary one.
        on_result: called after each check.

    Raises:
        BackendError: the backend cannot be selected.
        OptionError: unknown groups or ids, in the arguments or among the expected failures.
    """
    with contextlib.ExitStack() as stack:
        if workspace is None:
            workspace = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qeff-conformance-")))
        subject = stack.enter_context(Subject(backend, settings=settings, workspace=workspace))
        refuse_unknown(subject.settings.expected_failures, subject.backend)
        cases = chosen_cases(subject.backend, groups=groups, only=only)
        started = time.perf_counter()
        results = []
        for case in cases:
            results.append(run_check(subject, case))
            if on_result is not None:
                on_result(results[-1], len(results), len(cases))
        return Report(
            backend=subject.backend.name,
            origin=subject.origin,
            versions=subject.versions(),
            precision=subject.settings.precision,
            options=dict(subject.settings.options),
            results=results,
            seconds=time.perf_counter() - started,
        )


def chosen_cases(backend: Backend, *, groups: Sequence[str] = (), only: Sequence[str] = ()) -> list[CheckCase]:
    """The checks to run over `backend`, each case on its own."""
    cases = [case for each in all_checks(groups) for case in each.for_backend(backend)]
    if not only:
        return cases
    unknown = [wanted for wanted in only if not any(wanted in (case.id, case.check.id) for case in cases)]
    if unknown:
        raise OptionError(f"no check is named '{unknown[0]}'; `qeff test-backend {backend.name} --list` lists them")
    return [case for case in cases if case.id in only or case.check.id in only]


def refuse_unknown(expected_failures: Iterable[str], backend: Backend) -> None:
    """Raises `OptionError` for an expected failure that names no check: it would hide nothing and look as if it did."""
    cases = chosen_cases(backend)
    unknown = sorted(set(expected_failures) - {case.id for case in cases})
    if unknown:
        named = [case.id for case in cases if case.check.id == unknown[0]]
        remedy = f"name its cases, such as '{named[0]}'" if named else "remove it, or correct its name"
        raise OptionError(f"the expected failure '{unknown[0]}' names no check: {remedy}")


def run_check(subject: Subject, case: CheckCase) -> CheckResult:
    """Runs one check. What it raises becomes its outcome; only an interruption passes."""
    started = time.perf_counter()
    outcome, message, trace = Outcome.PASSED, "", ""
    try:
        with _quiet():
            case.run(subject)
    except NotClaimedError as error:
        outcome, message = Outcome.NOT_CLAIMED, str(error)
    except UnavailableError as error:
        outcome, message = Outcome.UNAVAILABLE, str(error)
        if subject.settings.require_device:
            outcome, message = Outcome.FAILED, f"{message}; a device is required"
    except BrokenPromiseError as error:
        outcome, message = Outcome.FAILED, str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 -- whatever a backend raises is a finding
        outcome, message = Outcome.FAILED, f"unexpected {type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
    outcome, message = _as_expected(subject, case, outcome, message)
    return CheckResult(
        id=case.id,
        group=case.check.group,
        summary=case.check.summary,
        outcome=outcome,
        message=message,
        seconds=round(time.perf_counter() - started, 3),
        traceback=trace,
    )


def _as_expected(subject: Subject, case: CheckCase, outcome: Outcome, message: str) -> tuple[Outcome, str]:
    reason = subject.settings.expected_failures.get(case.id)
    if reason is None:
        return outcome, message
    if outcome is Outcome.FAILED:
        return Outcome.EXPECTED_FAILURE, f"{reason} ({message})"
    if outcome is Outcome.PASSED:
        return Outcome.UNEXPECTED_PASS, f"it passes, but is expected to fail: {reason}; remove the entry"
    return outcome, message


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps log lines about each of many compilations and sessions away from the reader of the results."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
