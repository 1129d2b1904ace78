"""``/v1/audio/transcriptions`` and ``/v1/audio/translations``: what is said in a file of sound."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from qeff_framework.errors import InputError, OptionError
from qeff_framework.runtime.sound import CompiledCTC
from qeff_framework.runtime.sound_files import MOST_SAMPLES, SoundFile, read_sound
from qeff_framework.runtime.speech import CompiledSpeechSeq2Seq
from qeff_framework.runtime.text_generation import generation_defaults
from qeff_framework.serving.http.connection import while_connected
from qeff_framework.serving.http.metrics import Metrics
from qeff_framework.serving.http.worker import SessionWorker
from qeff_framework.speech.fallback import compression_ratio
from qeff_framework.speech.segments import Segment

logger = logging.getLogger(__name__)


class TranslationRequest(BaseModel):
    """``POST /v1/audio/translations``: any language in, English out."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    file: UploadFile
    model: str
    prompt: str | None = None
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    #: 0 takes the most likely tokens.
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None

    @property
    def has_times(self) -> bool:
        """The answer tells when each part is said."""
        return self.response_format in ("verbose_json", "srt", "vtt")


class TranscriptionRequest(TranslationRequest):
    """``POST /v1/audio/transcriptions``."""

    #: ``"en"`` or ``"english"``; detected where the model can.
    language: str | None = None
    timestamp_granularities: Annotated[list[Literal["segment"]], Field(alias="timestamp_granularities[]")] = Field(
        default_factory=list
    )
    stream: Literal[False] = False


def check_soundfile() -> None:
    """Raises `OptionError` where files of sound cannot be read."""
    from importlib.util import find_spec

    if find_spec("soundfile") is None:
        raise OptionError(
            "programs of sound need soundfile, which is not installed here: pip install 'qeff-framework[audio]'"
        )


class TranscriptionService(SessionWorker):
    """A speech model with its tokenizer and processor."""

    def __init__(self, runner: CompiledSpeechSeq2Seq | CompiledCTC, *, max_queue: int, timeout: float) -> None:
        check_soundfile()
        _ = runner.processor  # is missed now, not by the first request
        if isinstance(runner, CompiledSpeechSeq2Seq) and runner.tokenizer is None:
            raise InputError(runner.no_tokenizer)
        super().__init__(runner, max_queue=max_queue, timeout=timeout)
        self.runner = runner
        beams = generation_defaults(runner.compiled.directory).get("num_beams") or 1
        if beams > 1:
            logger.warning(
                "the checkpoint's generation config asks for num_beams=%s: the server chooses one token at each step instead",
                beams,
            )

    def transcribe(self, sound: SoundFile, asked: TranslationRequest, task: str | None) -> Transcript:
        """What is said. For the thread of the session."""
        runner = self.runner
        samples = sound.at(runner.sampling_rate)
        if isinstance(runner, CompiledCTC):
            return Transcript(runner.transcribe(samples)[0])
        prompt = None if not asked.prompt else runner.prompt_ids(asked.prompt)
        facts = runner.facts
        language = asked.language if isinstance(asked, TranscriptionRequest) else None
        times = asked.has_times and facts.no_timestamps_token_id is not None
        found = runner.generate(
            runner.prepared(samples),
            language=language,
            task=task,
            return_timestamps=True if times else None,
            prompt_ids=prompt,
            temperature=asked.temperature,
            num_beams=1,
        )
        spoken = next(iter(found.language_ids), None)
        codes = {token: name.strip("<|>") for name, token in facts.languages.items()}
        code = None if spoken is None else codes.get(spoken)
        names = {short: name for name, short in facts.language_names.items()}
        return Transcript(
            found.generated_texts[0].strip(),
            segments=found.segments[0] if times else None,
            language=None if code is None else names.get(code, code),
        )


