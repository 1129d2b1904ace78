"""The model of a torch module."""

from __future__ import annotations

from QEfficient._compat.old_api import transform

__all__ = ["transform"]
