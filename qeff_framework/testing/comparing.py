"""Comparison of numbers with the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from qeff_framework.testing.checks import BrokenPromiseError
from qeff_framework.testing.settings import Tolerance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qeff_framework.testing.subject import Subject


_NONE: Final = Tolerance(rtol=0, atol=0)


def require_close(subject: Subject, got: NDArray[Any], expected: NDArray[Any], what: str) -> None:
    """Raises `BrokenPromiseError` unless `got` is `expected` within the precision of the backend; NaN equals NaN.

    Args:
        subject: tells the tolerance.
        got: what the backend has computed.
        expected: what the reference says, of the same shape.
        what: which numbers these are, for the message.
    """
    import numpy as np

    tolerance = subject.tolerance
    if got.shape != expected.shape:
        raise BrokenPromiseError(f"{what}: the result has shape {list(got.shape)}, not {list(expected.shape)}")
    if not np.allclose(got, expected, rtol=tolerance.rtol, atol=tolerance.atol, equal_nan=True):
        raise BrokenPromiseError(f"{what}: {difference(got, expected, tolerance)}")


def difference(got: NDArray[Any], expected: NDArray[Any], tolerance: Tolerance = _NONE) -> str:
    """Where and how much two arrays of the same shape differ by more than `tolerance`, in one line."""
    import numpy as np

    with np.errstate(all="ignore"):
        gap = np.abs(got.astype(np.float64) - expected.astype(np.float64))
        gap -= tolerance.atol + tolerance.rtol * np.abs(expected)
    gap = np.where(np.isnan(got) & np.isnan(expected) | (got == expected), 0, gap)
    gap = np.where(np.isnan(gap), np.inf, gap)
    where = tuple(int(index) for index in np.unravel_index(int(gap.argmax()), gap.shape))
    count = int((gap > 0).sum())
    return (
        f"{count} of {gap.size} numbers differ, most at {list(where)}: {got[where]:.6g} instead of {expected[where]:.6g}"
        if gap.size
        else "nothing to compare"
    )
