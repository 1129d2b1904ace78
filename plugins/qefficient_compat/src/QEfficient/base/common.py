"""Opening a checkpoint with the class that fits it."""

from __future__ import annotations

from QEfficient._compat.models import QEFFCommonLoader

__all__ = ["QEFFCommonLoader"]
