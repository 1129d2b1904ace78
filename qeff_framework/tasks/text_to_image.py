"""Pipelines of diffusers: pictures and videos from texts."""

from __future__ import annotations

from qeff_framework.tasks.spec import TaskSpec

SPEC = TaskSpec(
    name="text-to-image",
    models="pipelines of diffusers",
    model_path="qeff_framework.auto.diffusion_pipeline:QEFFDiffusionPipeline",
    transformers_mapping=None,
    graph_path="qeff_framework.export.pipeline:pipeline_graph",
    runner_path="qeff_framework.runtime.pipeline:CompiledDiffusionPipeline",
    results_path="qeff_framework.cli.results.pictures:generate_pictures",
    makes_pictures=True,
    coverage_path="qeff_framework.coverage.task_coverage:TEXT_TO_IMAGE",
)
