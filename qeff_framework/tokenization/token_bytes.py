"""The bytes that a token stands for inside of a text.

Decoding a single token does not tell them: a token may hold a part of a character, and some decoders drop the space in front of
what they take for the first word of a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
#: Stands for a space in vocabularies of sentencepiece.
_SPACE = "\u2581"


class TokenBytes:
    """Tells the bytes of tokens of a fast tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        kinds = {str(part["type"]) for part in _parts(tokenizer)}
        self._is_byte_level = "ByteLevel" in kinds
        self._is_sentencepiece = bool(kinds & {"ByteFallback", "Metaspace"})
        self._added: Mapping[int, Any] = tokenizer.get_added_tokens_decoder()

    def __call__(self, token: int) -> bytes | None:
        """`None` where what a token stands for depends on its neighbours, as that of word pieces does."""
        if token in self._added:
            return str(self._added[token].content).encode()
        text = self._tokenizer.id_to_token(token)
        if text is None:
            return None
        if self._is_byte_level:
            return b"".join(bytes([_BYTES[letter]]) if letter in _BYTES else letter.encode() for letter in text)
        if self._is_sentencepiece:
            byte = _BYTE.fullmatch(text)
            return text.replace(_SPACE, " ").encode() if byte is None else bytes([int(byte[1], 16)])
        return None


def _parts(tokenizer: Tokenizer) -> Iterator[Mapping[str, Any]]:
    """The decoder, or those that it is a sequence of, as a ``tokenizer.json`` describes them."""
    decoder: Any = tokenizer.decoder
    content = json.loads(decoder.__getstate__()) if decoder is not None else {"decoders": []}
    yield from content.get("decoders", [content])


def _letters_of_bytes() -> Iterator[tuple[str, int]]:
    """The letter that byte-level vocabularies write for each byte: itself where it prints, else one behind the bytes."""
    further = 256
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174:
            yield chr(byte), byte
        else:
            yield chr(further), byte
            further += 1


_BYTES = dict(_letters_of_bytes())
