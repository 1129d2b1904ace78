"""Speech models with encoder and decoder."""

from __future__ import annotations

from qeff_framework.tasks.spec import TaskSpec

SPEC = TaskSpec(
    name="speech-seq2seq",
    models="speech models with encoder and decoder",
    model_path="qeff_framework.auto.speech_seq2seq:QEFFAutoModelForSpeechSeq2Seq",
    transformers_mapping="SPEECH_SEQ_2_SEQ",
    is_encoder_decoder=True,
    model_options=("processor",),
    graph_path="qeff_framework.export.speech_seq2seq:speech_seq2seq_graph",
    runner_path="qeff_framework.runtime.speech:CompiledSpeechSeq2Seq",
    results_path="qeff_framework.cli.results.sound:write_down",
    reads_audio=True,
    takes_prompts=False,
    coverage_path="qeff_framework.coverage.task_coverage:SPEECH_SEQ2SEQ",
)
