"""QEfficient's interface on top of qeff_framework, for scripts that were written for it.

``docs/migrating.md`` of qeff_framework says what becomes of each method and keyword.
"""

from __future__ import annotations

from QEfficient._compat.models import (
    QEffAutoLoraModelForCausalLM,
    QEFFAutoModel,
    QEFFAutoModelForCausalLM,
    QEFFAutoModelForCTC,
    QEFFAutoModelForImageTextToText,
    QEFFAutoModelForSequenceClassification,
    QEFFAutoModelForSpeechSeq2Seq,
    QEffAutoPeftModelForCausalLM,
    QEFFCommonLoader,
    QEffFluxPipeline,
    QEffWanImageToVideoPipeline,
    QEffWanPipeline,
)
from QEfficient._compat.notices import NotSupportedError

# Importing the package `QEfficient.compile` sets the name; the function comes after it and stays.
from QEfficient.compile.compile_helper import compile
from QEfficient.exporter.export_hf_to_cloud_ai_100 import qualcomm_efficient_converter
from QEfficient.generation.text_generation_inference import cloud_ai_100_exec_kv
from QEfficient.transformers.transform import transform

export = qualcomm_efficient_converter
#: Under the spelling of the other classes too.
QEFFAutoPeftModelForCausalLM = QEffAutoPeftModelForCausalLM
QEFFAutoLoraModelForCausalLM = QEffAutoLoraModelForCausalLM
QEFFFluxPipeline = QEffFluxPipeline
QEFFWanPipeline = QEffWanPipeline

__version__ = "0.1.0"


def check_qaic_sdk() -> bool:
    """Whether a part of the Cloud AI SDK works here."""
    from QEfficient._compat.backends import NATIVE, works

    return works(NATIVE)


__all__ = [
    "NotSupportedError",
    "QEFFAutoLoraModelForCausalLM",
    "QEFFAutoModel",
    "QEFFAutoModelForCTC",
    "QEFFAutoModelForCausalLM",
    "QEFFAutoModelForImageTextToText",
    "QEFFAutoModelForSequenceClassification",
    "QEFFAutoModelForSpeechSeq2Seq",
    "QEFFAutoPeftModelForCausalLM",
    "QEFFCommonLoader",
    "QEFFFluxPipeline",
    "QEFFWanPipeline",
    "QEffAutoLoraModelForCausalLM",
    "QEffAutoPeftModelForCausalLM",
    "QEffFluxPipeline",
    "QEffWanImageToVideoPipeline",
    "QEffWanPipeline",
    "check_qaic_sdk",
    "cloud_ai_100_exec_kv",
    "compile",
    "export",
    "qualcomm_efficient_converter",
    "transform",
]
