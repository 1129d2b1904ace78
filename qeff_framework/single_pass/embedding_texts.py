"""Texts for an embedding program, prepared as its checkpoint says: prompts in front, long texts cut.

`preparation` is the entry ``texts`` of a program's metadata, see `qeff_framework.sources.sentence_transformers.TextPreparation`;
an empty one prepares nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qeff_framework.errors import InputError
from qeff_framework.single_pass.token_types import single_texts
from qeff_framework.tokenization.inputs import integer_rows
from qeff_framework.tokenization.tokenizer import CuttingTokenizer, TextTokenizer


def tokenise_texts(
    texts: Sequence[str],
    tokenizer: TextTokenizer,
    preparation: Mapping[str, Any],
    *,
    prompt: str | None = None,
    prompt_name: str | None = None,
) -> dict[str, list[list[int]]]:
    """Returns tokenizer output for `texts`, rows of unequal lengths. `prompt` wins over `prompt_name`, both over the default.

    Raises:
        InputError: an unknown prompt, a prompt that the program cannot leave out of its pooling, or something that is no text.
    """
    asked: tuple[tuple[str, Any], ...] = (("prompt", prompt), ("prompt_name", prompt_name))
    for name, given in asked:
        if not isinstance(given, str | None):
            raise InputError(f"{name}={given!r} must be one text, for all texts of the call")
    chosen = _prompt(preparation, prompt, prompt_name)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {number} is a {type(text).__name__}; give texts, or what a tokenizer returns")
    limit = preparation.get("max_tokens")
    if limit is not None and isinstance(tokenizer, CuttingTokenizer):
        return single_texts(tokenizer, [tokenizer.encode_within(chosen + text, int(limit)) for text in texts])
    return single_texts(tokenizer, [tokenizer.encode(chosen + text) for text in texts])


def check_tokens(inputs: object, preparation: Mapping[str, Any]) -> None:
    """Refuses tokens that cannot be those of prepared texts.

    Raises:
        InputError: the checkpoint changes texts before they are tokenised, or cuts texts as long as one of these.
    """
    changes = []
    if preparation.get("default_prompt"):
        changes.append(f"puts the prompt {preparation['default_prompt']!r} in front of them")
    if preparation.get("lower_case"):
        changes.append("lower-cases them")
    if changes:
        raise InputError(
            f"the checkpoint does not embed texts as they are: it {' and '.join(changes)}; give the texts instead of tokens "
            "(a list of str), or prepared=True for tokens of texts that were prepared"
        )
    limit = preparation.get("max_tokens")
    if limit is None or not isinstance(inputs, Mapping) or "input_ids" not in inputs:
        return
    lengths = [len(row) for row in integer_rows(inputs["input_ids"], "input_ids")]
    if inputs.get("attention_mask") is not None:
        lengths = [int(np.sum(row)) for row in integer_rows(inputs["attention_mask"], "attention_mask")]
    if lengths and max(lengths) > limit:
        raise InputError(
            f"a row has {max(lengths)} tokens, and the checkpoint cuts texts at {limit}; give the texts instead (a list of str), "
            f"tokenise with truncation=True, max_length={limit}, or give prepared=True to embed longer rows as they are"
        )


def _prompt(preparation: Mapping[str, Any], prompt: str | None, prompt_name: str | None) -> str:
    prompts = preparation.get("prompts", {})
    if prompt is None and prompt_name is not None:
        if prompt_name not in prompts:
            raise InputError(
                f"the checkpoint has no prompt named {prompt_name!r}, only {', '.join(sorted(prompts)) or 'none'}; give one of "
                "these, or the text itself as prompt=..."
            )
        prompt = str(prompts[prompt_name])
    chosen = str(preparation.get("default_prompt", "")) if prompt is None else prompt
    if chosen and not preparation.get("prompt_in_pooling", True):
        raise InputError(
            f"the checkpoint leaves the prompt out of its pooling (include_prompt=false), which a program cannot do: the prompt "
            f"{chosen!r} would become part of the embedding; give texts without a prompt"
        )
    return chosen
