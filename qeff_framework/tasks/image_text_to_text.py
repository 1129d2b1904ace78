"""Vision-language models: text from images and text."""

from __future__ import annotations

from qeff_framework.tasks.spec import TaskSpec

SPEC = TaskSpec(
    name="image-text-to-text",
    models="vision-language models",
    model_path="qeff_framework.auto.image_text_to_text:QEFFAutoModelForImageTextToText",
    transformers_mapping="IMAGE_TEXT_TO_TEXT",
    model_options=("processor", "kv_offload"),
    graph_path="qeff_framework.export.image_text:image_text_graph",
    runner_path="qeff_framework.runtime.image_text:image_text_runner",
    results_path="qeff_framework.cli.results.text:generate_text",
    generates_text=True,
    reads_images=True,
    coverage_path="qeff_framework.coverage.task_coverage:IMAGE_TEXT_TO_TEXT",
)
