"""``/v1/completions`` and ``/v1/chat/completions``."""

from __future__ import annotations

import asyncio
import codecs
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from qeff_framework.errors import InputError, OptionError
from qeff_framework.generation.rows import FinishReason
from qeff_framework.serving.answer import Delta, TokenLogprobs
from qeff_framework.serving.async_engine import AnswerStream, AsyncEngine
from qeff_framework.serving.http.connection import while_connected
from qeff_framework.serving.http.errors import ApiError, api_error
from qeff_framework.serving.http.images import with_opened_images
from qeff_framework.serving.http.metrics import Metrics
from qeff_framework.serving.http.protocol import ChatRequest, CompletionRequest, GenerationRequest
from qeff_framework.tokenization.chat import ChatOptions
from qeff_framework.tokenization.tokenizer import ByteTokenizer

#: Settings that have another name in OpenAI's interface.
_NAMES = {
    "stop_strings": "stop",
    "sequence_bias": "logit_bias",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
}
#: JSON has no infinity.
_LOWEST = -9999.0
_REASONS: dict[FinishReason | None, str | None] = {None: None, "length": "length", "max_time": "length"}


class GenerationPages:
    """The pages of text generation."""

    def __init__(
        self, engine: AsyncEngine, metrics: Metrics, model: str, timeout: float, *, reads_images: bool = False
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._model = model
        self._timeout = timeout
        self._reads_images = reads_images
        self.router = APIRouter()
        self.router.add_api_route("/v1/completions", self.complete, methods=["POST"], response_model=None)
        self.router.add_api_route("/v1/chat/completions", self.chat, methods=["POST"], response_model=None)

    async def complete(self, asked: CompletionRequest, request: Request) -> Response:
        """Completes prompts."""
        options = {"max_new_tokens": asked.max_tokens, "logprobs": asked.logprobs}
        return await self._answer(asked, request, asked.prompts, options, CompletionForm(self._engine, asked))

    async def chat(self, asked: ChatRequest, request: Request) -> Response:
        """Continues a conversation."""
        chat = ChatOptions(
            add_generation_prompt=asked.add_generation_prompt,
            continue_final_message=asked.continue_final_message,
            tools=None if asked.tool_choice == "none" else asked.tools,
            chat_template_kwargs=asked.chat_template_kwargs or {},
        )
        options = {
            "max_new_tokens": asked.max_completion_tokens or asked.max_tokens,
            "logprobs": (asked.top_logprobs or 0) if asked.logprobs else None,
            "chat": chat,
        }
        messages = asked.messages
        if self._reads_images:
            # Opening images takes time; other answers go on.
            messages = await asyncio.to_thread(with_opened_images, messages)
        return await self._answer(asked, request, [messages], options, ChatForm(self._engine, asked))

    async def _answer(
        self,
        asked: GenerationRequest,
        request: Request,
        prompts: Sequence[Any],
        options: dict[str, Any],
        form: CompletionForm | ChatForm,
    ) -> Response:
        most = self._engine.engine.max_queue
        if len(prompts) * asked.n > most:
            raise ApiError(
                400, f"{len(prompts)} prompts with n={asked.n} are more than the {most} answers of max_queue"
            )
        options |= asked.settings()
        options = {name: value for name, value in options.items() if value is not None}
        if asked.model != self._model:
            options["adapter"] = asked.model
        options["deadline"] = min(asked.timeout or self._timeout, self._timeout)
        async with AsyncExitStack() as stack:
            try:
                streams = [
                    await stack.enter_async_context(
                        await self._engine.add(prompt, n=asked.n, priority=asked.priority, **options)
                    )
                    for prompt in prompts
                ]
            except (InputError, OptionError) as error:
                raise _refusal(error) from error
            stack.callback(self._record, request, streams)
            if not asked.stream:
                return JSONResponse(await while_connected(request, form.whole(streams)))
            kept = stack.pop_all()

        async def events() -> AsyncIterator[str]:
            async with kept:
                try:
                    async for document in form.pieces(streams):
                        yield f"data: {json.dumps(document)}\n\n"
                except Exception as error:  # noqa: BLE001 - the status is sent already; the client reads errors here too
                    yield f"data: {json.dumps(api_error(error).body)}\n\n"
                    return
                yield "data: [DONE]\n\n"

        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(events(), media_type="text/event-stream", headers=headers)

    def _record(self, request: Request, streams: Sequence[AnswerStream]) -> None:
        """Counts what the answers have cost."""
        jobs = [stream.job for stream in streams]
        prompt_tokens = sum(job.prompt_tokens for job in jobs)
        generated = sum(job.completion_tokens for job in jobs)
        self._metrics.prompt_tokens.inc(prompt_tokens)
        self._metrics.generated_tokens.inc(generated)
        self._metrics.shared_tokens.inc(sum(job.shared_tokens for job in jobs))
        self._metrics.drafts_proposed.inc(sum(job.request.drafts_proposed for job in jobs))
        self._metrics.drafts_accepted.inc(sum(job.request.drafts_accepted for job in jobs))
        told: dict[str, Any] = {"prompt_tokens": prompt_tokens, "completion_tokens": generated}
        for job in jobs:
            if job.request.first_token is not None:
                first = job.metrics.time_to_first_token
                self._metrics.first_token.observe(first)
                told.setdefault("first_token_seconds", round(first, 4))
        request.state.told = told


class CompletionForm:
    """The documents of ``/v1/completions``."""

    kind, piece_kind, prefix = "text_completion", "text_completion", "cmpl"
    #: What is sent before the first piece of each answer.
    opening: Mapping[str, str] | None = None
    #: In front of the bytes of a token that is no text by itself.
    byte_prefix = "bytes:"

    def __init__(self, engine: AsyncEngine, asked: GenerationRequest) -> None:
        self._engine = engine
        self._asked = asked
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": asked.model,
        }
        #: By choice, what has read the tokens of its answer and the characters that there were.
        self._read: dict[int, tuple[codecs.IncrementalDecoder, int]] = {}

    async def whole(self, streams: Sequence[AnswerStream]) -> dict[str, Any]:
        """The answer as one document."""
        gathered: dict[int, list[Delta]] = {number: [] for number in range(len(streams) * self._asked.n)}
        async for number, delta in _merged(streams, self._asked.n):
            gathered[number].append(delta)
        choices = [self._choice(number, deltas) for number, deltas in gathered.items()]
        return {**self._head, "object": self.kind, "choices": choices, "usage": _usage(streams)}

    async def pieces(self, streams: Sequence[AnswerStream]) -> AsyncIterator[dict[str, Any]]:
        """The answer piece by piece."""
        head = {**self._head, "object": self.piece_kind}
        options = self._asked.stream_options
        if options is not None and options.include_usage:
            head["usage"] = None
        if self.opening is not None:
            for number in range(len(streams) * self._asked.n):
                choice = {"index": number, "delta": dict(self.opening), "logprobs": None, "finish_reason": None}
                yield {**head, "choices": [choice]}
        async for number, delta in _merged(streams, self._asked.n):
            if delta.text or delta.finish_reason or delta.logprobs:
                yield {**head, "choices": [self._piece(number, delta)]}
        if options is not None and options.include_usage:
            yield {**head, "choices": [], "usage": _usage(streams)}

    def _choice(self, number: int, deltas: Sequence[Delta]) -> dict[str, Any]:
        text = "".join(delta.text for delta in deltas)
        logprobs = [entry for delta in deltas for entry in delta.logprobs]
        return {
            "index": number,
            "text": text,
            "logprobs": self._logprobs(number, logprobs),
            "finish_reason": _reason(deltas),
        }

    def _piece(self, number: int, delta: Delta) -> dict[str, Any]:
        return self._choice(number, [delta])

    def _logprobs(self, number: int, entries: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        if not entries:
            return None
        decoder, offset = self._read.get(number) or (codecs.getincrementaldecoder("utf-8")("replace"), 0)
        offsets = []
        for entry in entries:
            offsets.append(offset)
            offset += len(decoder.decode(self._bytes(entry.token)))
        self._read[number] = decoder, offset
        return {
            "tokens": [self._token(entry.token) for entry in entries],
            "token_logprobs": [_finite(entry.logprob) for entry in entries],
            # The token of the answer is listed whether it is one of the most likely ones or not.
            "top_logprobs": [
                {self._token(token): _finite(value) for token, value in ((entry.token, entry.logprob), *entry.top)}
                for entry in entries
            ],
            "text_offset": offsets,
        }

    def _bytes(self, token: int) -> bytes:
        tokenizer = self._engine.engine.generator.tokenizer
        if tokenizer is None:
            return f"token_id:{token}".encode()
        known = tokenizer.token_bytes(token) if isinstance(tokenizer, ByteTokenizer) else None
        return tokenizer.decode([token], skip_special_tokens=False).encode() if known is None else known

    def _token(self, token: int) -> str:
        content = self._bytes(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return self.byte_prefix + "".join(f"\\x{byte:02x}" for byte in content)


class ChatForm(CompletionForm):
    """The documents of ``/v1/chat/completions``."""

    kind, piece_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"
    opening: Mapping[str, str] | None = MappingProxyType({"role": "assistant", "content": ""})
    byte_prefix = ""

    def _choice(self, number: int, deltas: Sequence[Delta]) -> dict[str, Any]:
        choice = super()._choice(number, deltas)
        message = {"role": "assistant", "content": choice.pop("text"), "refusal": None}
        return {**choice, "message": message}

    def _piece(self, number: int, delta: Delta) -> dict[str, Any]:
        choice = super()._choice(number, [delta])
        text = choice.pop("text")
        return {**choice, "delta": {"content": text} if text else {}}

    def _logprobs(self, number: int, entries: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        del number
        if not entries:
            return None
        return {
            "content": [
                {
                    **self._scored(entry.token, entry.logprob),
                    "top_logprobs": [self._scored(token, value) for token, value in entry.top],
                }
                for entry in entries
            ],
            "refusal": None,
        }

    def _scored(self, token: int, value: float) -> dict[str, Any]:
        return {"token": self._token(token), "logprob": _finite(value), "bytes": list(self._bytes(token))}


def _refusal(error: InputError | OptionError) -> ApiError:
    """The answer to a request that the engine refuses, with the names that the request has for settings."""
    names = [name for name in _NAMES if re.search(rf"\b{name}\b", str(error))]
    told = re.sub(rf"\b({'|'.join(_NAMES)})\b", lambda found: _NAMES[found[0]], str(error))
    return ApiError(400, told, param=_NAMES[names[0]] if names else None)


def _reason(deltas: Sequence[Delta]) -> str | None:
    return _REASONS.get(deltas[-1].finish_reason, "stop") if deltas else None


def _finite(value: float) -> float:
    return max(value, _LOWEST)


def _usage(streams: Sequence[AnswerStream]) -> dict[str, Any]:
    jobs = [stream.job for stream in streams]
    prompt, answer = sum(job.prompt_tokens for job in jobs), sum(job.completion_tokens for job in jobs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": sum(job.shared_tokens for job in jobs)},
    }


async def _merged(streams: Sequence[AnswerStream], n: int) -> AsyncIterator[tuple[int, Delta]]:
    """Pieces of all answers as they come, each with the number of its choice."""
    if len(streams) == 1:
        async for delta in streams[0]:
            yield delta.index, delta
        return
    waiting = {asyncio.ensure_future(anext(stream)): number for number, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = waiting.pop(task)
                try:
                    delta = task.result()
                except StopAsyncIteration:
                    continue
                yield number * n + delta.index, delta
                waiting[asyncio.ensure_future(anext(streams[number]))] = number
    finally:
        for task in waiting:
            task.cancel()
