"""What the classes of models share."""

from __future__ import annotations

from QEfficient._compat.models import QEFFBaseModel

__all__ = ["QEFFBaseModel"]
