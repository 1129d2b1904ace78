"""The classes of models, as wrappers around those of qeff_framework."""

from __future__ import annotations

from QEfficient._compat.models.adapters import QEffAutoLoraModelForCausalLM, QEffAutoPeftModelForCausalLM
from QEfficient._compat.models.base import QEFFBaseModel
from QEfficient._compat.models.causal_lm import QEFFAutoModelForCausalLM
from QEfficient._compat.models.encoders import QEFFAutoModel, QEFFAutoModelForSequenceClassification
from QEfficient._compat.models.image_text_to_text import QEFFAutoModelForImageTextToText
from QEfficient._compat.models.loader import QEFFCommonLoader
from QEfficient._compat.models.pipelines import QEffFluxPipeline, QEffWanImageToVideoPipeline, QEffWanPipeline
from QEfficient._compat.models.speech import QEFFAutoModelForCTC, QEFFAutoModelForSpeechSeq2Seq

__all__ = [
    "QEFFAutoModel",
    "QEFFAutoModelForCTC",
    "QEFFAutoModelForCausalLM",
    "QEFFAutoModelForImageTextToText",
    "QEFFAutoModelForSequenceClassification",
    "QEFFAutoModelForSpeechSeq2Seq",
    "QEFFBaseModel",
    "QEFFCommonLoader",
    "QEffAutoLoraModelForCausalLM",
    "QEffAutoPeftModelForCausalLM",
    "QEffFluxPipeline",
    "QEffWanImageToVideoPipeline",
    "QEffWanPipeline",
]
