"""Classes of the tokens of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.results.common import label, needed_tokenizer
from qeff_framework.cli.results.single_pass import run_on_texts, texts_outcome

if TYPE_CHECKING:
    from qeff_framework.cli.results.request import ResultsRequest
    from qeff_framework.runtime import CompiledTokenClassifier


def classify_tokens(runner: CompiledTokenClassifier, request: ResultsRequest) -> CommandResult:
    """The best label of each token, on a line of its own."""
    from qeff_framework.single_pass import class_scores
    from qeff_framework.tokenization import align

    texts = request.texts
    logits, seconds = run_on_texts(runner, request, doing="classifying the tokens of")
    tokenizer = needed_tokenizer(runner)
    labels = runner.labels
    results, lines = [], []
    for number, (text, row) in enumerate(zip(texts, logits, strict=True)):
        (tokens,) = align(tokenizer, text)
        scores = class_scores(row, None)
        found = []
        for place, (owner, (start, end)) in enumerate(zip(tokens.texts, tokens.spans, strict=True)):
            if owner is None:  # special tokens are no part of the text
                continue
            best = int(scores[place].argmax())
            token = {
                "token": text[start:end],
                "label": labels[best],
                "score": float(scores[place, best]),
                "start": start,
                "end": end,
                "logits": row[place].tolist(),
            }
            found.append(token)
            lines.append(f"{label(number, texts)}{token['token']} {token['label']} {token['score']:.4f}")
        results.append({"prompt": text, "tokens": found})
    return texts_outcome(runner, texts, lines, {"labels": list(labels), "results": results}, seconds)
