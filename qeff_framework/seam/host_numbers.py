"""Whether a model makes plain numbers of symbolic sizes: the tracer answers for its example, wrong for all other sizes."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self

import torch

_READS = {"__int__": "int()", "__float__": "float()"}


class NumbersOnTheHost:
    """Keeps where a quotient of sizes became a plain number first, in `read`: how, and in which function.

    For the thread that exports. A whole number that ``//`` or `math.trunc` makes of a size stays symbolic.
    """

    def __init__(self) -> None:
        self.read = ""
        self._before: dict[str, Any] = {}

    def __enter__(self) -> Self:
        for name, told in _READS.items():
            self._before[name] = before = getattr(torch.SymFloat, name)
            setattr(torch.SymFloat, name, self._watched(before, told))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, before in self._before.items():
            setattr(torch.SymFloat, name, before)

    def _watched(self, before: Any, told: str) -> Any:
        def read(number: torch.SymFloat) -> Any:
            if not self.read and number.node.expr.free_symbols:
                code = sys._getframe(1).f_code  # noqa: SLF001 - the caller's name for the message, at no cost for the trace
                self.read = f"{told} in {code.co_qualname}"
            return before(number)

        return read
