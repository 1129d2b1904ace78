"""Answers that stand in a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.results.common import label, needed_tokenizer
from qeff_framework.cli.results.single_pass import texts_outcome

if TYPE_CHECKING:
    from qeff_framework.cli.results.request import ResultsRequest
    from qeff_framework.runtime import CompiledQuestionAnswering


def answer_questions(runner: CompiledQuestionAnswering, request: ResultsRequest) -> CommandResult:
    """The part of the context that answers each question."""
    import dataclasses
    import time

    from qeff_framework.progress import report

    questions, context = request.texts, request.context or ""
    needed_tokenizer(runner)
    report(f"answering {len(questions)} questions")
    start = time.perf_counter()
    answers = [runner.answer(question, context) for question in questions]
    seconds = time.perf_counter() - start
    request.progress.clear()
    lines = [f"{label(number, questions)}{answer.text} {answer.score:.4f}" for number, answer in enumerate(answers)]
    results = [
        {"prompt": question, **dataclasses.asdict(answer)} for question, answer in zip(questions, answers, strict=True)
    ]
    return texts_outcome(runner, questions, lines, {"results": results}, seconds)
