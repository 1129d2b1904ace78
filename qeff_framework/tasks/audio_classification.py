"""Classifiers of sound."""

from __future__ import annotations

from qeff_framework.tasks.spec import TaskSpec

SPEC = TaskSpec(
    name="audio-classification",
    models="classifiers of sound",
    model_path="qeff_framework.auto.audio_classification:QEFFAutoModelForAudioClassification",
    transformers_mapping="AUDIO_CLASSIFICATION",
    model_options=("processor",),
    graph_path="qeff_framework.export.signals:signal_classification_graph",
    runner_path="qeff_framework.runtime.sound:CompiledAudioClassifier",
    results_path="qeff_framework.cli.results.sound:classify_sound",
    reads_audio=True,
    takes_prompts=False,
    coverage_path="qeff_framework.coverage.task_coverage:AUDIO_CLASSIFICATION",
)
