"""Clips of any length through a model that reads windows of one length, as Transformers does it for Whisper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.errors import InputError
from qeff_framework.speech.context import Context
from qeff_framework.speech.decoder import Answer, Question, SpeechDecoder
from qeff_framework.speech.fallback import Attempt, Thresholds
from qeff_framework.speech.segments import Segment, segments_of
from qeff_framework.speech.start_tokens import SpeechFacts, StartTokens
from qeff_framework.speech.timestamps import Timestamps

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Makes hidden states ``[N, T, D]`` and the frames of each row of rows of features.
Encode = Callable[[Sequence["NDArray[Any]"]], tuple["NDArray[Any]", Sequence[int]]]


@dataclass(kw_only=True)
class Clip:
    """One clip on its way: features ``[F, frames]``, and how far it has been read."""

    features: NDArray[Any]
    number: int = 0
    seek: int = 0
    start: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    language_id: int | None = None
    #: What was said before is context for the next window.
    is_trusted: bool = True
    #: Start tokens of the windows that were read; of a window no more count than what was said before can have.
    started: int = 0

    @property
    def frames(self) -> int:
        """Of the clip."""
        return int(self.features.shape[1])


#: Takes a clip and segments of it.
OnWindow = Callable[[Clip, Sequence[Segment]], None]


@dataclass(frozen=True, kw_only=True)
class WindowReader:
    """Reads clips window after window.

    Args:
        encode: runs the encoder.
        decoder: runs the decoder.
        facts: what the checkpoint says about languages, tasks and time stamps.
        start: start tokens of each window.
        window: frames of features in a window.
        timestamps: the answer holds time stamps; a clip longer than a window needs them.
        limit: new tokens at most behind so many start tokens, in a clip whose windows before had so many.
        attempts: at a window, one behind the other while the answer is not good enough; at least one.
        thresholds: what is good enough.
        context: what stands before the start tokens.
        seed: of drawn tokens.
        on_window: called with a clip and its new segments behind each of its windows.
    """

    encode: Encode
    decoder: SpeechDecoder
    facts: SpeechFacts
    start: StartTokens
    window: int
    timestamps: bool
    limit: Callable[[int, int], int]
    attempts: Sequence[Attempt]
    thresholds: Thresholds
    context: Context
    seed: int = 0
    on_window: OnWindow = lambda clip, segments: None

    def __call__(self, clips: Sequence[Clip]) -> None:
        """Reads all clips to their ends; what is found is added to them."""
        _find_languages(clips, self.encode, self.decoder, self.start, self.facts, self.window)
        while waiting := [clip for clip in clips if clip.seek < clip.frames]:
            beams = max(attempt.settings.num_beams for attempt in self.attempts)
            self._read(waiting[: self.decoder.batch_size // beams])

    def _read(self, group: Sequence[Clip]) -> None:
        """One window of each clip."""
        hidden, lengths = self.encode([_window(clip, self.window) for clip in group])
        prefixes = [self.context.tokens(clip.segments, is_trusted=clip.is_trusted) for clip in group]
        stride = self.window // int(lengths[0])
        left = [*range(len(group))]
        for number, attempt in enumerate(self.attempts):
            questions = [self._question(group[index], prefixes[index], number) for index in left]
            answers = self.decoder.decode(
                hidden[left], [lengths[index] for index in left], questions, attempt.settings, self._rules
            )
            unfit = []
            for index, answer in zip(left, answers, strict=True):
                verdict = self.thresholds.judge(answer)
                if verdict == "retry" and number < len(self.attempts) - 1:
                    unfit.append(index)
                    continue
                clip = group[index]
                clip.is_trusted = attempt.gives_context
                before = len(clip.segments)
                if verdict == "silence":
                    clip.seek += min(self.window, clip.frames - clip.seek)
                else:
                    self._take(clip, answer, attempt, stride)
                self.on_window(clip, clip.segments[before:])
            left = unfit
            if not left:
                break
        for clip, prefix in zip(group, prefixes, strict=True):
            clip.started += min(self.context.longest, len(prefix) + len(clip.start))

    def _question(self, clip: Clip, prefix: Sequence[int], attempt: int) -> Question:
        prompt = [*prefix, *clip.start]
        # Another window, or another attempt, draws other tokens.
        seed = int(np.random.SeedSequence([self.seed, clip.seek, attempt]).generate_state(1)[0])
        token = self.facts.no_speech_token_id
        silence = None if token is None else (len(prefix), token)
        limit = self.limit(len(prompt), clip.started - max(0, len(prompt) - self.context.longest))
        return Question(prompt=prompt, limit=limit, clip=clip.number, seed=seed, silence=silence)

    def _rules(self) -> list[Timestamps]:
        begin = self.facts.timestamp_begin
        if not self.timestamps or begin is None:
            return []
        return [Timestamps(self.facts, begin, self.attempts[0].settings.eos_token_ids[0])]

    def _take(self, clip: Clip, answer: Answer, attempt: Attempt, stride: int) -> None:
        tokens = answer.tokens
        text = tokens[:-1] if tokens and tokens[-1] in attempt.settings.eos_token_ids else tokens
        frames = min(self.window, clip.frames - clip.seek)
        segments, moved = segments_of(text, self.facts, seek=clip.seek, frames=frames, stride=stride)
        clip.segments += [
            replace(
                segment,
                avg_logprob=answer.avg_logprob,
                no_speech_prob=answer.no_speech_prob,
                temperature=attempt.temperature,
                seek=clip.seek,
            )
            for segment in segments
        ]
        clip.seek += moved


def _find_languages(
    clips: Sequence[Clip],
    encode: Encode,
    decoder: SpeechDecoder,
    start: StartTokens,
    facts: SpeechFacts,
    window: int,
) -> None:
    """Completes the start tokens of each clip with the likeliest language of its first window."""
    if not start.needs_language:
        known = {*facts.languages.values()}
        for clip in clips:
            clip.start = start.with_language(-1)
            clip.language_id = next((token for token in clip.start if token in known), None)
        return
    languages = sorted({*facts.languages.values()})
    first = start.tokens[0]
    if first is None:
        raise InputError("nothing says what the decoder starts with; give decoder_start_token_id=...")
    for begin in range(0, len(clips), decoder.batch_size):
        group = clips[begin : begin + decoder.batch_size]
        hidden, lengths = encode([_window(clip, window) for clip in group])
        logits = decoder.first_logits(hidden, lengths, first)
        for clip, row in zip(group, logits, strict=True):
            clip.language_id = languages[int(np.argmax(row[languages]))]
            clip.start = start.with_language(clip.language_id)


def _window(clip: Clip, window: int) -> NDArray[Any]:
    """The next frames, with zeros behind the end of the clip."""
    part = clip.features[:, clip.seek : clip.seek + window]
    return np.pad(part, ((0, 0), (0, window - part.shape[1])))
