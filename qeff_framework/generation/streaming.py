"""Text while it is being generated: whole characters only, and the same text in the end as decoding everything at once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TextIO

from qeff_framework.errors import InputError
from qeff_framework.tokenization.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from qeff_framework.generation.output import GenerationOutput
    from qeff_framework.generation.rows import Step

#: What decoders put in place of bytes that do not make a character (yet).
_REPLACEMENT = "\ufffd"
#: Clean boundaries that stay in the window as context: clean-up rules look back over up to three tokens.
_CONTEXT = 4
_WINDOW = 8


class TokenStreamer(Protocol):
    """The interface of Transformers' streamers."""

    def put(self, value: object) -> None:
        """Takes the prompt `[1, S]` first, then one new token `[1]` after the other."""

    def end(self) -> None:
        """Says that the generation has ended."""


class Detokenizer:
    """Turns token ids into pieces of text one by one, in constant time per token.

    Only a window of the last tokens is decoded. It starts at a boundary where the text was whole, and it keeps some context,
    because a token's text depends on its neighbours (leading spaces, byte tokens, clean-up).
    """

    def __init__(self, tokenizer: TextTokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._window: list[int] = []
        #: Text of the window that has been handed out.
        self._shown = ""
        #: Lengths of the window at which its text ended with a whole character.
        self._boundaries: list[int] = []

    def put(self, token: int) -> str:
        """The text that `token` settles; empty while a character is incomplete."""
        self._window.append(token)
        text = self._decode(self._window)
        settled = text.rstrip(_REPLACEMENT)
        if not settled.startswith(self._shown):
            return ""
        piece = settled[len(self._shown) :]
        self._shown = settled
        if settled == text:
            self._boundaries.append(len(self._window))
            self._shrink()
        return piece

    def finish(self) -> str:
        """What is left: an incomplete character shows as U+FFFD, as when everything is decoded at once."""
        text = self._decode(self._window)
        rest = text[_common_length(text, self._shown) :]
        self._window, self._shown, self._boundaries = [], "", []
        return rest

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens) if ids else ""

    def _shrink(self) -> None:
        if len(self._boundaries) < _WINDOW:
            return
        start = self._boundaries[-_CONTEXT - 1]
        context = self._decode(self._window[start:])
        if not context:
            # Without text before it the next token would be decoded as the first of a text and lose its leading space.
            return
        self._window = self._window[start:]
        self._shown = context
        self._boundaries = [length - start for length in self._boundaries if length > start]


def _common_length(left: str, right: str) -> int:
    """Number of characters that both texts begin with."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))


class TextStream(Iterator[str]):
    """Pieces of the text of one prompt, generated while it is iterated.

    `output` is the complete result once the iteration has ended. Closing the stream early ends the generation.
    """

    def __init__(self, steps: Iterator[Step], tokenizer: TextTokenizer, finish: Callable[[], GenerationOutput]) -> None:
        self._pieces = _pieces(steps, tokenizer)
        self._finish = finish
        self._output: GenerationOutput | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration:
            if self._output is None:
                self._output = self._finish()
            raise

    def close(self) -> None:
        """Ends the generation early; there is no output then."""
        self._pieces.close()

    @property
    def output(self) -> GenerationOutput:
        """The complete result. Raises `InputError` while there is still text to come."""
        if self._output is None:
            raise InputError("the stream has not ended: iterate over it before reading its output")
        return self._output


def _pieces(steps: Iterator[Step], tokenizer: TextTokenizer) -> Generator[str]:
    detokenizer = Detokenizer(tokenizer)
    for step in steps:
        piece = detokenizer.put(step.token)
        if piece:
            yield piece
    rest = detokenizer.finish()
    if rest:
        yield rest


class Printer:
    """Writes text to a file while it is generated.

    One prompt: piece by piece, then a line end. Several prompts advance together, so that their pieces would be mixed up: each
    text is written as a whole when its row has finished, after ``[row] ``.
    """

    def __init__(self, tokenizer: TextTokenizer, rows: int, file: TextIO) -> None:
        self._tokenizer = tokenizer
        self._file = file
        self._detokenizer = Detokenizer(tokenizer) if rows == 1 else None
        self._ids: list[list[int]] = [[] for _ in range(rows)]

    def put(self, step: Step) -> None:
        """Takes one generated token."""
        self.add(step.row, step.token, is_last=step.finish_reason is not None)

    def add(self, row: int, token: int, *, is_last: bool) -> None:
        """Takes a token of a row."""
        if self._detokenizer is not None:
            self._write(self._detokenizer.put(token))
            if is_last:
                self._write(self._detokenizer.finish() + "\n")
            return
        self._ids[row].append(token)
        if is_last:
            self._write(f"[{row}] {self._tokenizer.decode(self._ids[row])}\n")

    def _write(self, text: str) -> None:
        if text:
            self._file.write(text)
            self._file.flush()
