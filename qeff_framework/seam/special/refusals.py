"""Causal LMs that have no form as steps over retained states, with the reason: told before anything is traced.

What they have in common shows only in what they compute. In most of them the keys of a token depend on the tokens behind it: a
key that has been kept is wrong as soon as the text goes on, and a prompt that is read in pieces gives other tokens than one that
is read whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from transformers import PreTrainedModel

from qeff_framework.errors import UnsupportedModelError

#: By model type.
_REASONS: Final[Mapping[str, str]] = {
    "blt": (
        "its cache keeps bytes and not the patches that an entropy model groups them into, so Transformers computes other "
        "logits for the same bytes read in one step or in several"
    ),
    "cpmant": (
        "its attention is not causal: all tokens of a prompt, and the learned prompt in front, see each other, so the keys of a "
        "token depend on the tokens behind it and cannot be kept"
    ),
    "prophetnet": (
        "Transformers adds position biases of other tokens and heads to its predicting stream when it reads several tokens, "
        "so the first token it generates depends on the prompt having been read in one step"
    ),
    "reformer": (
        "its LSH attention sorts all tokens by hash and cuts that order into chunks, so which keys a token sees depends on the "
        "tokens behind it"
    ),
    "xlm": (
        "its attention is not causal (config.causal is false), so the keys of a token depend on the tokens behind it and "
        "cannot be kept"
    ),
    "xlnet": (
        "all tokens of its prompt see each other (config.attn_type is 'bi'), and a generated one the next, so the keys of a "
        "token depend on the tokens behind it and cannot be kept"
    ),
}
#: Which configurations of a type that is only partly refused.
_REFUSED: Final[Mapping[str, Callable[[Any], bool]]] = {
    "reformer": lambda config: "lsh" in config.attn_layers,
    "xlm": lambda config: not config.causal,
    "xlnet": lambda config: config.attn_type == "bi",
}


def refuse_special(module: PreTrainedModel) -> None:
    """Raises `UnsupportedModelError` if `module`, which is to be exported as a causal LM, is such a model."""
    config = module.config
    reason = _REASONS.get(config.model_type)
    if reason is not None and _REFUSED.get(config.model_type, lambda _: True)(config):
        raise UnsupportedModelError(f"{reason}; run it with Transformers itself")
