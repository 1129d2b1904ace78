"""Classes of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.results.common import label
from qeff_framework.cli.results.single_pass import run_on_texts, texts_outcome

if TYPE_CHECKING:
    from qeff_framework.cli.results.request import ResultsRequest
    from qeff_framework.runtime import CompiledClassifier


def classify(runner: CompiledClassifier, request: ResultsRequest) -> CommandResult:
    """The best label of each text; all scores and logits for ``--json``."""
    from qeff_framework.single_pass import class_scores

    texts = request.texts
    logits, seconds = run_on_texts(runner, request, doing="classifying")
    labels, scores = runner.labels, class_scores(logits, runner.problem_type)
    best = [int(row.argmax()) for row in scores]
    results = [
        {
            "prompt": text,
            "label": labels[index],
            "scores": dict(zip(labels, row.tolist(), strict=True)),
            "logits": values.tolist(),
        }
        for text, index, row, values in zip(texts, best, scores, logits, strict=True)
    ]
    lines = [f"{label(number, texts)}{labels[index]} {scores[number, index]:.4f}" for number, index in enumerate(best)]
    return texts_outcome(runner, texts, lines, {"labels": list(labels), "results": results}, seconds)
