"""Which model types there are: read from Transformers' own tables of tasks."""

from __future__ import annotations

import dataclasses
from typing import Final

# Text encoders that Transformers lists under no task by which encoders could be told from decoders.
_UNLISTED_ENCODERS: Final = ("embedding_gemma2", "embedding_gemma2_text", "openai_privacy_filter", "bros")


def types_of(task: str) -> list[str]:
    """Every model type of ``"causal-lm"`` or ``"encoder"``."""
    return causal_lm_types() if task == "causal-lm" else encoder_types()


def causal_lm_types() -> list[str]:
    """Every type of Transformers' causal-LM mapping."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def encoder_types() -> list[str]:
    """Every type that has a masked-LM, question-answering or text-encoding model, without decoders and encoder-decoders."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto as tables

    masked = tables.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    others = {**tables.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES, **tables.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES}
    candidates = [*masked, *(name for name in others if name not in masked and not _is_decoder(name))]
    candidates += [name for name in _UNLISTED_ENCODERS if name in CONFIG_MAPPING and name not in candidates]
    return [name for name in candidates if name in tables.MODEL_MAPPING_NAMES and not _is_encoder_decoder(name)]


def _is_decoder(model_type: str) -> bool:
    from transformers.models.auto import modeling_auto as tables

    return model_type in tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _is_encoder_decoder(model_type: str) -> bool:
    from transformers import CONFIG_MAPPING

    fields = dataclasses.fields(CONFIG_MAPPING[model_type])
    return any(field.name == "is_encoder_decoder" and field.default is True for field in fields)
