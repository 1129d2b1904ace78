"""Classifiers of tokens."""

from __future__ import annotations

from qeff_framework.tasks.spec import TaskSpec

SPEC = TaskSpec(
    name="token-classification",
    models="classifiers of tokens",
    model_path="qeff_framework.auto.token_classification:QEFFAutoModelForTokenClassification",
    transformers_mapping="TOKEN_CLASSIFICATION",
    graph_path="qeff_framework.export.encoder:token_classification_graph",
    runner_path="qeff_framework.runtime:CompiledTokenClassifier",
    results_path="qeff_framework.cli.results.token_classes:classify_tokens",
)
