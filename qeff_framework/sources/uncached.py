"""What stands in a cache key for something that no honest key can be made of."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable

from qeff_framework.sources.fingerprint import NotIdentifiableError

logger = logging.getLogger(__name__)


def identity_or_nonce(identity: Callable[[], str], name: str) -> str:
    """Returns `identity()` or, with a warning, a text that no other call returns: what is built for it is never found again."""
    try:
        return identity()
    except NotIdentifiableError as error:
        logger.warning(
            "%s is built anew each time, because nothing tells whether it is still the same: %s. Put what changes its result "
            "into values that can be compared (numbers, texts, tensors, functions, attributes)",
            name,
            error,
        )
        return f"never found again: {uuid.uuid4().hex}"
