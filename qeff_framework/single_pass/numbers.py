"""Results that are no numbers: every use of one picks some class, text or neighbour, and none of them says why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.errors import ExecutionError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def refuse_nan(results: Mapping[str, NDArray[Any]], visible: Mapping[str, NDArray[np.bool_]]) -> None:
    """Raises `ExecutionError` where a result ``[N, ...]`` holds NaN.

    `visible`: of results with padding, which places ``[N, S]`` are none.
    """
    for name, result in results.items():
        # The least of numbers among which one is NaN is NaN; that takes one pass and no memory.
        if not result.size or not np.isnan(result.min()):
            continue
        odd = np.isnan(result)
        if name in visible:
            odd[~visible[name]] = False
        if odd.any():
            row = int(np.argwhere(odd)[0][0])
            raise ExecutionError(
                f"the {name} of row {row} contain NaN: the program overflowed; compare it with PyTorch, or compile with a wider "
                "data type"
            )
