"""An engine: many requests at once over one loaded program."""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qeff_framework.contracts import BASE_ADAPTER
from qeff_framework.errors import ExecutionError, InputError, OptionError, QueueFullError
from qeff_framework.generation.draft_model import DraftModel
from qeff_framework.generation.drafting import check_lookup, draft_model
from qeff_framework.generation.loop import TextGenerator
from qeff_framework.generation.prompts import Prompts
from qeff_framework.generation.request import Request
from qeff_framework.generation.rows import FinishReason, Row, Step
from qeff_framework.generation.settings import GenerationSettings
from qeff_framework.runtime import CompiledCausalLM, CompiledRunner, load_compiled
from qeff_framework.runtime.image_text import CompiledImageTextToText, ImagePrompt
from qeff_framework.serving.answer import AnswerText, Delta
from qeff_framework.serving.logprobs import LogprobRecorder
from qeff_framework.session_use import use_of
from qeff_framework.tokenization.chat import ChatOptions, is_conversation

if TYPE_CHECKING:
    from qeff_framework.generation.output import PerfMetrics

logger = logging.getLogger(__name__)

#: Deadlines that are kept beyond twice those of the requests under way, so that they are looked through seldom.
_FEW = 64


@dataclass(kw_only=True, eq=False)
class Job:
    """A request of an engine, ready to be queued."""

    request: Request
    priority: int
    #: Seconds from the beginning until its answers end where they are.
    deadline: float | None
    texts: list[AnswerText]
    recorder: LogprobRecorder | None
    #: The prompt as the processor has prepared it, for a program that takes images.
    images: ImagePrompt | None = None
    #: Is called for each piece of an answer.
    deliver: Callable[[Delta], None]
    #: Is called behind the last piece, or when the request has failed.
    on_end: Callable[[], None] | None
    #: Pieces that `stream` has not handed out; unused with another `deliver`.
    pieces: deque[Delta] = field(default_factory=deque)
    #: `stream` will ask for it by its number.
    is_streamed: bool
    id: int = -1
    #: Has ended, and every piece is delivered.
    ended: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.rows[0].given)

    @property
    def completion_tokens(self) -> int:
        """Tokens of all answers up to now."""
        return sum(len(row.generated) for row in self.request.rows)

    @property
    def shared_tokens(self) -> int:
        """Tokens of the prompt that were in the cache already, over all answers."""
        return sum(row.shared for row in self.request.rows)

    @property
    def metrics(self) -> PerfMetrics:
        """Times from the beginning, the time in the queue included."""
        return self.request.metrics()


