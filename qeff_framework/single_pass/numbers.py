"""Results that are no numbers: every use of one picks some class, text or neighbour, and none of them says why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.errors import ExecutionError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def refuse_broken(results: Mapping[str, NDArray[Any]], visible: Mapping[str, NDArray[np.bool_]]) -> None:
    """Raises `ExecutionError` where a result ``[N, ...]`` holds NaN or infinity. Among logits -inf excludes a class.

    `visible`: of results with padding, which places ``[N, S]`` are none.
    """
    for name, result in results.items():
        is_logits = name.endswith("logits")
        # The least of numbers among which one is NaN is NaN; that takes one pass each and no memory.
        if not result.size or (result.max() < np.inf and (is_logits or result.min() > -np.inf)):
            continue
        odd = np.isnan(result) | np.isposinf(result) | (np.isneginf(result) & (not is_logits))
        if name in visible:
            odd[~visible[name]] = False
        if odd.any():
            first = tuple(np.argwhere(odd)[0])
            held = "NaN" if np.isnan(result[first]) else "infinity"
            raise ExecutionError(
                f"the {name} of row {first[0]} contain {held}: the program overflowed; compare it with PyTorch, or compile with "
                "a wider data type"
            )
