"""Text encoders: models without a head, whose output are embeddings."""

from __future__ import annotations

from qeff_framework.tasks.spec import TaskSpec

SPEC = TaskSpec(
    name="encoder",
    models="text encoders",
    model_path="qeff_framework.auto.feature_extraction:QEFFAutoModelForFeatureExtraction",
    transformers_mapping=None,
    model_options=("pooling",),
    graph_path="qeff_framework.export.encoder:encoder_graph",
    runner_path="qeff_framework.runtime:CompiledEncoder",
    results_path="qeff_framework.cli.results.embeddings:embed",
    coverage_path="qeff_framework.coverage.task_coverage:ENCODER",
)
