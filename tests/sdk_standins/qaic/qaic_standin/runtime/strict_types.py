"""Argument checks with the strictness of compiled bindings: no conversions (row R2)."""

from __future__ import annotations

from typing import TypeVar

_T = TypeVar("_T")


def require(value: object, kind: type[_T], what: str) -> _T:
    """Return `value` if its type is exactly `kind` or a subclass; booleans are not integers here.

    Raises:
        TypeError: naming the argument and the type given.
    """
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{what}: incompatible argument, expected {kind.__name__}, got {type(value).__name__}")
    return value


def require_ints(values: object, what: str) -> list[int]:
    """Return a list or tuple of integers as a list.

    Raises:
        TypeError: another container, or an element that is not a Python integer (numpy integers included).
    """
    if not isinstance(values, list | tuple):
        raise TypeError(f"{what}: incompatible argument, expected list or tuple, got {type(values).__name__}")
    return [require(value, int, what) for value in values]
