"""Models that find the part of a text that answers a question."""

from __future__ import annotations

from qeff_framework.tasks.spec import TaskSpec

SPEC = TaskSpec(
    name="question-answering",
    models="models for question answering",
    model_path="qeff_framework.auto.question_answering:QEFFAutoModelForQuestionAnswering",
    transformers_mapping="QUESTION_ANSWERING",
    graph_path="qeff_framework.export.encoder:question_answering_graph",
    runner_path="qeff_framework.runtime:CompiledQuestionAnswering",
    results_path="qeff_framework.cli.results.answers:answer_questions",
    needs_context=True,
)
