"""The identity of a pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qeff_framework.sources.fingerprint import fingerprint
from qeff_framework.sources.uncached import identity_or_nonce


def pooling_identity(pooling: str | Sequence[str] | Callable[..., Any] | None) -> object:
    """What stands for a pooling in a cache key: its names, or a digest of the function with all that it refers to.

    A function that cannot be identified gets a new identity at every call; a warning says so.
    """
    if pooling is None or isinstance(pooling, str):
        return pooling
    if not callable(pooling):
        return list(pooling)
    return {"function": identity_or_nonce(lambda: fingerprint(pooling, "the pooling function"), "the embedding")}
