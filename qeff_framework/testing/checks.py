"""What a check is: one promise of the backend contract, as a plain function over a `Subject`.

A check returns when the promise is kept. Otherwise it raises `BrokenPromiseError`, `NotClaimedError` where the backend does not
claim what the promise is about, or `UnavailableError` where this machine lacks an SDK or a device. Any other exception is a
failure.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from qeff_framework.errors import OptionError

if TYPE_CHECKING:
    from qeff_framework.plugin_api import Backend
    from qeff_framework.testing.subject import Subject

Function = TypeVar("Function", bound=Callable[..., None])

#: Groups of checks in the order in which they run, and what each is about.
GROUPS: Final[dict[str, str]] = {
    "descriptor": "what the descriptor says, and its options",
    "metadata": "the package that provides the backend",
    "imports": "nothing heavy is loaded before it is needed",
    "transforms": "order, honesty and idempotence of the lowering passes",
    "dialect": "each op of the dialect alone, against its reference semantics",
    "compile": "programs and the files that they consist of",
    "execute": "sessions: steps, retained states, padding, refusals",
    "capabilities": "what is claimed works, what is denied is refused",
    "errors": "types and texts of errors",
    "processes": "pickling, and work in fresh processes",
    "generation": "tokens and embeddings of tiny models, against PyTorch in eager mode",
}


class BrokenPromiseError(AssertionError):
    """The backend does not do what the contract says. The message tells what was asked, what came back, and what to do."""


class NotClaimedError(Exception):
    """The backend does not claim what the check is about."""


class UnavailableError(Exception):
    """An SDK or a device that the check needs is not here."""


def require(condition: object, message: str) -> None:
    """Raises `BrokenPromiseError` with `message` unless `condition` holds."""
    if not condition:
        raise BrokenPromiseError(message)


@dataclass(frozen=True, kw_only=True)
class ConformanceCheck:
    """One promise of the contract."""

    group: str
    name: str
    #: The promise in one sentence.
    summary: str
    function: Callable[..., None]
    #: Variants that are run and reported one by one, from the descriptor.
    cases: Callable[[Backend], Sequence[str]] | None = None

    @property
    def id(self) -> str:
        """``"group/name"``."""
        return f"{self.group}/{self.name}"

    def for_backend(self, backend: Backend) -> list[CheckCase]:
        """What is run for `backend`: the check itself, or one entry for each of its cases."""
        if self.cases is None:
            return [CheckCase(check=self)]
        return [CheckCase(check=self, case=case) for case in self.cases(backend)]


@dataclass(frozen=True, kw_only=True)
class CheckCase:
    """A check, or one case of it, as it is run and reported."""

    check: ConformanceCheck
    case: str | None = None

    @property
    def id(self) -> str:
        """``"group/name"`` or ``"group/name[case]"``; what an expected failure names."""
        return self.check.id if self.case is None else f"{self.check.id}[{self.case}]"

    def run(self, subject: Subject) -> None:
        """Runs it; see the module for what it raises."""
        arguments = () if self.case is None else (self.case,)
        self.check.function(subject, *arguments)


_REGISTERED: dict[str, ConformanceCheck] = {}


def check(
    group: str, *, cases: Sequence[str] | Callable[[Backend], Sequence[str]] | None = None
) -> Callable[[Function], Function]:
    """Registers a function ``check_NAME(subject)``, or ``check_NAME(subject, case)``, as a check of `group`.

    The first line of its docstring is the promise. The function stays callable as it is.
    """
    if group not in GROUPS:
        raise OptionError(f"no group of checks is named '{group}'; the groups are {', '.join(GROUPS)}")

    def register(function: Function) -> Function:
        name = function.__name__.removeprefix("check_")
        found = ConformanceCheck(
            group=group,
            name=name,
            summary=(function.__doc__ or "").strip().splitlines()[0],
            function=function,
            cases=cases if cases is None or callable(cases) else _fixed(cases),
        )
        if found.id in _REGISTERED:
            raise OptionError(f"the check '{found.id}' is defined twice")
        _REGISTERED[found.id] = found
        return function

    return register


def _fixed(cases: Sequence[str]) -> Callable[[Any], Sequence[str]]:
    return lambda backend: cases


def all_checks(groups: Sequence[str] = ()) -> tuple[ConformanceCheck, ...]:
    """The checks of the kit, of all groups or of `groups`, in the order in which they run.

    Raises:
        OptionError: there is no such group.
    """
    unknown = [group for group in groups if group not in GROUPS]
    if unknown:
        raise OptionError(f"no group of checks is named '{unknown[0]}'; the groups are {', '.join(GROUPS)}")
    chosen = [group for group in GROUPS if not groups or group in groups]
    for group in chosen:
        importlib.import_module(f"qeff_framework.testing.groups.{group}")
    return tuple(each for group in chosen for each in _REGISTERED.values() if each.group == group)
