"""Families whose code goes around the interfaces of Transformers that the seam stands on.

Each is a file of its own with the reason; `refusals` names those that no such file could carry. Nothing else here, or in the
export, knows a family by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Final

from transformers import PreTrainedModel

#: File by model type.
_FAMILIES: Final[Mapping[str, str]] = {
    "big_bird": "big_bird",
    "dbrx": "dbrx",
    "deepseek_v4": "deepseek_v4",
    "falcon": "falcon",
    "fnet": "fnet",
    "gpt_neo": "gpt_neo",
    "jetmoe": "jetmoe",
    "led": "longformer",
    "llama4": "llama4",
    "longcat_flash": "longcat_flash",
    "longformer": "longformer",
    "minimax": "minimax",
    "mllama": "mllama",
    "moonshine": "moonshine",
    "openai-gpt": "openai_gpt",
    "qwen4_exp": "qwen4_exp",
    "qwen4_exp_text": "qwen4_exp",
    "recurrent_gemma": "recurrent_gemma",
    "rwkv": "rwkv",
    "switch_transformers": "switch_transformers",
    "xlm": "xlm",
    "xlstm": "xlstm",
}


def adapt_special(model: PreTrainedModel) -> None:
    """Adapts the weightless copy of a model of such a family to the interfaces; leaves every other model as it is."""
    name = _FAMILIES.get(model.config.model_type)
    if name is not None:
        importlib.import_module(f"{__name__}.{name}").adapt(model)
