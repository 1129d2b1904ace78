"""Transformers models on AI accelerators, through backends that are installed as packages and chosen by name.

The public names are loaded on first use, so that ``import qeff_framework`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qeff_framework.artifacts import create_and_dump_qconfigs
    from qeff_framework.auto import (
        QEFFAutoModel,
        QEFFAutoModelForAudioClassification,
        QEFFAutoModelForCausalLM,
        QEFFAutoModelForCTC,
        QEFFAutoModelForFeatureExtraction,
        QEFFAutoModelForImageClassification,
        QEFFAutoModelForImageTextToText,
        QEFFAutoModelForQuestionAnswering,
        QEFFAutoModelForSeq2SeqLM,
        QEFFAutoModelForSequenceClassification,
        QEFFAutoModelForSpeechSeq2Seq,
        QEFFAutoModelForTokenClassification,
        QEFFAutoModelForZeroShotImageClassification,
        QEFFAutoPeftModelForCausalLM,
        QEFFDiffusionPipeline,
        QEFFFluxPipeline,
        QEFFWanPipeline,
    )
    from qeff_framework.errors import QEFFError
    from qeff_framework.model import QEFFBaseModel
    from qeff_framework.registry import get_backend, list_backends
    from qeff_framework.runtime import load_compiled

_HOMES = {
    "QEFFAutoModel": "auto",
    "QEFFAutoModelForAudioClassification": "auto",
    "QEFFAutoModelForCTC": "auto",
    "QEFFAutoModelForCausalLM": "auto",
    "QEFFAutoModelForFeatureExtraction": "auto",
    "QEFFAutoModelForImageClassification": "auto",
    "QEFFAutoModelForImageTextToText": "auto",
    "QEFFAutoModelForQuestionAnswering": "auto",
    "QEFFAutoModelForSeq2SeqLM": "auto",
    "QEFFAutoModelForSequenceClassification": "auto",
    "QEFFAutoModelForSpeechSeq2Seq": "auto",
    "QEFFAutoModelForTokenClassification": "auto",
    "QEFFAutoModelForZeroShotImageClassification": "auto",
    "QEFFAutoPeftModelForCausalLM": "auto",
    "QEFFBaseModel": "model",
    "QEFFDiffusionPipeline": "auto",
    "QEFFError": "errors",
    "QEFFFluxPipeline": "auto",
    "QEFFWanPipeline": "auto",
    "create_and_dump_qconfigs": "artifacts",
    "get_backend": "registry",
    "list_backends": "registry",
    "load_compiled": "runtime",
}

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
    "QEFFBaseModel",
    "QEFFDiffusionPipeline",
    "QEFFError",
    "QEFFFluxPipeline",
    "QEFFWanPipeline",
    "create_and_dump_qconfigs",
    "get_backend",
    "list_backends",
    "load_compiled",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
