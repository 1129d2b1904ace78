"""Clips of any length through a model that reads windows of one length, as Transformers does it for Whisper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.errors import InputError
from qeff_framework.generation.settings import GenerationSettings
from qeff_framework.speech.decoder import SpeechDecoder
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
    seek: int = 0
    start: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    language_id: int | None = None

    @property
    def frames(self) -> int:
        """Of the clip."""
        return int(self.features.shape[1])


def transcribe_windows(
    clips: Sequence[Clip],
    encode: Encode,
    decoder: SpeechDecoder,
    settings: GenerationSettings,
    facts: SpeechFacts,
    start: StartTokens,
    *,
    window: int,
    timestamps: bool,
    limit: Callable[[int], int],
) -> None:
    """Reads all clips to their ends; what is found is added to them.

    Args:
        clips: changed in place.
        encode: runs the encoder.
        decoder: runs the decoder.
        settings: rules for the scores and what ends a text.
        facts: what the checkpoint says about languages, tasks and time stamps.
        start: start tokens of each window.
        window: frames of features in a window.
        timestamps: the answer holds time stamps; a clip longer than a window needs them.
        limit: new tokens at most behind so many start tokens.
    """
    _find_languages(clips, encode, decoder, start, facts, window)

    def further() -> list[Timestamps]:
        begin = facts.timestamp_begin
        if not timestamps or begin is None:
            return []
        return [Timestamps(facts, begin, settings.eos_token_ids[0])]

    while waiting := [clip for clip in clips if clip.seek < clip.frames]:
        group = waiting[: decoder.batch_size]
        hidden, lengths = encode([_window(clip, window) for clip in group])
        prompts = [clip.start for clip in group]
        limits = [limit(len(prompt)) for prompt in prompts]
        found = decoder.decode(hidden, lengths, prompts, limits, settings, further)
        stride = window // int(lengths[0])
        for clip, tokens in zip(group, found, strict=True):
            text = tokens[:-1] if tokens and tokens[-1] in settings.eos_token_ids else tokens
            frames = min(window, clip.frames - clip.seek)
            segments, moved = segments_of(text, facts, seek=clip.seek, frames=frames, stride=stride)
            clip.segments += segments
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
