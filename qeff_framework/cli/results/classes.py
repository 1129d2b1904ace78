"""Classes of texts, and what the results of everything that has scores look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.results.common import label
from qeff_framework.cli.results.single_pass import run_on_texts, texts_outcome

if TYPE_CHECKING:
    from qeff_framework.cli.results.request import ResultsRequest
    from qeff_framework.contracts import Array
    from qeff_framework.runtime import CompiledClassifier


def classify(runner: CompiledClassifier, request: ResultsRequest) -> CommandResult:
    """The best label of each text; all scores and logits for ``--json``."""
    from qeff_framework.single_pass import class_scores

    texts = request.texts
    logits, seconds = run_on_texts(runner, request, doing="classifying")
    labels = runner.labels
    results, lines = scored("prompt", texts, labels, class_scores(logits, runner.problem_type), logits)
    return texts_outcome(runner, texts, lines, {"labels": list(labels), "results": results}, seconds)


def scored(
    kind: str, items: Sequence[str], labels: Sequence[str], scores: Array, logits: Array, *, answer: str = "label"
) -> tuple[list[dict[str, Any]], list[str]]:
    """For each item its best label, all scores and logits, and a line with the best one.

    Args:
        kind: what an item is called in the results: ``"prompt"``, ``"file"``.
        items: as many as there are rows of `scores`.
        labels: as many as there are columns.
        scores: probabilities.
        logits: what they are made of.
        answer: what a label is called in the results.
    """
    best = [int(row.argmax()) for row in scores]
    results = [
        {
            kind: item,
            answer: labels[index],
            "scores": dict(zip(labels, row.tolist(), strict=True)),
            "logits": values.tolist(),
        }
        for item, index, row, values in zip(items, best, scores, logits, strict=True)
    ]
    lines = [f"{label(number, items)}{labels[index]} {scores[number, index]:.4f}" for number, index in enumerate(best)]
    return results, lines
