"""The listing shows what a caller would notice."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar

import pytest

from tests.public_surface import _described


class Colour(IntEnum):
    RED = 1


@dataclass(frozen=True, kw_only=True)
class Plain:
    size: int
    names: tuple[str, ...] = ()
    table: dict[str, int] = field(default_factory=dict)
    kind: ClassVar[str] = "plain"


def function(first: int, /, second: str = "x", *rest: int, third: float = 1.0, **more: object) -> None: ...


def keyword_only(*, colour: Colour = Colour.RED, call: object = print) -> bool:
    return bool(colour)


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        (Plain, ["class x()", "    size: int", "    names: tuple[str, ...] = ()", "    table: dict[str, int] = ..."]),
        (Colour, ["class x(IntEnum)", "    RED = 1"]),
        (function, ["x(first: int, second: str = 'x', *rest: int, third: float = 1.0, **more: object) -> None"]),
        (keyword_only, ["x(*, colour: Colour = <Colour.RED: 1>, call: object = ...) -> bool"]),
        (("a", 1), ["x = ('a', 1)"]),
    ],
)
def test_what_a_caller_notices_is_in_the_text(value: object, lines: list[str]) -> None:
    assert list(_described("x", value)) == lines
