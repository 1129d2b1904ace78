"""From the logits of a question-answering model to the part of the text that answers the question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qeff_framework.errors import InputError
from qeff_framework.tokenization.offsets import AlignedTokens, align, as_rows
from qeff_framework.tokenization.tokenizer import AligningTokenizer, TextTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SpanLogits(NamedTuple):
    """How well an answer begins and ends at each token, ``[N, S]`` each."""

    start_logits: NDArray[Any]
    end_logits: NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A part of the context: ``context[start:end]``. No answer has an empty text and stands at 0."""

    text: str
    #: Probability of its start times that of its end.
    score: float
    start: int
    end: int


def find_answer(
    run: Callable[[Mapping[str, Any]], SpanLogits],
    tokenizer: TextTokenizer,
    question: str,
    context: str,
    *,
    max_tokens: int,
    max_answer_len: int = 15,
    doc_stride: int = 128,
    handle_impossible_answer: bool = False,
) -> Answer:
    """The best answer in `context`, by the rules of the question-answering pipeline of Transformers 4.

    `run` takes tokenizer output. A context that is too long for `max_tokens` is read in windows that overlap by `doc_stride`
    tokens (at most half of `max_tokens`). An answer has at most `max_answer_len` tokens and is widened to whole words. With
    `handle_impossible_answer` there may be none.

    Raises:
        InputError: question or context is empty, the question leaves no room for the context, or there is no token by which the
            model could say that there is no answer.
    """
    given: tuple[tuple[str, Any], ...] = (("question", question), ("context", context))
    for name, text in given:
        if not isinstance(text, str):
            raise InputError(
                f"the {name} is of type {type(text).__name__}; give one text, and call answer once for each {name}"
            )
        if not text.strip():
            raise InputError(f"the {name} is empty; give some text")
    for name, count in (("max_answer_len", max_answer_len), ("doc_stride", doc_stride)):
        if isinstance(count, bool) or not isinstance(count, int):
            raise InputError(f"{name}={count!r} must be a whole number of tokens")
    if max_answer_len < 1:
        raise InputError(f"max_answer_len={max_answer_len} must be at least 1")
    if doc_stride < 0:
        raise InputError(f"doc_stride={doc_stride} must be at least 0: the tokens by which windows overlap")
    windows = _windows(tokenizer, question, context, max_tokens, doc_stride)
    logits = run(as_rows(windows))
    null_id = tokenizer.cls_token_id if isinstance(tokenizer, AligningTokenizer) else None
    if handle_impossible_answer and null_id is None:
        raise InputError(
            "handle_impossible_answer needs a tokenizer with a cls_token: its score tells that there is no answer"
        )
    candidates: list[Answer] = []
    no_answer = 1.0
    for window, start, end in zip(windows, logits.start_logits, logits.end_logits, strict=True):
        in_context = np.array([text == 1 for text in window.texts])
        null = window.ids.index(null_id) if null_id is not None and null_id in window.ids else None
        starts, ends = (_probabilities(values[: len(in_context)], in_context, null) for values in (start, end))
        if null is not None:
            no_answer = min(no_answer, float(starts[null] * ends[null]))
        first, last, score = best_span(np.where(in_context, starts, 0), np.where(in_context, ends, 0), max_answer_len)
        begin, stop = window.words[first][0], window.words[last][1]
        candidates.append(Answer(text=context[begin:stop], score=score, start=begin, end=stop))
    if handle_impossible_answer:
        candidates.append(Answer(text="", score=no_answer, start=0, end=0))
    return max(candidates, key=lambda answer: answer.score)


def best_span(starts: NDArray[Any], ends: NDArray[Any], max_length: int) -> tuple[int, int, float]:
    """First and last place and score of the best span of at most `max_length` places, given the weights ``[S]`` of both."""
    scores = np.tril(np.triu(np.outer(starts, ends)), max_length - 1)
    first, last = np.unravel_index(int(scores.argmax()), scores.shape)
    return int(first), int(last), float(scores[first, last])


def _windows(
    tokenizer: TextTokenizer, question: str, context: str, max_tokens: int, doc_stride: int
) -> Sequence[AlignedTokens]:
    (whole,) = align(tokenizer, question, context)
    if 1 not in whole.texts:
        raise InputError("the tokenizer finds no tokens in the context; give some text")
    if len(whole.ids) <= max_tokens:
        return [whole]
    room = max_tokens - sum(text != 1 for text in whole.texts)
    if room < 1:
        raise InputError(
            f"the question takes {max_tokens - room} of the program's {max_tokens} tokens and leaves no room for the context; "
            "shorten it, or compile with a larger seq_len"
        )
    overlap = max(0, min(doc_stride, max_tokens // 2, room - 1))
    return align(tokenizer, question, context, max_length=max_tokens, overlap=overlap)


def _probabilities(logits: NDArray[Any], in_context: NDArray[np.bool_], null: int | None) -> NDArray[Any]:
    """A softmax over the context and the token that stands for no answer; 0 elsewhere."""
    taking_part = in_context.copy()
    if null is not None:
        taking_part[null] = True
    weights = np.exp(np.where(taking_part, logits, -np.inf) - logits[taking_part].max())
    return np.asarray(weights / weights.sum())
