"""Models that score the tokens of each frame of speech."""

from __future__ import annotations

from qeff_framework.tasks.spec import TaskSpec

SPEC = TaskSpec(
    name="ctc",
    models="CTC models of speech",
    model_path="qeff_framework.auto.ctc:QEFFAutoModelForCTC",
    transformers_mapping="CTC",
    model_options=("processor",),
    graph_path="qeff_framework.export.signals:ctc_graph",
    runner_path="qeff_framework.runtime.sound:CompiledCTC",
    results_path="qeff_framework.cli.results.sound:transcribe",
    reads_audio=True,
    takes_prompts=False,
    coverage_path="qeff_framework.coverage.task_coverage:CTC",
)
