"""Classifiers of images."""

from __future__ import annotations

from qeff_framework.tasks.spec import TaskSpec

SPEC = TaskSpec(
    name="image-classification",
    models="classifiers of images",
    model_path="qeff_framework.auto.image_classification:QEFFAutoModelForImageClassification",
    transformers_mapping="IMAGE_CLASSIFICATION",
    model_options=("processor",),
    graph_path="qeff_framework.export.signals:signal_classification_graph",
    runner_path="qeff_framework.runtime.image_classifiers:CompiledImageClassifier",
    results_path="qeff_framework.cli.results.images:classify_images",
    reads_images=True,
    takes_prompts=False,
    coverage_path="qeff_framework.coverage.task_coverage:IMAGE_CLASSIFICATION",
)
