"""The classes that users start from, one file per task. `QEFFAutoModel` picks the task from the checkpoint."""

from __future__ import annotations

from qeff_framework.auto.audio_classification import QEFFAutoModelForAudioClassification
from qeff_framework.auto.causal_lm import QEFFAutoModelForCausalLM
from qeff_framework.auto.ctc import QEFFAutoModelForCTC
from qeff_framework.auto.diffusion_pipeline import QEFFDiffusionPipeline, QEFFFluxPipeline, QEFFWanPipeline
from qeff_framework.auto.feature_extraction import QEFFAutoModelForFeatureExtraction
from qeff_framework.auto.image_classification import QEFFAutoModelForImageClassification
from qeff_framework.auto.image_text_to_text import QEFFAutoModelForImageTextToText
from qeff_framework.auto.model import QEFFAutoModel
from qeff_framework.auto.peft import QEFFAutoPeftModelForCausalLM
from qeff_framework.auto.question_answering import QEFFAutoModelForQuestionAnswering
from qeff_framework.auto.seq2seq_lm import QEFFAutoModelForSeq2SeqLM
from qeff_framework.auto.sequence_classification import QEFFAutoModelForSequenceClassification
from qeff_framework.auto.speech_seq2seq import QEFFAutoModelForSpeechSeq2Seq
from qeff_framework.auto.token_classification import QEFFAutoModelForTokenClassification
from qeff_framework.auto.zero_shot_image_classification import QEFFAutoModelForZeroShotImageClassification

__all__ = [
    "QEFFAutoModel",
    "QEFFAutoModelForAudioClassification",
    "QEFFAutoModelForCTC",
    "QEFFAutoModelForCausalLM",
    "QEFFAutoModelForFeatureExtraction",
    "QEFFAutoModelForImageClassification",
    "QEFFAutoModelForImageTextToText",
    "QEFFAutoModelForQuestionAnswering",
    "QEFFAutoModelForSeq2SeqLM",
    "QEFFAutoModelForSequenceClassification",
    "QEFFAutoModelForSpeechSeq2Seq",
    "QEFFAutoModelForTokenClassification",
    "QEFFAutoModelForZeroShotImageClassification",
    "QEFFAutoPeftModelForCausalLM",
    "QEFFDiffusionPipeline",
    "QEFFFluxPipeline",
    "QEFFWanPipeline",
]
