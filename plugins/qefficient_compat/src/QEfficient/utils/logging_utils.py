"""The logger of this package."""

from __future__ import annotations

from QEfficient._compat.notices import logger

__all__ = ["logger"]
