"""Short messages about long steps: one logger, which the command line shows as a live line."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


def report(message: str) -> None:
    """Says that a long step starts. Passed to the hooks as `progress`."""
    logger.info(message)
