"""Clients that go away before their answer is there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from qeff_framework.serving.http.errors import ApiError

T = TypeVar("T")
#: Seconds between two looks at whether the client is still there.
_LOOK = 0.1


async def while_connected(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """The answer; cancelled, with an error, when the client goes away before it is there."""
    task = asyncio.create_task(answer)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=_LOOK)
            if not task.done() and await request.is_disconnected():
                raise ApiError(499, "the client went away")
        return task.result()
    finally:
        task.cancel()
