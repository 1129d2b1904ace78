"""Texts of clips while they are written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from qeff_framework.generation.streaming import Detokenizer

if TYPE_CHECKING:
    from qeff_framework.speech.segments import Segment
    from qeff_framework.speech.windows import Clip
    from qeff_framework.tokenization.tokenizer import TextTokenizer


class ClipPrinter:
    """Writes the text of one clip window after window; of several clips, each text when its clip has been read, after ``[n] ``.

    Args:
        tokenizer: makes texts of token ids.
        clips: how many there are.
        file: where they are written.
        is_text: whether a token id is text, and not a time stamp.
    """

    def __init__(self, tokenizer: TextTokenizer, clips: int, file: TextIO, is_text: Callable[[int], bool]) -> None:
        self._file, self._is_text, self._tokenizer = file, is_text, tokenizer
        self._detokenizer = Detokenizer(tokenizer) if clips == 1 else None
        self._written: set[int] = set()

    def put(self, clip: Clip, segments: Sequence[Segment]) -> None:
        """Takes the new segments of a clip."""
        if self._detokenizer is not None:
            for token in self._text_of(segments):
                self._file.write(self._detokenizer.put(token))
            self._file.flush()
        if clip.seek >= clip.frames:
            self._end(clip)

    def end(self, clips: Sequence[Clip]) -> None:
        """Writes what is left of clips that are read at once."""
        for clip in clips:
            if clip.number not in self._written:
                self._end(clip)

    def _end(self, clip: Clip) -> None:
        self._written.add(clip.number)
        if self._detokenizer is not None:
            self._file.write(f"{self._detokenizer.finish()}\n")
        else:
            self._file.write(f"[{clip.number}] {self._tokenizer.decode(self._text_of(clip.segments))}\n")
        self._file.flush()

    def _text_of(self, segments: Sequence[Segment]) -> list[int]:
        return [token for segment in segments for token in segment.tokens if self._is_text(token)]
