"""Errors of other libraries become `ExportError`s that name the stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from qeff_framework.errors import ExportError, QEFFError, UnsupportedModelError

#: A size or a branch depends on what a tensor holds.
_OF_CONTENTS = (DataDependentOutputException, GuardOnDataDependentSymNode)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Runs one stage of the export. Errors raised on purpose pass through; what no graph can do is refused."""
    try:
        yield
    except QEFFError:
        raise
    except Exception as error:
        kind = UnsupportedModelError if isinstance(_first_cause(error), _OF_CONTENTS) else ExportError
        raise kind(f"the {name} failed: {_reason(error)}") from error


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    """What the first cause says: the outer exceptions of the exporter only repeat that it failed."""
    error = _first_cause(error)
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0] if lines else '(no message)'}"
    if isinstance(error, _OF_CONTENTS):
        return f"its forward branches on the contents of a tensor, which a graph cannot do ({text})"
    return text
