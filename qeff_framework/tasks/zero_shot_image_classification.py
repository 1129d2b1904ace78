"""Models that embed images and texts in one space."""

from __future__ import annotations

from qeff_framework.tasks.spec import TaskSpec

SPEC = TaskSpec(
    name="zero-shot-image-classification",
    models="models that embed images and texts in one space",
    model_path="qeff_framework.auto.zero_shot_image_classification:QEFFAutoModelForZeroShotImageClassification",
    transformers_mapping="ZERO_SHOT_IMAGE_CLASSIFICATION",
    model_options=("processor",),
    graph_path="qeff_framework.export.image_and_text:image_and_text_graph",
    runner_path="qeff_framework.runtime.image_classifiers:CompiledZeroShotImageClassifier",
    results_path="qeff_framework.cli.results.images:match_texts",
    reads_images=True,
    coverage_path="qeff_framework.coverage.task_coverage:ZERO_SHOT_IMAGE_CLASSIFICATION",
)
