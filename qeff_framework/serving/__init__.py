"""Serving: many requests at once over one loaded program, in Python (`Engine`, `AsyncEngine`) and over HTTP (``qeff serve``).

The HTTP server needs the extra ``serve``; the engines need nothing beyond the core.
"""

from __future__ import annotations

from qeff_framework.errors import EngineClosedError, QueueFullError
from qeff_framework.serving.answer import Delta, TokenLogprobs
from qeff_framework.serving.async_engine import AnswerStream, AsyncEngine
from qeff_framework.serving.engine import Engine

__all__ = ["AnswerStream", "AsyncEngine", "Delta", "Engine", "EngineClosedError", "QueueFullError", "TokenLogprobs"]
