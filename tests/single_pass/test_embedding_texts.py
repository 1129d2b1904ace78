"""Texts and tokens for embedding programs."""

from __future__ import annotations

from typing import Any

import pytest

from qeff_framework.errors import InputError
from qeff_framework.single_pass import check_tokens, tokenise_texts


class Letters:
    """A tokenizer with a token for each letter, between two special ones."""

    bos_token_id = eos_token_id = pad_token_id = chat_template = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1, *map(ord, text), 2]

    def encode_within(self, text: str, max_length: int) -> list[int]:
        return [1, *map(ord, text[: max_length - 2]), 2]

    def decode(self, ids: Any, *, skip_special_tokens: bool = True) -> str:
        return ""

    def vocabulary(self) -> dict[str, int]:
        return {}


def rows(preparation: dict[str, Any], *texts: str, **chosen: Any) -> list[str]:
    ids = tokenise_texts(texts, Letters(), preparation, **chosen)["input_ids"]
    return ["".join(map(chr, row[1:-1])) for row in ids]


def test_prompts_stand_in_front_and_long_texts_are_cut() -> None:
    preparation = {"default_prompt": "q:", "prompts": {"query": "q:", "passage": "p:"}, "max_tokens": 6}
    assert rows(preparation, "abcdef", "a") == ["q:ab", "q:a"]
    assert rows(preparation, "abcdef", prompt_name="passage") == ["p:ab"]
    assert rows(preparation, "abcdef", prompt="") == ["abcd"]
    assert rows({}, "abcdef") == ["abcdef"]


@pytest.mark.parametrize(
    ("preparation", "chosen", "reason"),
    [
        ({"prompts": {"query": "q:"}}, {"prompt_name": "passage"}, "no prompt named 'passage', only query"),
        ({}, {"prompt": 5}, "prompt=5 must be one text, for all texts of the call"),
        ({"prompts": {"query": "q:"}}, {"prompt_name": ["query"]}, r"prompt_name=\['query'\] must be one text"),
        ({"prompt_in_pooling": False}, {"prompt": "q:"}, "leaves the prompt out of its pooling"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused(preparation: Any, chosen: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        rows(preparation, "a", **chosen)


def test_something_that_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match="text 1 is a int"):
        tokenise_texts(["a", 3], Letters(), {})  # type: ignore[list-item]


def test_rows_beyond_what_the_checkpoint_reads_are_refused() -> None:
    preparation = {"max_tokens": 3}
    check_tokens({"input_ids": [[1, 2, 3, 0]], "attention_mask": [[1, 1, 1, 0]]}, preparation)
    check_tokens({"input_ids": [[1] * 9]}, {})
    with pytest.raises(InputError, match="a row has 4 tokens, and the checkpoint cuts texts at 3"):
        check_tokens({"input_ids": [[1, 2, 3, 4], [1, 2, 3, 0]]}, preparation)
