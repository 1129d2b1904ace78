"""The execute stage: the SDK's Python modules, the program's description, and the session on the card."""

from __future__ import annotations

from qaic_backend.runtime.opening import open_session

__all__ = ["open_session"]
