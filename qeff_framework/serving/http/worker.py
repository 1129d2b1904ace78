"""One worker thread for programs whose requests take turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from qeff_framework.errors import EngineClosedError, QueueFullError
from qeff_framework.runtime import CompiledRunner
from qeff_framework.serving.http.errors import ApiError

T = TypeVar("T")


class SessionWorker:
    """Owns the thread of a session."""

    def __init__(self, runner: CompiledRunner, *, max_queue: int, timeout: float) -> None:
        self._runner = runner
        self.max_queue = max_queue
        self.timeout = timeout
        #: Requests that wait or run.
        self.pending = 0
        self.ready = True
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="qeff-session")

    async def run(self, function: Callable[[], T]) -> T:
        """Runs `function` in the thread of the session, which may use the tokenizer too: cutting texts changes its state.

        A request that is cancelled while it waits does not run; one that runs is finished, and nobody gets its result.

        Raises:
            QueueFullError: `max_queue` requests are waiting.
            EngineClosedError: the server is shutting down.
            ApiError: there was no result within `timeout` seconds, with the time in the queue.
        """
        if not self.ready:
            raise EngineClosedError("the server takes no more requests")
        if self.pending > self.max_queue:
            raise QueueFullError(f"{self.max_queue} requests are waiting, as many as max_queue allows; try again later")
        future = asyncio.get_running_loop().run_in_executor(self._worker, function)
        self.pending += 1
        future.add_done_callback(self._ended)
        try:
            return await asyncio.wait_for(future, self.timeout)
        except TimeoutError:
            raise ApiError(
                503, f"there was no result within {self.timeout:g} s; try again later, or send less", code="timeout"
            ) from None

    def close(self) -> None:
        """Waits for what runs, and releases the program."""
        self.ready = False
        self._worker.shutdown(cancel_futures=True)
        self._runner.close()

    def _ended(self, future: asyncio.Future[T]) -> None:
        self.pending -= 1
        if not future.cancelled():
            future.exception()  # was raised where the result is awaited
