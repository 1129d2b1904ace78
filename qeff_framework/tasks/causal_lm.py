"""Decoder-only language models."""

from __future__ import annotations

from qeff_framework.tasks.spec import TaskSpec

SPEC = TaskSpec(
    name="causal-lm",
    models="causal language models",
    model_path="qeff_framework.auto.causal_lm:QEFFAutoModelForCausalLM",
    transformers_mapping="CAUSAL_LM",
    graph_path="qeff_framework.export.causal_lm:causal_lm_graph",
    runner_path="qeff_framework.runtime:CompiledCausalLM",
    results_path="qeff_framework.cli.results.text:generate_text",
    generates_text=True,
    coverage_path="qeff_framework.coverage.task_coverage:CAUSAL_LM",
)
