"""Merges of a vocabulary: those of Transformers, in its order."""

from __future__ import annotations

import random

import pytest
from transformers.tokenization_utils_base import generate_merges

from qeff_framework.sources import gguf_merges
from qeff_framework.sources.gguf_merges import merges_of


@pytest.mark.parametrize("base", [gguf_merges._BASE, 1])
def test_merges_are_those_of_the_library(base: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # With 1 a hash is the sum of the letters: parts with the hash of a token are often another text.
    monkeypatch.setattr(gguf_merges, "_BASE", base)
    monkeypatch.setattr(gguf_merges, "_INVERSE", base if base == 1 else gguf_merges._INVERSE)
    monkeypatch.setattr(gguf_merges, "_TOKENS", 7)
    chance = random.Random(0)
    answers = 0
    for size in (1, 3, 60):
        for _ in range(20):
            letters = "\u2581b\U0001f600\ud800" if size > 3 else "ac"
            tokens = list({"".join(chance.choices(letters, k=chance.randint(1, 5))) for _ in range(size)})
            vocab = {token: (number * 7) % 61 for number, token in enumerate(tokens)}
            scores = {token: chance.choice([-1.5, -2, 0.0, 3]) for token in chance.sample(tokens, len(tokens))}
            found = merges_of(vocab, scores)
            answers += found is not None
            assert found in (None, generate_merges(vocab, scores))
    assert answers == (60 if base != 1 else answers)
    assert answers


def test_a_part_with_the_hash_of_a_token_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_merges, "_BASE", 1)
    monkeypatch.setattr(gguf_merges, "_INVERSE", 1)
    # "bc" of "abc" adds up as "ad" does.
    vocab = {"a": 0, "ad": 1, "abc": 2, "d": 3}
    scores = {token: float(number) for token, number in vocab.items()}
    assert merges_of(vocab, scores) == [("a", "d")] == generate_merges(vocab, scores)
    assert merges_of({"ad": 0, "bc": 1}, {"ad": 0.0}) is None
