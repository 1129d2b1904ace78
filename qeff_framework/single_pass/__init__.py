"""Running loaded programs that read each text in one pass: embeddings, class scores, answers to questions."""

from __future__ import annotations

from qeff_framework.single_pass.classification import class_scores, ranking_scores
from qeff_framework.single_pass.embedding_texts import check_tokens, tokenise_texts
from qeff_framework.single_pass.encoder_runner import EncoderRunner
from qeff_framework.single_pass.question_answering import Answer, SpanLogits, find_answer
from qeff_framework.single_pass.token_types import single_texts, token_types

__all__ = [
    "Answer",
    "EncoderRunner",
    "SpanLogits",
    "check_tokens",
    "class_scores",
    "find_answer",
    "ranking_scores",
    "single_texts",
    "token_types",
    "tokenise_texts",
]
