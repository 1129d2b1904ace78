"""Text from speech with loaded programs of encoder and decoder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import InputError
from qeff_framework.options import check_switches
from qeff_framework.runtime.processed import check_mapping, processor_output
from qeff_framework.runtime.program_sessions import ProgramSessions
from qeff_framework.runtime.runner import carried_config
from qeff_framework.runtime.sound import SoundRunner
from qeff_framework.runtime.text_generation import generation_defaults
from qeff_framework.single_pass.signal_runner import SignalRunner
from qeff_framework.speech.context import Context, prompt_tokens
from qeff_framework.speech.decoder import Question, SpeechDecoder
from qeff_framework.speech.fallback import Attempt, Thresholds, temperatures_of, threshold_defaults
from qeff_framework.speech.segments import Segment, SpeechOutput
from qeff_framework.speech.start_tokens import SpeechFacts, StartTokens
from qeff_framework.speech.streaming import ClipPrinter
from qeff_framework.speech.windows import Clip, OnWindow, WindowReader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qeff_framework.generation import GenerationSettings

_ENCODER, _DECODER = "encoder", "decoder"


class CompiledSpeechSeq2Seq(SoundRunner):
    """Text from speech. Running needs NumPy alone; `prepared` and `transcribe` need the processor, and so Transformers."""

    def __init__(self, session: ExecutionSession) -> None:
        super().__init__(session)
        if not isinstance(session, ProgramSessions) or {*session.sessions} != {_ENCODER, _DECODER}:
            raise InputError(f"{session.compiled.directory} does not hold the programs {_ENCODER} and {_DECODER}")
        self._encoder_session = session.sessions[_ENCODER]
        self._signals_of_encoder = SignalRunner(self._encoder_session)
        self._decoder = SpeechDecoder(session.sessions[_DECODER])
        self._decoder_outputs = session.sessions[_DECODER].compiled.outputs
        self._main = self._encoder_session.compiled.inputs[0]
        self._defaults = generation_defaults(session.compiled.directory)

    @cached_property
    def facts(self) -> SpeechFacts:
        """Languages, tasks and time stamps of the checkpoint."""
        names = self.compiled.metadata.get("language_names", {})
        return SpeechFacts.of(self._generation, carried_config(self.compiled.directory), names)

    @cached_property
    def _generation(self) -> Mapping[str, Any]:
        """The checkpoint's generation config."""
        file = self.compiled.directory / "generation_config.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    @property
    def window(self) -> int | None:
        """Frames of features in a window; `None` for a model that reads clips of any length at once."""
        size = self._main.shape[-1]
        has_mask = len(self._encoder_session.compiled.inputs) > 1
        return None if has_mask or not isinstance(size, int) else size

    def generate(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        language: str | None = None,
        task: str | None = None,
        return_timestamps: bool | None = None,
        temperature: float | Sequence[float] | None = None,
        compression_ratio_threshold: float | None = None,
        logprob_threshold: float | None = None,
        no_speech_threshold: float | None = None,
        prompt_ids: Any = None,
        prompt_condition_type: str | None = None,
        condition_on_prev_tokens: bool | None = None,
        stream: bool = False,
        on_segment: Callable[[int, Segment], None] | None = None,
        generation_config: Any = None,
        **settings: Any,
    ) -> SpeechOutput:
        """Writes down what a processor has made of clips; greedy unless a temperature is given.

        Args:
            inputs: ``input_features [N, F, frames]`` (Whisper; clips longer than a window are read in windows), or what else the
                processor returns, with its ``attention_mask``; any number of rows. As keywords too.
            language: what is spoken, ``"en"`` or ``"english"``; by default the checkpoint's, else it is detected.
            task: ``"transcribe"`` or ``"translate"`` (to English).
            return_timestamps: have segments with times. Clips longer than a window always have.
            temperature: 0 takes the most likely tokens, more draws them. Several, such as ``(0.0, 0.2, 0.4)``: the next one is
                tried where a threshold finds the answer of a window unfit; the last one's is taken in any case.
            compression_ratio_threshold: an answer whose token ids compress better than this is unfit.
            logprob_threshold: an answer whose mean log-probability is lower than this is unfit.
            no_speech_threshold: an answer below `logprob_threshold` is dropped where silence is likelier than this.
            prompt_ids: tokens before the start tokens, as the processor's ``get_prompt_ids`` makes them.
            prompt_condition_type: with `condition_on_prev_tokens`: ``"first-segment"`` (default) or ``"all-segments"``, which
                windows the prompt stands before.
            condition_on_prev_tokens: what was said stands before the start tokens of the next window.
            stream: print the text of a clip window after window; of several clips, each when it has been read.
            on_segment: called with the number of a clip and each of its segments, as soon as its window is decoded.
            generation_config: a Transformers `GenerationConfig`.
            **settings: single settings of a generation config, such as ``max_new_tokens=100``; tensors of the processor.

        Raises:
            InputError: no inputs, longer ones than were compiled for, a language or task that the model does not have, or a
                setting that a compiled program cannot honour.
            OptionError: an unknown setting.
        """
        check_switches(
            "generate",
            return_timestamps=return_timestamps,
            condition_on_prev_tokens=condition_on_prev_tokens,
            stream=stream,
        )
        if stream and self.tokenizer is None:
            raise InputError(f"{self.no_tokenizer}; or leave stream=True out")
        if settings.pop("return_token_timestamps", None):
            raise InputError(
                "return_token_timestamps=True cannot be done on a compiled program: times of single words are read from the "
                "decoder's attention; return_timestamps=True gives segments with times"
            )
        tensors = {name: settings.pop(name) for name in (self._main.name, "attention_mask") if name in settings}
        given = processor_output(inputs, tensors)
        of_windows = {
            "compression_ratio_threshold": compression_ratio_threshold,
            "logprob_threshold": logprob_threshold,
            "no_speech_threshold": no_speech_threshold,
            "prompt_ids": prompt_ids,
            "prompt_condition_type": prompt_condition_type,
            "condition_on_prev_tokens": condition_on_prev_tokens,
        }
        attempts = self._attempts(temperature, generation_config, settings)
        resolved = attempts[0].settings
        for attempt in attempts:
            self._decoder.check(attempt.settings)
        facts = self.facts
        facts.check(language, task)
        clips = self._clips(given)
        window = self.window
        is_long = window is not None and any(clip.frames > window for clip in clips)
        timestamps = facts.return_timestamps if return_timestamps is None else return_timestamps
        self._check_timestamps(facts, resolved, timestamps=timestamps, is_long=is_long, asked=return_timestamps)
        timestamps = timestamps or is_long
        first = resolved.decoder_start_token_id
        start = StartTokens.of(
            self._defaults.get("bos_token_id", 0) if first is None else first,
            facts,
            language=language,
            task=task,
            timestamps=timestamps,
        )
        printer = self._printer(len(clips)) if stream else None

        def tell(clip: Clip, segments: Sequence[Segment]) -> None:
            if printer is not None:
                printer.put(clip, segments)
            if on_segment is not None:
                for segment in segments:
                    on_segment(clip.number, dataclasses.replace(segment, text=self._text(segment.tokens)))

        if window is None:
            if asked := [name for name, value in of_windows.items() if value is not None]:
                raise InputError(f"{asked[0]} is for models that read windows of one length (Whisper); leave it out")
            self._decode_whole(clips, attempts, start, tell)
        else:
            thresholds = self._thresholds(of_windows)
            context = self._context(of_windows)
            self._check_room(context, len(start.tokens), resolved, is_long=is_long)
            reader = WindowReader(
                encode=self._encode,
                decoder=self._decoder,
                facts=facts,
                start=start,
                window=window,
                timestamps=timestamps,
                limit=lambda started, before: self._limit(started, resolved, before),
                attempts=attempts,
                thresholds=thresholds,
                context=context,
                seed=_seed(attempts),
                on_window=tell,
            )
            reader(clips)
        if printer is not None:
            printer.end(clips)
        return self._output(clips)

    def _printer(self, clips: int) -> ClipPrinter | None:
        import sys

        return None if self.tokenizer is None else ClipPrinter(self.tokenizer, clips, sys.stdout, self._is_text)

    def _is_text(self, token: int) -> bool:
        begin = self.facts.timestamp_begin
        return begin is None or token < begin

    def _text(self, tokens: Sequence[int]) -> str:
        tokenizer = self.tokenizer
        return "" if tokenizer is None else tokenizer.decode([token for token in tokens if self._is_text(token)])

    def transcribe(
        self, audio: Any, *, sampling_rate: int | None = None, processor: Any = None, **settings: Any
    ) -> list[str]:
        """The text of each clip; see `prepared` for the sound, and `generate` for settings."""
        found = self.generate(self.prepared(audio, sampling_rate=sampling_rate, processor=processor), **settings)
        if self.tokenizer is None:
            raise InputError(f"{self.no_tokenizer}; or use generate for token ids")
        return found.generated_texts

    def prompt_ids(self, text: str) -> list[int]:
        """What `generate` takes as `prompt_ids`, made of a text. Raises `InputError` for a model or artifact that cannot."""
        begin = self.facts.prev_sot_token_id
        if begin is None:
            raise InputError(
                "the model takes no prompt: its generation_config.json names no prev_sot_token_id; leave it out"
            )
        if self.tokenizer is None:
            raise InputError(self.no_tokenizer)
        return [begin, *self.tokenizer.encode(f" {text.strip()}", add_special_tokens=False)]

    def _prepared_clip(self, extractor: Any, clip: NDArray[Any], rate: int) -> Mapping[str, Any]:
        """A clip longer than a window is not cut."""
        if self.window is None:
            return super()._prepared_clip(extractor, clip, rate)
        made: Mapping[str, Any] = extractor(clip, sampling_rate=rate, return_tensors="np")
        if clip.size <= made[self._main.name].shape[-1] * getattr(extractor, "hop_length", 0):
            return made  # a window; without padding, the extractor would refuse the shortest clips
        whole = extractor(clip, sampling_rate=rate, return_tensors="np", truncation=False, padding="longest")
        name = self._main.name
        return {name: whole[name] if whole[name].shape[-1] > made[name].shape[-1] else made[name]}

    # --- what a processor returned ------------------------------------------------------------------------------------

    def _clips(self, inputs: Mapping[str, Any]) -> list[Clip]:
        check_mapping(inputs, self._main.name)
        if self.window is None:
            name = self._main.name
            if inputs.get(name) is None:
                raise InputError(f"the program takes what the model's processor returns: a mapping with {name}")
            mask = inputs.get("attention_mask")
            rows = [np.asarray(row, dtype=self._main.dtype) for row in inputs[name]]
            counts = [len(row) for row in rows] if mask is None else [int(np.sum(of_row)) for of_row in mask]
            # Their axis of time comes first.
            return [
                Clip(features=row[:count].T if row.ndim > 1 else row[None, :count], number=number)
                for number, (row, count) in enumerate(zip(rows, counts, strict=True))
            ]
        return [Clip(features=row, number=number) for number, row in enumerate(self._windowed_rows(inputs))]

    def _windowed_rows(self, inputs: Mapping[str, Any]) -> list[NDArray[Any]]:
        name, bins = self._main.name, self._main.shape[1]
        unknown = sorted(
            key for key, value in inputs.items() if value is not None and key not in (name, "attention_mask")
        )
        if inputs.get(name) is None or unknown:
            raise InputError(
                f"the program takes {name} of the model's processor, and for clips of several windows its attention_mask"
                f"{f', but not {unknown[0]}' if unknown else ''}"
            )
        rows = [np.asarray(row, dtype=self._main.dtype) for row in inputs[name]]
        if not rows or any(row.ndim != 2 or row.shape[0] != bins or not row.shape[1] for row in rows):
            raise InputError(
                f"{name} must have rows of the shape [{bins}, frames]; give what the model's own processor returns"
            )
        window, mask = self.window or 0, inputs.get("attention_mask")
        if mask is not None and any(row.shape[1] > window for row in rows):
            # Short clips of a batch with a long one end where their sound ends; in a single window padding belongs to it.
            rows = [row[:, : int(np.sum(of_row))] for row, of_row in zip(rows, mask, strict=True)]
        return rows

    @staticmethod
    def _check_timestamps(
        facts: SpeechFacts, settings: GenerationSettings, *, timestamps: bool, is_long: bool, asked: bool | None
    ) -> None:
        if is_long and asked is False:
            raise InputError(
                "a clip is longer than the window of the model, and is read by its time stamps; leave return_timestamps=False out"
            )
        if (timestamps or is_long) and (facts.no_timestamps_token_id is None or not settings.eos_token_ids):
            raise InputError(
                "time stamps (and clips longer than a window) need no_timestamps_token_id and eos_token_id in the checkpoint's "
                "generation_config.json"
            )

    # --- settings -----------------------------------------------------------------------------------------------------

    def _attempts(self, temperature: Any, generation_config: Any, settings: Mapping[str, Any]) -> list[Attempt]:
        """The settings of each temperature."""
        from qeff_framework.generation import resolve_settings
        from qeff_framework.generation.settings import WARPERS

        temperatures = temperatures_of(temperature)
        do_sample = settings.get("do_sample")
        if do_sample and temperature is None:
            raise InputError("do_sample=True needs a temperature; give temperature=..., or leave do_sample out")
        if do_sample is False and any(temperatures):
            raise InputError(
                f"temperature={temperature!r} draws tokens, and do_sample=False does not; leave one of them out"
            )
        attempts = []
        for value in temperatures:
            given = {name: each for name, each in settings.items() if name != "do_sample"}
            if value:
                # As in Transformers, beams are for the attempt that draws nothing.
                given |= {"do_sample": True, "temperature": value, "num_beams": 1}
            elif any(temperatures):
                given = {name: each for name, each in given.items() if name not in WARPERS}
            resolved = resolve_settings(self._defaults, generation_config, **given)
            if resolved.do_sample and not value:
                raise InputError(
                    "the generation_config says do_sample=True, which needs a temperature; give temperature=... to generate"
                )
            attempts.append(Attempt(temperature=value, settings=resolved))
        return attempts

    @cached_property
    def _vocab_size(self) -> int:
        (logits,) = (spec for spec in self._decoder_outputs if spec.name == "logits")
        return int(logits.shape[-1])

    def _thresholds(self, asked: Mapping[str, Any]) -> Thresholds:
        values = {
            name: default if asked[f"{name}_threshold"] is None else asked[f"{name}_threshold"]
            for name, default in threshold_defaults(self._generation).items()
        }
        if values["no_speech"] is not None and self.facts.no_speech_token_id is None:
            raise InputError(
                "no_speech_threshold needs no_timestamps_token_id in the checkpoint's generation_config.json; leave it out"
            )
        return Thresholds(**values, vocab_size=self._vocab_size)

    def _context(self, asked: Mapping[str, Any]) -> Context:
        conditioned = asked["condition_on_prev_tokens"]
        config = carried_config(self.compiled.directory)
        return Context(
            prompt_ids=prompt_tokens(asked["prompt_ids"], self._vocab_size),
            condition_type=asked["prompt_condition_type"] or "first-segment",
            on_previous=self.facts.condition_on_prev_tokens if conditioned is None else bool(conditioned),
            previous_id=self.facts.prev_sot_token_id,
            longest=int(config.get("max_target_positions", self._decoder.ctx_len)) // 2 - 1,
            timestamp_begin=self.facts.timestamp_begin,
        )

    def _check_room(self, context: Context, started: int, settings: GenerationSettings, *, is_long: bool) -> None:
        """Raises `InputError` for a context that leaves no room, before anything runs."""
        before = context.most if is_long else len(context.prompt_ids)
        if before and started + before >= self._decoder.ctx_len:
            raise InputError(
                f"{before} tokens of context and {started} start tokens leave no room in the compiled "
                f"ctx_len={self._decoder.ctx_len}; compile with a greater ctx_len, or give a shorter prompt"
            )
        self._limit(started + before, settings)

    # --- running ------------------------------------------------------------------------------------------------------

    def _encode(self, rows: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], list[int]]:
        outputs, lengths = self._signals_of_encoder({self._main.name: rows})
        hidden = outputs["last_hidden_state"]
        return hidden, [int(length) or hidden.shape[1] for length in lengths]

    def _decode_whole(
        self, clips: Sequence[Clip], attempts: Sequence[Attempt], start: StartTokens, tell: OnWindow
    ) -> None:
        if len(attempts) > 1:
            raise InputError("several temperatures are for models that read windows of one length (Whisper); give one")
        ((settings, seed),) = [(attempt.settings, _seed(attempts)) for attempt in attempts]
        prompt = start.with_language(-1)
        limit = self._limit(len(prompt), settings)
        size = self._decoder.batch_size // settings.num_beams
        for begin in range(0, len(clips), size):
            group = clips[begin : begin + size]
            rows = [clip.features.T if len(self._main.shape) > 2 else clip.features[0] for clip in group]
            hidden, lengths = self._encode(rows)
            questions = [Question(prompt=prompt, limit=limit, clip=clip.number, seed=seed) for clip in group]
            found = self._decoder.decode(hidden, lengths, questions, settings)
            for clip, answer in zip(group, found, strict=True):
                tokens = answer.tokens
                text = tokens[:-1] if tokens and tokens[-1] in settings.eos_token_ids else tokens
                clip.segments = [Segment(start=0.0, end=0.0, tokens=text, avg_logprob=answer.avg_logprob)]
                clip.seek = clip.frames
                tell(clip, clip.segments)

    def _limit(self, started: int, settings: GenerationSettings, before: int = 0) -> int:
        """New tokens behind `started` start tokens, in a clip whose windows before had `before`.

        With each window of a clip Transformers adds the start tokens to ``max_length``.
        """
        room = self._decoder.ctx_len - started
        if settings.max_new_tokens is not None:
            if settings.max_new_tokens > room and not settings.limit_is_advice:
                raise InputError(
                    f"{started} start tokens and max_new_tokens={settings.max_new_tokens} are more than the compiled "
                    f"ctx_len={self._decoder.ctx_len}; ask for at most {room}, or compile with a greater ctx_len"
                )
            return min(settings.max_new_tokens, room)
        return room if settings.max_length is None else max(1, min(settings.max_length + before, room))

    def _output(self, clips: Sequence[Clip]) -> SpeechOutput:
        segments = [
            [dataclasses.replace(segment, text=self._text(segment.tokens)) for segment in clip.segments]
            for clip in clips
        ]
        ids = [[token for segment in clip.segments for token in segment.tokens] for clip in clips]
        return SpeechOutput(
            generated_ids=ids,
            generated_texts=[self._text(tokens) for tokens in ids] if self.tokenizer is not None else [],
            segments=segments,
            language_ids=[clip.language_id for clip in clips],
        )


def _seed(attempts: Sequence[Attempt]) -> int:
    """The seed of drawn tokens, one for all attempts."""
    from qeff_framework.generation.randomness import seed_of

    return next((seed_of(attempt.settings) for attempt in attempts if attempt.settings.do_sample), 0)