class Engine:
    """Runs requests that join and leave at any step. Calls of several threads take turns; `AsyncEngine` is for asyncio.

    >>> engine = Engine("compiled-model")
    >>> first = engine.add("My name is", max_new_tokens=8)
    >>> second = engine.add([{"role": "user", "content": "Hello"}], do_sample=True, seed=1)
    >>> for piece in engine.stream(first):  # `second` advances as well
    ...     print(piece.text, end="")

    What a request gets does not depend on the others: its tokens are those of ``generate`` with one prompt. With continuous
    batching in the program, prompts are prefilled chunk by chunk between the decode steps of the others; without, a request
    waits for a free row of the batch. A prompt that begins like a finished one skips the common part where the program has
    spare slots (``kv_cache_batch_size`` above ``full_batch_size``).

    With drafts, a request gets several tokens from one step; its tokens are those without them.

    Args:
        artifact: a compiled artifact's directory, or a loaded program. The engine takes over the program's session.
        max_queue: answers that may wait for a place in the program; further requests raise `QueueFullError`.
        max_model_len: prompt and answer together at most, where that is to be less than the compiled context.
        draft: a smaller causal language model that proposes tokens for all requests: a compiled artifact's directory, or what is
            compiled or loaded, with as many rows (``batch_size``) as the program decodes. The engine takes it over and closes it.
            The program must have been compiled with ``num_speculative_tokens``.
        prompt_lookup_num_tokens: tokens per step that are proposed from a request's own text. A request may ask for another
            number, also where there is a draft model.
        **runtime_options: for `load_compiled`, with a directory.
    """

    def __init__(
        self,
        artifact: str | os.PathLike[str] | CompiledCausalLM | CompiledImageTextToText,
        *,
        max_queue: int = 256,
        max_model_len: int | None = None,
        draft: object = None,
        prompt_lookup_num_tokens: int | None = None,
        **runtime_options: Any,
    ) -> None:
        limits = {
            "max_queue": max_queue,
            "max_model_len": max_model_len,
            "prompt_lookup_num_tokens": prompt_lookup_num_tokens,
        }
        for name, value in limits.items():
            if value is not None and value < 1:
                raise OptionError(f"{name}={value} must be at least 1")
        runner = load_compiled(artifact, **runtime_options) if isinstance(artifact, str | os.PathLike) else artifact
        if not isinstance(runner, CompiledCausalLM | CompiledImageTextToText):
            task = runner.compiled.task
            runner.close()
            raise InputError(
                f"an engine generates text, the program was compiled for {task}; call its generate instead"
            )
        self.runner = runner
        self.generator: TextGenerator = runner.text_generator()
        self.max_queue = max_queue
        ctx_len = self.generator.shape.ctx_len
        self.max_model_len = min(max_model_len or ctx_len, ctx_len)
        #: Held while a step runs and its tokens are delivered.
        self._turn = use_of(self.generator.session).turn
        self._scheduler = self.generator.scheduler
        self._scheduler.reset()
        self.prompt_lookup_num_tokens = prompt_lookup_num_tokens
        if prompt_lookup_num_tokens is not None:
            check_lookup(prompt_lookup_num_tokens, self.generator.shape)
        #: What is closed with the engine.
        self._draft_runner: CompiledRunner | None = None
        self._draft_model = None if draft is None else self._opened_draft(draft)
        self._numbers = itertools.count()
        self._jobs: dict[int, Job] = {}
        self._by_request: dict[Request, Job] = {}
        #: Time, number.
        self._deadlines: list[tuple[float, int]] = []

    @property
    def busy(self) -> bool:
        """There are requests that have not ended."""
        return bool(self._by_request)

    @property
    def waiting(self) -> int:
        """Answers that wait for a place in the program."""
        return self._scheduler.waiting

    @property
    def running(self) -> int:
        """Answers that have a place in the program."""
        return self._scheduler.running

    def add(self, prompt: Prompts, settings: GenerationSettings | None = None, **options: Any) -> int:
        """Queues a request for one prompt and returns its number.

        Args:
            prompt: a text, a conversation, or token ids. Messages to a program that takes images may have parts of the form
                ``{"type": "image", "image": ...}``, with what its processor takes as an image.
            settings: complete settings; by default they are made of the checkpoint's and of `options`.
            **options: what `prepare` takes, and single settings as for ``generate``.

        Raises:
            QueueFullError: `max_queue` answers are waiting.
            InputError: a prompt or settings that the program cannot take.
        """
        return self.submit(self.prepare(prompt, settings, **options))

    def prepare(
        self,
        prompt: Prompts,
        settings: GenerationSettings | None = None,
        *,
        n: int = 1,
        priority: int = 0,
        deadline: float | None = None,
        logprobs: int | None = None,
        adapter: str | None = None,
        chat: ChatOptions | None = None,
        generation_config: Mapping[str, Any] | None = None,
        deliver: Callable[[Delta], None] | None = None,
        on_end: Callable[[], None] | None = None,
        **overrides: Any,
    ) -> Job:
        """Reads and checks a request without touching the program; any thread may call it.

        Args:
            prompt: a text, a conversation, or token ids.
            settings: complete settings; by default they are made of the checkpoint's, `generation_config` and `overrides`.
            n: answers to the prompt; each draws random numbers of its own.
            priority: a smaller number comes first, and of equal ones the earlier request.
            deadline: seconds after which the answers end where they are, with ``max_time``; the time in the queue counts.
            logprobs: most likely tokens whose log-probabilities each piece lists; `None` for no log-probabilities.
            adapter: the name of one that the program holds; `None` and ``"base"`` are the model alone.
            chat: how a conversation is rendered.
            generation_config: settings by name.
            deliver: is called for each piece, in the thread that calls `step`; by default pieces are kept for `stream`.
            on_end: is called when the request has ended.
            **overrides: single settings (``max_new_tokens=8``).
        """
        if not 1 <= n <= self.max_queue:
            raise OptionError(f"n={n} must be at least 1 and at most max_queue={self.max_queue}")
        if deadline is not None and deadline <= 0:
            raise OptionError(f"deadline={deadline} must be a number of seconds above 0")
        generator = self.generator
        is_asked = settings is not None or "num_beams" in {**(generation_config or {}), **overrides}
        if settings is None:
            settings = generator.settings(generation_config, **overrides)
        elif overrides or generation_config is not None:
            raise OptionError("settings are complete, nothing can be added; give one or the other")
        if settings.num_beams > 1:
            settings = self._without_beams(settings, is_asked=is_asked)
        draft = self._draft_model if settings.prompt_lookup_num_tokens is None else None
        if self.prompt_lookup_num_tokens is not None and settings.prompt_lookup_num_tokens is None and draft is None:
            settings = replace(settings, prompt_lookup_num_tokens=self.prompt_lookup_num_tokens)
        images = None
        if isinstance(self.runner, CompiledImageTextToText):
            images = self._image_prompt(self.runner, prompt, settings, chat)
        ids = self._one_prompt(prompt, settings, chat) if images is None else images.ids
        request = generator.request(
            [ids] * n, settings, prompt_to_adapter_mapping=adapter or BASE_ADAPTER, draft=draft, queued=True
        )
        for row in request.rows:
            self._limit(row, settings)
        if settings.return_pdfs:
            raise InputError("return_pdfs is for generate(...), which returns them with its output; leave it out")
        recorder = None
        if logprobs is not None:
            if generator.shape.candidates is not None:
                raise InputError(
                    "logprobs: the program chooses tokens on the device and returns no logits; leave them out, or compile "
                    "without include_sampler"
                )
            request.selector = recorder = LogprobRecorder(request.selector, logprobs)
        pieces: deque[Delta] = deque()
        return Job(
            request=request,
            priority=priority,
            deadline=deadline,
            texts=[AnswerText(generator.tokenizer, settings.stop_strings) for _ in request.rows],
            recorder=recorder,
            images=images,
            deliver=deliver if deliver is not None else pieces.append,
            on_end=on_end,
            pieces=pieces,
            is_streamed=deliver is None,
        )

    def submit(self, job: Job) -> int:
        """Queues a prepared request and returns its number; the images of its prompt go through their program before.

        Raises:
            QueueFullError: `max_queue` answers are waiting.
            InputError: the images do not fit the prompt.
        """
        with self._turn:
            return self._queue(job)

    def _queue(self, job: Job) -> int:
        rows = len(job.request.rows)
        places = self.max_queue + self.generator.shape.batch_size - self.running
        if self.waiting + rows > places:
            raise QueueFullError(
                f"{self.waiting} answers are waiting, and {rows} more would exceed max_queue={self.max_queue}; try again later"
            )
        if job.images is not None and isinstance(self.runner, CompiledImageTextToText):
            images = self.runner.row_images(job.images)
            for row in job.request.rows:
                row.images = images
        job.id = next(self._numbers)
        self._jobs[job.id] = self._by_request[job.request] = job
        if job.deadline is not None:
            heapq.heappush(self._deadlines, (time.perf_counter() + job.deadline, job.id))
        self._scheduler.add(job.request, job.priority)
        return job.id

    def step(self) -> bool:
        """Runs the program once, for all requests that have a place in it; returns whether there is anything left to do.

        A failure of the program ends all requests; `stream` raises it. The engine goes on with an empty cache.
        """
        with self._turn:
            return self._step()

    def _step(self) -> bool:
        self._end_overdue()
        if not self._scheduler.busy:
            return False
        try:
            steps = self._scheduler.step()
        except Exception as error:
            logger.exception("the program failed; %d requests end with this error", len(self._by_request))
            self._fail_all(error)
            self._reset(error)
            return False
        for request, group in itertools.groupby(steps, key=lambda step: step.request):
            self._deliver(self._by_request[request], list(group))
        while self._scheduler.failed:
            self._end(self._by_request[self._scheduler.failed.pop()])
        return self.busy

    def cancel(self, id: int) -> None:
        """Ends a request: its rows are free from the next step on. Nothing happens to one that has ended."""
        with self._turn:
            job = self._jobs.get(id)
            if job is not None and not job.ended:
                self._stop(job, "cancelled")
            self._jobs.pop(id, None)

    def stream(self, id: int) -> Iterator[Delta]:
        """Pieces of a request's answers, as they come; runs steps while there are none. Closing it early cancels the request.

        Raises `InputError` for a number that is not known, or was read to its end; and what made the request fail.
        """
        job = self._jobs.get(id)
        if job is None:
            raise InputError(
                f"there is no request {id}: it was never added, was cancelled, or has been read to its end"
            )
        return self._stream(job)

    def close(self) -> None:
        """Ends all requests and releases the program."""
        for job in list(self._by_request.values()):
            self._stop(job, "cancelled")
        self.runner.close()
        if self._draft_runner is not None:
            self._draft_runner.close()

    def _opened_draft(self, draft: Any) -> DraftModel:
        if isinstance(self.runner, CompiledImageTextToText):
            raise InputError(
                "a draft model proposes tokens for models of text alone, and this program reads images; leave it out"
            )
        opened = load_compiled(draft) if isinstance(draft, str | os.PathLike) else getattr(draft, "runner", draft)
        self._draft_runner = opened if isinstance(opened, CompiledRunner) else None
        return draft_model(self.runner.draft_session(opened), self.generator.shape)

    def _stream(self, job: Job) -> Iterator[Delta]:
        try:
            while True:
                while job.pieces:
                    yield job.pieces.popleft()
                if job.ended:
                    break
                self.step()
        finally:
            self.cancel(job.id)
        if job.request.error is not None:
            raise job.request.error

    def _image_prompt(
        self, runner: CompiledImageTextToText, prompt: Prompts, settings: GenerationSettings, chat: ChatOptions | None
    ) -> ImagePrompt:
        """Of prompts without images too: where such a model has positions of several axes, text needs them as well."""
        if is_conversation(prompt):
            return runner.conversation(prompt, chat)
        return ImagePrompt(ids=self._one_prompt(prompt, settings, chat), units=[])

    def _one_prompt(self, prompt: Prompts, settings: GenerationSettings, chat: ChatOptions | None) -> list[int]:
        ids = self.generator.tokenized(prompt, settings, chat).ids
        if len(ids) != 1:
            raise InputError(f"a request takes one prompt, {len(ids)} were given; add one request for each")
        return ids[0]

    def _without_beams(self, settings: GenerationSettings, *, is_asked: bool) -> GenerationSettings:
        beams = settings.num_beams
        if is_asked:
            raise InputError(
                f"num_beams={beams}: an engine chooses one token at each step; leave it out, or call generate instead"
            )
        self.generator.warn(
            f"the checkpoint's generation config asks for num_beams={beams}: an engine chooses one token at each step instead"
        )
        return replace(settings, num_beams=1, num_return_sequences=1, length_penalty=1.0, early_stopping=False)

    def _limit(self, row: Row, settings: GenerationSettings) -> None:
        room = self.max_model_len - len(row.prompt)
        if room < 1:
            raise InputError(
                f"the prompt has {len(row.prompt)} tokens, which leaves no room for new ones in max_model_len="
                f"{self.max_model_len}; shorten it"
            )
        if row.limit > room:
            stated = settings.max_new_tokens is not None or settings.max_length is not None
            if stated and not settings.limit_is_advice:
                raise InputError(
                    f"the prompt has {len(row.prompt)} tokens, and {row.limit} new ones make {len(row.prompt) + row.limit}: more "
                    f"than max_model_len={self.max_model_len}; ask for at most {room} new tokens"
                )
            row.limit = room

    def _deliver(self, job: Job, steps: Sequence[Step]) -> None:
        for index, group in itertools.groupby(steps, key=lambda step: step.row):
            tokens = list(group)
            ids, reason = tuple(step.token for step in tokens), tokens[-1].finish_reason
            job.deliver(
                Delta(
                    index=index,
                    tokens=ids,
                    text=job.texts[index].put(ids, reason),
                    finish_reason=reason,
                    logprobs=job.recorder.take(index) if job.recorder is not None else (),
                )
            )
        if job.request.finished:
            self._end(job)

    def _stop(self, job: Job, reason: FinishReason) -> None:
        """Ends a request that has not finished, and delivers what is left of its texts."""
        alive = [row for row in job.request.rows if not row.finished]
        self._scheduler.end(job.request, reason)
        for row in alive:
            text = job.texts[row.index].put((), reason)
            job.deliver(Delta(index=row.index, tokens=(), text=text, finish_reason=reason))
        self._end(job)

    def _end(self, job: Job) -> None:
        job.ended = True
        self._by_request.pop(job.request, None)
        if not job.is_streamed:
            self._jobs.pop(job.id, None)
        if len(self._deadlines) > 2 * len(self._by_request) + _FEW:
            # Those of requests that have ended would stay until they are over.
            alive = {job.id for job in self._by_request.values()}
            self._deadlines = [entry for entry in self._deadlines if entry[1] in alive]
            heapq.heapify(self._deadlines)
        if job.on_end is not None:
            job.on_end()

    def _end_overdue(self) -> None:
        while self._deadlines and self._deadlines[0][0] <= time.perf_counter():
            job = self._jobs.get(heapq.heappop(self._deadlines)[1])
            if job is not None and not job.ended:
                self._stop(job, "max_time")

    def _fail_all(self, error: Exception) -> None:
        for job in list(self._by_request.values()):
            job.request.error = error
            job.request.end("error")
            self._end(job)

    def _reset(self, error: Exception) -> None:
        """Empties the cache after `error`. Raises `ExecutionError` where that fails: the session is of no use any more."""
        try:
            self._scheduler.reset()
            if self._draft_model is not None:
                self._draft_model.reset()
        except Exception as again:
            raise ExecutionError(f"the program failed ({error}) and cannot be used any more: {again}") from again
