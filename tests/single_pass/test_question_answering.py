"""The best span: of the context only, in whole words, over windows, with and without an answer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from qeff_framework.errors import InputError
from qeff_framework.single_pass import Answer, SpanLogits, find_answer, single_texts
from qeff_framework.tokenization import align, as_text_tokenizer
from qeff_framework.tokenization.tokenizer import FastTokenizer

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "where",
    "is",
    "it",
    "?",
    "the",
    "key",
    "lie",
    "##s",
    "on",
    "a",
    "table",
    ".",
]
ID = {piece: index for index, piece in enumerate(PIECES)}
QUESTION, CONTEXT = "Where is it?", "The key lies on a table."

Run = Callable[[Mapping[str, Any]], SpanLogits]


@pytest.fixture(scope="module")
def raw() -> Tokenizer:
    """WordPiece with the special tokens of BERT around a pair."""
    tokenizer = Tokenizer(models.WordPiece(ID, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ID["[CLS]"]), ("[SEP]", ID["[SEP]"])],
    )
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer(raw: Tokenizer) -> FastTokenizer:
    return FastTokenizer(raw, {"cls_token": "[CLS]"})


def scoring(starts: dict[str, float], ends: dict[str, float], calls: list[Any] | None = None) -> Run:
    """A model that likes certain pieces, wherever they stand; each row ends in two places of padding that it likes best."""

    def run(inputs: Mapping[str, Any]) -> SpanLogits:
        if calls is not None:
            calls.append(inputs)
        width = max(map(len, inputs["input_ids"])) + 2
        arrays = []
        for liked in (starts, ends):
            rows = [[liked.get(PIECES[token], 0.0) for token in row] for row in inputs["input_ids"]]
            arrays.append(np.array([row + [99.0] * (width - len(row)) for row in rows]))
        return SpanLogits(*arrays)

    return run


def test_the_answer_lies_in_the_context_and_is_widened_to_whole_words(tokenizer: FastTokenizer) -> None:
    calls: list[Any] = []
    # The question, special tokens and padding are more likely than what is in the context, and take no part.
    run = scoring({"is": 9, "[SEP]": 9, "##s": 5}, {"?": 9, "[SEP]": 9, "table": 5}, calls)

    answer = find_answer(run, tokenizer, QUESTION, CONTEXT, max_tokens=32)

    assert answer.text == "lies on a table" == CONTEXT[answer.start : answer.end]
    (call,) = calls
    assert [PIECES[token] for token in call["input_ids"][0]][:6] == ["[CLS]", "where", "is", "it", "?", "[SEP]"]
    assert call["token_type_ids"][0] == [0] * 6 + [1] * 9
    # One of eight pieces of the context is liked, and the token for no answer takes part as well.
    probability = np.exp(5) / (np.exp(5) + 8)
    assert answer.score == pytest.approx(probability**2)


def test_a_span_has_a_direction_and_a_largest_length(tokenizer: FastTokenizer) -> None:
    run = scoring({"table": 5, "key": 4.9}, {"key": 5, "table": 4})

    # From table to key would be backwards, from key to table too long.
    assert find_answer(run, tokenizer, QUESTION, CONTEXT, max_tokens=32, max_answer_len=3).text == "key"
    longer = scoring({"key": 5}, {"table": 5})
    assert (
        find_answer(longer, tokenizer, QUESTION, CONTEXT, max_tokens=32, max_answer_len=6).text == "key lies on a table"
    )
    assert (
        find_answer(longer, tokenizer, QUESTION, CONTEXT, max_tokens=32, max_answer_len=5).text != "key lies on a table"
    )


def test_a_long_context_is_read_in_windows_that_overlap(tokenizer: FastTokenizer) -> None:
    context = f"{'the key is on it . ' * 5}{CONTEXT}"
    calls: list[Any] = []
    run = scoring({"a": 6}, {"table": 6}, calls)

    answer = find_answer(run, tokenizer, QUESTION, context, max_tokens=16, doc_stride=4)

    assert (answer.text, answer.start) == ("a table", context.index("a table"))
    (call,) = calls
    rows = [[PIECES[token] for token in row] for row in call["input_ids"]]
    assert len(rows) > 3
    assert all(row[:6] == ["[CLS]", "where", "is", "it", "?", "[SEP]"] and len(row) <= 16 for row in rows)
    assert all(before[-5:-1] == after[6:10] for before, after in itertools.pairwise(rows))
    assert find_answer(run, tokenizer, QUESTION, context, max_tokens=64) == Answer(
        text="a table", score=pytest.approx((np.exp(6) / (np.exp(6) + 38)) ** 2), start=answer.start, end=answer.end
    )


def test_there_may_be_no_answer(tokenizer: FastTokenizer, raw: Tokenizer) -> None:
    run = scoring({"[CLS]": 6, "a": 2}, {"[CLS]": 6, "table": 2})

    assert find_answer(run, tokenizer, QUESTION, CONTEXT, max_tokens=32).text == "a table"
    none = find_answer(run, tokenizer, QUESTION, CONTEXT, max_tokens=32, handle_impossible_answer=True)
    assert none == Answer(text="", score=pytest.approx((np.exp(6) / (np.exp(6) + np.exp(2) + 7)) ** 2), start=0, end=0)
    with pytest.raises(InputError, match="needs a tokenizer with a cls_token"):
        find_answer(run, FastTokenizer(raw), QUESTION, CONTEXT, max_tokens=32, handle_impossible_answer=True)


def test_a_tokenizer_of_transformers_tells_the_same_places(raw: Tokenizer, tokenizer: FastTokenizer) -> None:
    names = ["input_ids", "token_type_ids", "attention_mask"]
    other = PreTrainedTokenizerFast(tokenizer_object=raw, cls_token="[CLS]", model_input_names=names)

    for limits in ({}, {"max_length": 12, "overlap": 2}):
        assert align(as_text_tokenizer(other), QUESTION, CONTEXT, **limits) == align(
            tokenizer, QUESTION, CONTEXT, **limits
        )
    (single,) = align(tokenizer, "The lies.")
    assert [single.spans, single.texts] == [[(0, 0), (0, 3), (4, 7), (7, 8), (8, 9), (0, 0)], [None, 0, 0, 0, 0, None]]
    assert single.words[2:4] == [(4, 8), (4, 8)]


def test_token_types_are_those_that_the_model_reads(raw: Tokenizer) -> None:
    unaware = FastTokenizer(raw, {"model_input_names": ["input_ids", "attention_mask"]})

    assert not any(align(unaware, QUESTION, CONTEXT)[0].type_ids)


def test_types_of_single_texts_are_those_of_the_tokenizer(raw: Tokenizer, tokenizer: FastTokenizer) -> None:
    """XLNet and Funnel give the token of the whole text a type of its own."""
    row = [ID["[CLS]"], ID["key"]]
    assert single_texts(tokenizer, [row]) == {"input_ids": [row], "attention_mask": [[1, 1]]}
    own = Tokenizer.from_str(raw.to_str())
    own.post_processor = processors.TemplateProcessing(
        single="$A [SEP] [CLS]:2", special_tokens=[("[CLS]", ID["[CLS]"]), ("[SEP]", ID["[SEP]"])]
    )
    fast = FastTokenizer(own, {"cls_token": "[CLS]"})
    rows = [fast.encode("key"), fast.encode("the key")]
    assert single_texts(fast, rows)["token_type_ids"] == [[0, 0, 2], [0, 0, 0, 2]]


@pytest.mark.parametrize(
    ("question", "context", "limit", "message"),
    [
        ("", CONTEXT, 32, "the question is empty"),
        (QUESTION, " ", 32, "the context is empty"),
        (
            [QUESTION],
            CONTEXT,
            32,
            "the question is of type list; give one text, and call answer once for each question",
        ),
        (QUESTION, None, 32, "the context is of type NoneType; give one text"),
        (QUESTION, CONTEXT, 7, "the question takes 7 of the program's 7 tokens"),
    ],
)
def test_what_has_no_answer_is_refused_before_the_run(
    question: Any, context: Any, limit: int, message: str, tokenizer: FastTokenizer
) -> None:
    calls: list[Any] = []
    with pytest.raises(InputError, match=message):
        find_answer(scoring({}, {}, calls), tokenizer, question, context, max_tokens=limit)
    with pytest.raises(InputError, match="doc_stride=-1 must be at least 0"):
        find_answer(scoring({}, {}, calls), tokenizer, QUESTION, CONTEXT, max_tokens=32, doc_stride=-1)
    for odd in ({"max_answer_len": "3"}, {"doc_stride": 2.5}, {"max_answer_len": True}):
        with pytest.raises(InputError, match=f"{next(iter(odd))}=.* must be a whole number of tokens"):
            find_answer(scoring({}, {}, calls), tokenizer, QUESTION, CONTEXT, max_tokens=32, **odd)  # type: ignore[arg-type]
    assert calls == []


def test_a_tokenizer_that_knows_no_places_is_refused() -> None:
    class Slow:
        bos_token_id = eos_token_id = pad_token_id = cls_token_id = None
        is_fast = False
        encode = decode = get_vocab = lambda *_: []

    with pytest.raises(InputError, match="does not know where in the text its tokens stand; use a fast tokenizer"):
        find_answer(scoring({}, {}), as_text_tokenizer(Slow()), QUESTION, CONTEXT, max_tokens=32)
