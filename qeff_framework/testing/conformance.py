"""The class that backend authors subclass in their own tests; pytest finds one test for each check."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from qeff_framework.plugin_api import Backend
from qeff_framework.testing.checks import CheckCase
from qeff_framework.testing.results import Outcome
from qeff_framework.testing.running import chosen_cases, refuse_unknown, run_check
from qeff_framework.testing.settings import Settings
from qeff_framework.testing.subject import Subject


class BackendConformance:
    """The checks of the kit as tests of pytest.

    A subclass names the backend, and has one method ``test_GROUP_NAME`` for each check, or for each case of one; a method that it
    defines itself takes the place of the kit's::

        from qeff_framework.testing import BackendConformance


        class TestAcme(BackendConformance):
            backend = "acme"

    What is not claimed or not available here is skipped, an expected failure is an ``xfail``, and one that passes fails.
    """

    #: Name of an installed backend, or a descriptor.
    backend: ClassVar[str | Backend | type[Backend]]
    #: Groups of checks; all by default.
    groups: ClassVar[tuple[str, ...]] = ()
    #: By default the ``conformance.toml`` of the backend's package.
    settings: ClassVar[Settings | None] = None
    #: What needs an absent SDK or device fails instead of being skipped.
    require_device: ClassVar[bool] = False

    _subject: ClassVar[Subject | None] = None
    _workspace: ClassVar[tempfile.TemporaryDirectory[str] | None] = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Gives a class that names its backend one method for each check."""
        super().__init_subclass__(**arguments)
        if not hasattr(cls, "backend"):
            return
        descriptor = _descriptor(cls.backend)
        refuse_unknown(cls._settings(descriptor).expected_failures, descriptor)
        for case in chosen_cases(descriptor, groups=cls.groups):
            name = f"test_{re.sub(r'[^0-9A-Za-z]+', '_', case.id).strip('_')}"
            if not hasattr(cls, name):
                setattr(cls, name, _test_of(case, name))

    @classmethod
    def _settings(cls, descriptor: Backend) -> Settings:
        import dataclasses

        found = cls.settings or Settings.of(descriptor)
        return dataclasses.replace(found, require_device=cls.require_device or found.require_device)

    @classmethod
    def subject(cls) -> Subject:
        """The backend under test, shared by the tests of the class."""
        if cls._subject is None:
            cls._workspace = tempfile.TemporaryDirectory(prefix="qeff-conformance-")
            settings = cls._settings(_descriptor(cls.backend))
            cls._subject = Subject(cls.backend, settings=settings, workspace=Path(cls._workspace.name))
        return cls._subject

    @classmethod
    def teardown_class(cls) -> None:
        """Closes what the tests have opened; called by pytest."""
        if cls._subject is not None:
            cls._subject.__exit__()
        if cls._workspace is not None:
            cls._workspace.cleanup()
        cls._subject = cls._workspace = None


def _descriptor(backend: str | Backend | type[Backend]) -> Backend:
    from qeff_framework.registry import registry

    if isinstance(backend, str):
        return registry.descriptor(backend)
    return backend() if isinstance(backend, type) else backend


def _test_of(case: CheckCase, name: str) -> Callable[[BackendConformance], None]:
    def test(self: BackendConformance) -> None:
        import pytest

        result = run_check(self.subject(), case)
        ends: Mapping[Outcome, Callable[..., Any]] = {
            Outcome.NOT_CLAIMED: pytest.skip,
            Outcome.UNAVAILABLE: pytest.skip,
            Outcome.EXPECTED_FAILURE: pytest.xfail,
        }
        if result.outcome in ends:
            ends[result.outcome](f"{result.outcome}: {result.message}")
        if result.outcome is not Outcome.PASSED:
            pytest.fail(f"{case.id}: {result.message}\n{result.traceback}", pytrace=False)

    test.__name__ = name
    test.__doc__ = case.check.summary
    return test
