"""What is said in a clip, with times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qeff_framework.speech.start_tokens import SpeechFacts

#: Seconds of one time stamp, and of one frame of features.
_TIME, _FRAME = 0.02, 0.01


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of what is said. Times are seconds from the start of the clip."""

    start: float
    end: float
    #: Time stamps are among them.
    tokens: list[int]
    text: str = ""
    #: Of the window that the segment is a part of: mean log-probability of its tokens, probability that nobody speaks, the
    #: temperature at which it was decoded, and where it begins, in frames of features.
    avg_logprob: float = 0.0
    no_speech_prob: float = 0.0
    temperature: float = 0.0
    seek: int = 0


@dataclass(frozen=True, kw_only=True)
class SpeechOutput:
    """What was said in each clip."""

    #: New tokens of each clip, without start tokens and end.
    generated_ids: list[list[int]]
    #: Texts without time stamps; empty for an artifact without a tokenizer.
    generated_texts: list[str]
    #: Of each clip; the whole clip is one segment where time stamps were not asked for.
    segments: list[list[Segment]]
    #: The language token of each clip that was given or detected; `None` for a model without.
    language_ids: list[int | None] = field(default_factory=list)


def segments_of(
    tokens: Sequence[int], facts: SpeechFacts, *, seek: int, frames: int, stride: int
) -> tuple[list[Segment], int]:
    """The segments of a window, and by how many frames of features the next window begins later.

    Args:
        tokens: of the window, without the end of the text.
        facts: which tokens are time stamps.
        seek: the frame at which the window begins.
        frames: of sound in the window.
        stride: frames of features to one of the encoder.
    """
    begin = facts.timestamp_begin
    offset = seek * _TIME / stride
    is_time = [begin is not None and token >= begin for token in tokens]
    pairs = [index + 1 for index in range(len(tokens) - 1) if is_time[index] and is_time[index + 1]]
    if not pairs or begin is None:
        # Transformers divides in float32, which decides where half a time stamp goes.
        last = float(int(np.float32(frames) * np.float32(_FRAME) / np.float32(_TIME)))
        times = [token for token, timed in zip(tokens, is_time, strict=True) if timed]
        if times and begin is not None and times[-1] != begin:
            last = float(times[-1] - begin)
        return [Segment(start=offset, end=offset + last * _TIME, tokens=list(tokens))], frames
    ends_alone = is_time[-2:] == [False, True]
    # The last stamp belongs to the last segment: it tells that the text goes on behind it.
    cuts = [*pairs, len(tokens)] if ends_alone else [*pairs[:-1], pairs[-1] + 1]
    segments: list[Segment] = []
    start = 0
    for number, cut in enumerate(cuts):
        part = list(tokens[start:cut])
        last_stamp = part[-1 if ends_alone or number < len(cuts) - 1 else -2]
        segments.append(
            Segment(start=offset + (part[0] - begin) * _TIME, end=offset + (last_stamp - begin) * _TIME, tokens=part)
        )
        start = cut
    if ends_alone:
        return segments, frames
    # What follows the last pair was cut in the middle; the next window begins there.
    moved = (tokens[start - 2] - begin) * stride
    return segments, moved if moved > 0 else frames
