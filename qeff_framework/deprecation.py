"""Public names on their way out: each works for a while, warns with what to use instead, and is removed on time.

docs/stability.md promises how long that is. All of them are in `DEPRECATIONS`; a test fails when one is overdue, or is not in the
changelog.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

C = TypeVar("C", bound=type)


@dataclass(frozen=True, kw_only=True)
class Deprecation:
    """One name."""

    #: As users write it: ``"CompiledModel.bundle_result"``.
    name: str
    #: What to use: ``"CompiledModel.dry_run_result"``.
    instead: str
    #: Version of the framework that warned first.
    since: str
    #: Version that does not have it any more: a later minor version than `since`.
    removal: str

    def warn(self, *, stacklevel: int = 2) -> None:
        """Warns the caller of the function that calls this."""
        message = f"{self.name} is deprecated since qeff-framework {self.since} and goes with {self.removal}; use {self.instead}"
        warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)


#: Every name on its way out.
DEPRECATIONS: list[Deprecation] = []


def deprecate(name: str, *, instead: str, since: str, removal: str) -> Deprecation:
    """Registers a name and returns what warns of its use."""
    found = Deprecation(name=name, instead=instead, since=since, removal=removal)
    DEPRECATIONS.append(found)
    return found


def deprecated_property(deprecation: Deprecation, read: Callable[[Any], Any]) -> Any:
    """A read-only attribute under its old name."""

    def getter(self: Any) -> Any:
        deprecation.warn()
        return read(self)

    getter.__doc__ = f"Deprecated: use `{deprecation.instead}`."
    return property(getter)


def renamed_keywords(renamed: Mapping[str, tuple[str, Deprecation]]) -> Callable[[C], C]:
    """Lets the constructor of a class take old keywords.

    Args:
        renamed: old keyword -> the new one, and what warns. Giving both is a `TypeError` of the constructor.
    """

    def decorate(cls: C) -> C:
        init: Callable[..., None] = vars(cls)["__init__"]

        @functools.wraps(init)
        def with_old_keywords(self: Any, *args: Any, **keywords: Any) -> None:
            for old in [name for name in keywords if name in renamed]:
                new, deprecation = renamed[old]
                if new in keywords:
                    raise TypeError(f"{cls.__name__} takes {old!r} or {new!r}, not both: they are one field")
                deprecation.warn()
                keywords[new] = keywords.pop(old)
            init(self, *args, **keywords)

        setattr(cls, "__init__", with_old_keywords)  # noqa: B010 -- mypy knows no assignment to a method of a type variable
        return cls

    return decorate
