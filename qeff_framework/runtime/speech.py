"""Text from speech with loaded programs of encoder and decoder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import InputError
from qeff_framework.runtime.processed import processor_output
from qeff_framework.runtime.program_sessions import ProgramSessions
from qeff_framework.runtime.runner import carried_config
from qeff_framework.runtime.sound import SoundRunner
from qeff_framework.runtime.text_generation import generation_defaults
from qeff_framework.single_pass.signal_runner import SignalRunner
from qeff_framework.speech.decoder import SpeechDecoder
from qeff_framework.speech.segments import Segment, SpeechOutput
from qeff_framework.speech.start_tokens import SpeechFacts, StartTokens
from qeff_framework.speech.windows import Clip, transcribe_windows

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
        self._main = self._encoder_session.compiled.inputs[0]
        self._defaults = generation_defaults(session.compiled.directory)

    @cached_property
    def facts(self) -> SpeechFacts:
        """Languages, tasks and time stamps of the checkpoint."""
        directory = self.compiled.directory
        file = directory / "generation_config.json"
        generation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        names = self.compiled.metadata.get("language_names", {})
        return SpeechFacts.of(generation, carried_config(directory), names)

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
        generation_config: Any = None,
        **settings: Any,
    ) -> SpeechOutput:
        """Writes down what a processor has made of clips; greedy.

        Args:
            inputs: ``input_features [N, F, frames]`` (Whisper; clips longer than a window are read in windows), or what else the
                processor returns, with its ``attention_mask``; any number of rows. As keywords too.
            language: what is spoken, ``"en"`` or ``"english"``; by default the checkpoint's, else it is detected.
            task: ``"transcribe"`` or ``"translate"`` (to English).
            return_timestamps: have segments with times. Clips longer than a window always have.
            generation_config: a Transformers `GenerationConfig`.
            **settings: single settings of a generation config, such as ``max_new_tokens=100``; tensors of the processor.

        Raises:
            InputError: no inputs, longer ones than were compiled for, a language or task that the model does not have, or a
                setting that a compiled program cannot honour.
            OptionError: an unknown setting.
        """
        from qeff_framework.generation import resolve_settings

        tensors = {name: settings.pop(name) for name in (self._main.name, "attention_mask") if name in settings}
        given = processor_output(inputs, tensors)
        resolved = resolve_settings(self._defaults, generation_config, **settings)
        if resolved.do_sample:
            raise InputError(
                "do_sample=True is not supported for speech: the most likely tokens are taken; leave it out"
            )
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
        if window is None:
            self._decode_whole(clips, resolved, start)
        else:
            transcribe_windows(
                clips,
                self._encode,
                self._decoder,
                resolved,
                facts,
                start,
                window=window,
                timestamps=timestamps,
                limit=lambda count: self._limit(count, resolved),
            )
        return self._output(clips)

    def transcribe(
        self, audio: Any, *, sampling_rate: int | None = None, processor: Any = None, **settings: Any
    ) -> list[str]:
        """The text of each clip; see `prepared` for the sound, and `generate` for settings."""
        found = self.generate(self.prepared(audio, sampling_rate=sampling_rate, processor=processor), **settings)
        if self.tokenizer is None:
            raise InputError(f"{self.no_tokenizer}; or use generate for token ids")
        return found.generated_texts

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
        if self.window is None:
            name = self._main.name
            if inputs.get(name) is None:
                raise InputError(f"the program takes what the model's processor returns: a mapping with {name}")
            mask = inputs.get("attention_mask")
            rows = [np.asarray(row, dtype=self._main.dtype) for row in inputs[name]]
            counts = [len(row) for row in rows] if mask is None else [int(np.sum(of_row)) for of_row in mask]
            # Their axis of time comes first.
            return [
                Clip(features=row[:count].T if row.ndim > 1 else row[None, :count])
                for row, count in zip(rows, counts, strict=True)
            ]
        return [Clip(features=row) for row in self._windowed_rows(inputs)]

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

    # --- running ------------------------------------------------------------------------------------------------------

    def _encode(self, rows: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], list[int]]:
        outputs, lengths = self._signals_of_encoder({self._main.name: rows})
        hidden = outputs["last_hidden_state"]
        return hidden, [int(length) or hidden.shape[1] for length in lengths]

    def _decode_whole(self, clips: Sequence[Clip], settings: GenerationSettings, start: StartTokens) -> None:
        prompt = start.with_language(-1)
        limit = self._limit(len(prompt), settings)
        size = self._decoder.batch_size
        for begin in range(0, len(clips), size):
            group = clips[begin : begin + size]
            rows = [clip.features.T if len(self._main.shape) > 2 else clip.features[0] for clip in group]
            hidden, lengths = self._encode(rows)
            found = self._decoder.decode(hidden, lengths, [prompt] * len(group), [limit] * len(group), settings)
            for clip, tokens in zip(group, found, strict=True):
                text = tokens[:-1] if tokens and tokens[-1] in settings.eos_token_ids else tokens
                clip.segments = [Segment(start=0.0, end=0.0, tokens=text)]

    def _limit(self, started: int, settings: GenerationSettings) -> int:
        """New tokens behind `started` start tokens."""
        room = self._decoder.ctx_len - started
        if settings.max_new_tokens is not None:
            if settings.max_new_tokens > room and not settings.limit_is_advice:
                raise InputError(
                    f"{started} start tokens and max_new_tokens={settings.max_new_tokens} are more than the compiled "
                    f"ctx_len={self._decoder.ctx_len}; ask for at most {room}, or compile with a greater ctx_len"
                )
            return min(settings.max_new_tokens, room)
        return room if settings.max_length is None else max(1, min(settings.max_length, room))

    def _output(self, clips: Sequence[Clip]) -> SpeechOutput:
        tokenizer, begin = self.tokenizer, self.facts.timestamp_begin

        def text(tokens: Sequence[int]) -> str:
            if tokenizer is None:
                return ""
            return tokenizer.decode([token for token in tokens if begin is None or token < begin])

        segments = [
            [dataclasses.replace(segment, text=text(segment.tokens)) for segment in clip.segments] for clip in clips
        ]
        ids = [[token for segment in clip.segments for token in segment.tokens] for clip in clips]
        return SpeechOutput(
            generated_ids=ids,
            generated_texts=[text(tokens) for tokens in ids] if tokenizer is not None else [],
            segments=segments,
            language_ids=[clip.language_id for clip in clips],
        )
