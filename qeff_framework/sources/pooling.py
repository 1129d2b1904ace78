"""The identity of a pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qeff_framework.errors import OptionError


def pooling_identity(pooling: str | Callable[..., Any] | None) -> object:
    """What stands for a pooling in a cache key: its name, or the source text of a function."""
    if pooling is None or isinstance(pooling, str):
        return pooling
    import inspect

    try:
        return {"function": inspect.getsource(pooling)}
    except (OSError, TypeError) as error:
        raise OptionError(
            f"pooling {pooling!r} has no source text, so that its result could not be told apart in the cache; define it in a "
            "file"
        ) from error