class Transcript:
    """What is said in a clip."""

    def __init__(self, text: str, *, segments: list[Segment] | None = None, language: str | None = None) -> None:
        self.text = text
        #: `None` for a model without time stamps.
        self.segments = segments
        self.language = language


class TranscriptionPages:
    """The pages of speech models."""

    def __init__(self, service: TranscriptionService, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics
        self.router = APIRouter()
        self.router.add_api_route("/v1/audio/transcriptions", self.transcribe, methods=["POST"], response_model=None)
        if isinstance(service.runner, CompiledSpeechSeq2Seq) and "translate" in service.runner.facts.tasks:
            self.router.add_api_route("/v1/audio/translations", self.translate, methods=["POST"], response_model=None)

    async def transcribe(self, asked: Annotated[TranscriptionRequest, Form()], request: Request) -> Response:
        """Writes down what is said."""
        if isinstance(self._service.runner, CompiledCTC):
            for name in ("language", "prompt", "temperature"):
                if getattr(asked, name):
                    raise InputError(f"{name} cannot be chosen: the program reads letters off the sound; leave it out")
        return await self._answer(asked, request, "transcribe" if asked.language is not None else None)

    async def translate(self, asked: Annotated[TranslationRequest, Form()], request: Request) -> Response:
        """Writes down in English what is said."""
        return await self._answer(asked, request, "translate")

    async def _answer(self, asked: TranslationRequest, request: Request, task: str | None) -> Response:
        service, form = self._service, asked.response_format
        if form in ("srt", "vtt") and not _has_times(service.runner):
            raise InputError(f"response_format {form!r} needs time stamps, which the model does not have; take 'json'")
        content = await asked.file.read()
        name = asked.file.filename or "file"
        sound = await asyncio.to_thread(read_sound, name, content, most_samples=MOST_SAMPLES)
        found = await while_connected(request, service.run(lambda: service.transcribe(sound, asked, task)))
        request.state.told = {"audio_seconds": round(sound.seconds, 3)}
        if form in ("text", "srt", "vtt"):
            write = {"text": _text, "srt": _srt, "vtt": _vtt}[form]
            return PlainTextResponse(write(found))
        document: dict[str, Any] = {"text": found.text}
        if form == "verbose_json":
            document = {
                "task": task or "transcribe",
                "language": found.language,
                "duration": sound.seconds,
                **document,
                "segments": [_segment(number, segment) for number, segment in enumerate(found.segments or ())],
            }
        usage = {"type": "duration", "seconds": math.ceil(sound.seconds)}
        return JSONResponse({**document, "usage": usage})


def _has_times(runner: CompiledSpeechSeq2Seq | CompiledCTC) -> bool:
    return isinstance(runner, CompiledSpeechSeq2Seq) and runner.facts.no_timestamps_token_id is not None


def _segment(number: int, segment: Segment) -> Mapping[str, Any]:
    """A segment in OpenAI's form."""
    return {
        "id": number,
        "seek": segment.seek,
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": segment.tokens,
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": compression_ratio(segment.text.encode()),
        "no_speech_prob": segment.no_speech_prob,
    }


def _text(found: Transcript) -> str:
    return f"{found.text}\n"


def _srt(found: Transcript) -> str:
    parts = [
        f"{number}\n{_clock(part.start, ',')} --> {_clock(part.end, ',')}\n{part.text.strip()}\n"
        for number, part in enumerate(found.segments or (), 1)
    ]
    return "\n".join(parts)


def _vtt(found: Transcript) -> str:
    parts = [
        f"{_clock(part.start, '.')} --> {_clock(part.end, '.')}\n{part.text.strip()}\n" for part in found.segments or ()
    ]
    return "\n".join(["WEBVTT\n", *parts])


def _clock(seconds: float, point: str) -> str:
    thousandths = round(seconds * 1000)
    minutes, thousandths = divmod(thousandths, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{thousandths // 1000:02}{point}{thousandths % 1000:03}"
