"""Telling users what becomes of an argument: once where it has no meaning, as an error where it is not supported."""

from __future__ import annotations

import logging

from qeff_framework.plugin_api import OptionError

logger = logging.getLogger("QEfficient")

_said: set[str] = set()


class NotSupportedError(OptionError, NotImplementedError):
    """Something of QEfficient's interface that is not supported; the message names what to use instead."""


def say_once(message: str, *, level: int = logging.WARNING) -> None:
    """Logs `message` the first time that the process says it."""
    if message not in _said:
        _said.add(message)
        logger.log(level, "%s", message)
