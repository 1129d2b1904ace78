"""Tokens together with the places in the text that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import InputError
from qeff_framework.tokenization.tokenizer import AligningTokenizer, TextTokenizer

if TYPE_CHECKING:
    from tokenizers import Encoding

#: Characters of a text, the end excluded.
Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class AlignedTokens:
    """The tokens of one text or of a pair. All fields have one entry per token."""

    ids: Sequence[int]
    type_ids: Sequence[int]
    #: 0 or 1: the text that the token belongs to; `None` for special tokens.
    texts: Sequence[int | None]
    #: Characters of that text; empty for special tokens.
    spans: Sequence[Span]
    #: Characters of the whole word that the token is a part of.
    words: Sequence[Span]


def align(
    tokenizer: TextTokenizer, text: str, pair: str | None = None, *, max_length: int | None = None, overlap: int = 0
) -> list[AlignedTokens]:
    """The tokens of `text`, or of both texts; see `AligningTokenizer.encodings`.

    Raises `InputError` for a tokenizer that cannot tell where its tokens stand.
    """
    if not isinstance(tokenizer, AligningTokenizer):
        raise InputError(
            f"{type(tokenizer).__name__} does not tell where in the text its tokens stand; use a fast tokenizer of Transformers"
        )
    encodings = tokenizer.encodings(text, pair, max_length=max_length, overlap=overlap)
    return [_aligned(encoding, has_token_types=tokenizer.has_token_types) for encoding in encodings]


def as_rows(windows: Sequence[AlignedTokens]) -> Mapping[str, Any]:
    """Tokenizer output ``[N, S]`` with rows of unequal lengths, as `EncoderRunner` takes it."""
    return {
        "input_ids": [list(window.ids) for window in windows],
        "token_type_ids": [list(window.type_ids) for window in windows],
    }


def _aligned(encoding: Encoding, *, has_token_types: bool) -> AlignedTokens:
    spans = [(int(start), int(end)) for start, end in encoding.offsets]
    texts = list(encoding.sequence_ids)
    return AlignedTokens(
        ids=list(encoding.ids),
        type_ids=list(encoding.type_ids) if has_token_types else [0] * len(spans),
        texts=texts,
        spans=spans,
        words=[
            span if word is None or text is None else encoding.word_to_chars(word, text) or span
            for span, word, text in zip(spans, encoding.word_ids, texts, strict=True)
        ],
    )
