"""Encoder-decoder language models."""

from __future__ import annotations

from qeff_framework.tasks.spec import TaskSpec

SPEC = TaskSpec(
    name="seq2seq-lm",
    models="encoder-decoder language models",
    model_path="qeff_framework.auto.seq2seq_lm:QEFFAutoModelForSeq2SeqLM",
    transformers_mapping="SEQ_TO_SEQ_CAUSAL_LM",
    is_encoder_decoder=True,
    graph_path="qeff_framework.export.seq2seq_lm:seq2seq_lm_graph",
    runner_path="qeff_framework.runtime:CompiledSeq2SeqLM",
    results_path="qeff_framework.cli.results.text:generate_text",
    generates_text=True,
    coverage_path="qeff_framework.coverage.task_coverage:SEQ2SEQ_LM",
)
