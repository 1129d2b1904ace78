"""Compiling a graph by its path."""

from __future__ import annotations

from QEfficient._compat.old_api import compile

__all__ = ["compile"]
