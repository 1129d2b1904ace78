"""Draft tokens from the text itself: what followed the last time that it ended as it ends now.

A program with several logits per step (``num_speculative_tokens``) checks all of them in one step. Texts that repeat their
prompt or themselves, such as edited code or answers about a document, get several tokens for one step.
"""

from __future__ import annotations

from collections.abc import Iterable


class PromptLookup:
    """Finds drafts for one row.

    Every n-gram up to `max_ngram` tokens is kept with the place behind its last occurrence, so that a token costs `max_ngram`
    entries and a draft `max_ngram` look-ups, however long the text is.
    """

    def __init__(self, tokens: Iterable[int], *, max_ngram: int) -> None:
        self._max_ngram = max_ngram
        self._tokens: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Adds a token to the text."""
        place = len(self._tokens)
        for length in range(1, min(self._max_ngram, place) + 1):
            self._behind[tuple(self._tokens[-length:])] = place
        self._tokens.append(token)

    def draft(self, count: int) -> list[int]:
        """At most `count` tokens that may come next; empty when the last token is new. The longest n-gram decides."""
        for length in range(min(self._max_ngram, len(self._tokens)), 0, -1):
            place = self._behind.get(tuple(self._tokens[-length:]))
            if place is not None:
                return self._copy(place, count)
        return []

    def _copy(self, place: int, count: int) -> list[int]:
        copied = self._tokens[place : place + count]
        # The copy may reach the end of the text; it then goes on with itself, as a text that repeats does.
        period = len(self._tokens) - place
        while len(copied) < count:
            copied.append(copied[-period])
        return copied
