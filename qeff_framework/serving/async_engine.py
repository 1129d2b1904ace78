"""An engine for asyncio: one worker thread owns the session, any number of tasks use it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Self

from qeff_framework.errors import EngineClosedError
from qeff_framework.generation.prompts import Prompts
from qeff_framework.generation.settings import GenerationSettings
from qeff_framework.runtime import CompiledCausalLM
from qeff_framework.runtime.image_text import CompiledImageTextToText
from qeff_framework.serving.answer import Delta
from qeff_framework.serving.engine import Engine, Job


class AnswerStream:
    """Pieces of a request's answers; iterate over it once.

    Close it (`aclose`, or leave the ``async with``) when its reader goes away: that frees the request's rows at the next step.
    """

    def __init__(self, engine: AsyncEngine, job: Job, pieces: asyncio.Queue[Delta | None]) -> None:
        self.job = job
        self._engine = engine
        self._pieces = pieces
        self._ended = False

    @property
    def id(self) -> int:
        """The request's number."""
        return self.job.id

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        if self._ended:
            raise StopAsyncIteration
        piece = await self._pieces.get()
        if piece is not None:
            return piece
        self._ended = True
        if self.job.request.error is not None:
            raise self.job.request.error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends the request unless it has ended."""
        if not self._ended:
            self._ended = True
            self._engine.cancel(self.job.id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class AsyncEngine:
    """`Engine` for asyncio.

    >>> engine = AsyncEngine("compiled-model")
    >>> async with await engine.add("My name is", max_new_tokens=8) as pieces:
    ...     async for piece in pieces:
    ...         print(piece.text, end="")
    """

    def __init__(
        self,
        artifact: str | os.PathLike[str] | CompiledCausalLM | CompiledImageTextToText | Engine,
        **options: Any,
    ) -> None:
        self.engine = artifact if isinstance(artifact, Engine) else Engine(artifact, **options)
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open = True
        self._worker_has_ended = False
        #: What ended the worker, or `None`.
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="qeff-engine", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""
        return self._open and self.failure is None

    async def add(self, prompt: Prompts, settings: GenerationSettings | None = None, **options: Any) -> AnswerStream:
        """Queues a request, see `Engine.add`; returns the stream of its pieces.

        Raises `EngineClosedError` after `drain` or `close`, and what `Engine.add` raises.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Delta | None] = asyncio.Queue()

        def deliver(piece: Delta | None) -> None:
            # The loop may be gone when the process is shut down.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        job = await asyncio.to_thread(
            self.engine.prepare, prompt, settings, deliver=deliver, on_end=lambda: deliver(None), **options
        )
        submitted = self._submit(job)
        try:
            await asyncio.shield(asyncio.wrap_future(submitted))
        except asyncio.CancelledError:
            # The reader went away before the worker had taken the request, or told so.
            submitted.add_done_callback(lambda _: self.cancel(job.id))
            raise
        return AnswerStream(self, job, pieces)

    def cancel(self, id: int) -> None:
        """Ends a request before the next step. Any thread may call it."""
        self._calls.put(lambda: self.engine.cancel(id))

    async def drain(self, timeout: float | None = None) -> bool:
        """Accepts no more requests and waits for those that are there; returns whether all have ended in time."""
        self._open = False
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        while self.engine.busy and self._thread.is_alive():
            if deadline is not None and asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    def close(self) -> None:
        """Ends all requests, the worker, and the program. Idempotent."""
        self._open = False
        self._calls.put(None)
        self._thread.join()

    def _submit(self, job: Job) -> Future[int]:
        result: Future[int] = Future()

        def submit() -> None:
            if not self.ready:
                reason = f": {self.failure}" if self.failure is not None else ""
                result.set_exception(EngineClosedError(f"the engine takes no more requests{reason}"))
                return
            try:
                result.set_result(self.engine.submit(job))
            except Exception as error:  # noqa: BLE001 - it is raised where the result is awaited
                result.set_exception(error)

        with self._lock:
            if self._worker_has_ended:
                submit()
            else:
                self._calls.put(submit)
        return result

    def _work(self) -> None:
        try:
            while self._run_calls(wait=not self.engine.busy):
                if self.engine.busy:
                    self.engine.step()
        except Exception as error:  # noqa: BLE001 - `failure` tells it to whoever asks
            self.failure = error
        finally:
            self._open = False
            self.engine.close()
            with self._lock:
                self._worker_has_ended = True
                self._run_calls(wait=False)

    def _run_calls(self, *, wait: bool) -> bool:
        """Runs what other threads have asked for; returns whether the worker goes on."""
        while True:
            try:
                call = self._calls.get(block=wait)
            except queue.Empty:
                return True
            if call is None:
                return False
            call()
            wait = False
