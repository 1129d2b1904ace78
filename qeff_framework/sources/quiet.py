"""Keeps the bars and warnings of the libraries that load checkpoints off the terminal."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any


def first_line(error: BaseException) -> str:
    """Returns the type of an error and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Keeps the hub's retries, which it tells as warnings, off the terminal: the error in the end is what counts."""
    hub_logger = logging.getLogger("huggingface_hub")
    level = hub_logger.level
    hub_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub_logger.setLevel(level)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps Transformers' progress bars off the terminal: ours says what goes on."""
    import transformers

    # Transformers leaves these functions without types.
    transformers_logging: Any = transformers.logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
