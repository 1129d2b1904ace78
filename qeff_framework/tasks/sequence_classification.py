"""Classifiers of texts."""

from __future__ import annotations

from qeff_framework.tasks.spec import TaskSpec

SPEC = TaskSpec(
    name="sequence-classification",
    models="classifiers of texts",
    model_path="qeff_framework.auto.sequence_classification:QEFFAutoModelForSequenceClassification",
    transformers_mapping="SEQUENCE_CLASSIFICATION",
    graph_path="qeff_framework.export.encoder:sequence_classification_graph",
    runner_path="qeff_framework.runtime:CompiledClassifier",
    results_path="qeff_framework.cli.results.classes:classify",
)
