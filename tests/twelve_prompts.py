"""Twelve prompts of different lengths whose answers differ in length as well, for programs of continuous batching."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedModel

from tests.eager import eager_greedy
from tests.tiny_models import VOCAB_SIZE

CTX_LEN = 40
#: Prompt and answer together; the answers that no end-of-text token cuts short differ in length like the prompts.
MAX_LENGTH = 26


def twelve_prompts() -> list[list[int]]:
    """Lengths from 1 to 17, long and short ones mixed."""
    rng = np.random.default_rng(3)
    lengths = [11, 3, 6, 17, 1, 9, 4, 13, 2, 8, 15, 5]
    return [rng.integers(3, VOCAB_SIZE, length).tolist() for length in lengths]


def answers_alone(module: PreTrainedModel, prompts: list[list[int]]) -> tuple[list[list[int]], int]:
    """Eager decoding of each prompt by itself, and the end-of-text token that cuts about half of the answers short."""
    full = [eager_greedy(module, prompt, MAX_LENGTH - len(prompt)) for prompt in prompts]
    cut = {
        token: sum(token in answer[:-1] for answer in full) for token in {token for answer in full for token in answer}
    }
    eos = min(cut, key=lambda token: abs(cut[token] - len(prompts) // 2))
    answers = [answer[: answer.index(eos) + 1] if eos in answer else answer for answer in full]
    assert 0 < cut[eos] < len(prompts)
    assert len({len(answer) for answer in answers}) > 5, "the answers must differ in length"
    return answers, eos
