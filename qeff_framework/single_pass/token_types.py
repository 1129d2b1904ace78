"""Types of the tokens of single texts: those of special tokens are not 0 everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from qeff_framework.errors import InputError
from qeff_framework.tokenization.tokenizer import AligningTokenizer, TextTokenizer


def token_types(tokenizer: TextTokenizer, rows: Sequence[Sequence[int]]) -> list[list[int]] | None:
    """``token_type_ids`` of `rows`, each the tokens of one text; `None` where all types of single texts are 0.

    XLNet, for instance, gives its ``<cls>`` a type of its own.
    """
    types: dict[int, int] = {}
    if isinstance(tokenizer, AligningTokenizer) and tokenizer.has_token_types:
        with suppress(InputError):  # a tokenizer that cannot tell places has no such types here
            (encoding,) = tokenizer.encodings("a")
            owners = zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True)
            types = {token: kind for token, kind, owner in owners if owner is None and kind}
    return [[types.get(token, 0) for token in row] for row in rows] if types else None


def single_texts(tokenizer: TextTokenizer, rows: Sequence[Sequence[int]]) -> dict[str, list[list[int]]]:
    """Tokenizer output for `rows`, each the tokens of one text."""
    types = token_types(tokenizer, rows)
    return {
        "input_ids": [list(row) for row in rows],
        # Without a mask, a text that ends in the padding token would be taken for a padded one.
        "attention_mask": [[1] * len(row) for row in rows],
        **({} if types is None else {"token_type_ids": types}),
    }
