"""Tiny random models of real architectures, for tests that compare numbers.

The weights are drawn wide enough that the model's choice of the next token depends on the whole prompt; with the
library's default of 0.02 a tiny model repeats one token whatever it reads, and a broken cache would go unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

VOCAB_SIZE = 128

_COMMON: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "gemma2": {
        "sliding_window": 5,
        "query_pre_attn_scalar": 8,
        "num_hidden_layers": 3,
        "attn_logit_softcapping": 5.0,
        "tie_word_embeddings": False,
    },
    "gemma3_text": {
        "initializer_range": 0.1,
        "sliding_window": 5,
        "query_pre_attn_scalar": 8,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "tie_word_embeddings": False,
    },
    "gpt2": {"n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "gpt_oss": {
        "sliding_window": 5,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "mistral": {"sliding_window": 5},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phi": {"partial_rotary_factor": 0.5},
}


def tiny_causal_lm(model_type: str, seed: int = 0, **changes: Any) -> tuple[PreTrainedModel, PreTrainedConfig]:
    """A random causal LM of the given ``model_type`` with float32 weights, in eval mode."""
    config = AutoConfig.for_model(model_type, **{**_COMMON, **_SPECIAL.get(model_type, {}), **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    _spread(model)
    return model, config


def _spread(model: PreTrainedModel) -> None:
    """Gives the parameters that the library initialises with constants (biases, norms, sinks) values of their own."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)


_ENCODER: Mapping[str, Any] = {
    **_COMMON,
    "dim": 32,
    "hidden_dim": 48,
    "n_layers": 2,
    "n_heads": 4,
    "local_attention": 6,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "languages": ["en_XX", "de_DE"],
    "default_language": "de_DE",
}


def tiny_encoder(model_type: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model without a head, in eval mode: encoders, and decoders that serve as embedding models."""
    torch.manual_seed(seed)
    model = AutoModel.from_config(
        AutoConfig.for_model(model_type, **{**_ENCODER, **changes}), attn_implementation="eager"
    )
    _spread(model)
    return model.eval()


def tiny_classifier(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random sequence classifier with three labels, in eval mode."""
    return _with_head(AutoModelForSequenceClassification, model_type, seed, num_labels=3)


def tiny_token_classifier(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random token classifier with three labels, in eval mode."""
    return _with_head(AutoModelForTokenClassification, model_type, seed, num_labels=3)


def tiny_question_answering(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random model for question answering, in eval mode."""
    return _with_head(AutoModelForQuestionAnswering, model_type, seed)


def _with_head(auto_class: Any, model_type: str, seed: int, **fields: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, **_ENCODER, **fields)
    torch.manual_seed(seed)
    model: PreTrainedModel = auto_class.from_config(config, attn_implementation="eager")
    _spread(model)
    return model.eval()


_SEQ2SEQ: Mapping[str, Any] = {
    **{name: _COMMON[name] for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")},
    "d_model": 32,
    "d_ff": 48,
    "d_kv": 8,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 3,
    "forced_eos_token_id": None,
}


def tiny_seq2seq_lm(model_type: str, seed: int = 0, **fields: Any) -> PreTrainedModel:
    """A random encoder-decoder language model with float32 weights, in eval mode.

    Its generation config names no end of the text. What the decoder reads of the source is made small beside its own tokens and
    their positions; otherwise it repeats one token for each source.
    """
    config = AutoConfig.for_model(model_type, **{**_SEQ2SEQ, **fields})
    torch.manual_seed(seed)
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
            if "encoder_attn.out" in name or "EncDecAttention.o" in name:
                parameter.mul_(0.6)
            if "embed_pos" in name:
                parameter.mul_(3.0)
    _spread(model)
    model.generation_config.eos_token_id = None
    return model
