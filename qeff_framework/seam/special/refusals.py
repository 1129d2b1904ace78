"""Models that have no form as a graph, with the reason: told before anything is traced.

What the causal LMs among them have in common, that they do not fall into steps over retained states, shows only in what they
compute. In most of them the keys of a token depend on the tokens behind it: a key that has been kept is wrong as soon as the text
goes on, and a prompt that is read in pieces gives other tokens than one that is read whole. The encoders have a graph for each
length of the text and none for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from transformers import PreTrainedModel

from qeff_framework.errors import UnsupportedModelError

#: Causal LMs by model type.
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
_IN_BLOCKS: Final = (
    "its encoder cuts the source into blocks, and its code decides by the length of the source in Python how it pads them and "
    "how many there are, so the graph of one length is wrong for every other"
)
#: Encoders by model type, whatever their head.
_ENCODER_REASONS: Final[Mapping[str, str]] = {
    "canine": (
        "its code cuts the characters into chunks in a Python loop over the length of the text, and repeats what it has pooled "
        "as often as that length says, so the graph of one length is wrong for every other"
    ),
    "funnel": (
        "its code keeps the places of the tokens in a Python list, which it halves from block to block, and takes the distances "
        "from there, so the graph of one length is wrong for every other"
    ),
    "longt5": _IN_BLOCKS,
    "pegasus_x": _IN_BLOCKS,
    "reformer": (
        "its code chooses between whole and chunked attention, and the number of hash buckets, by the length of the text in "
        "Python, so the graph of one length is wrong for every other"
    ),
}


def refuse_special_encoder(module: PreTrainedModel) -> None:
    """Raises `UnsupportedModelError` if `module`, whose encoder is to be exported, is such a model."""
    if getattr(module.config, "attention_type", None) == "block_sparse":  # BigBird and what is made of it
        raise UnsupportedModelError(
            "its attention skips blocks of keys above (5 + 2 * num_random_blocks) * block_size tokens and none below, so the "
            "graph of one length is wrong for others; load it with attention_type='original_full', which computes the same up to "
            "that length and goes on with whole attention above"
        )
    reason = _ENCODER_REASONS.get(module.config.model_type)
    if reason is not None:
        raise UnsupportedModelError(f"{reason}; choose a model of another family, or run it with Transformers itself")


def refuse_special(module: PreTrainedModel) -> None:
    """Raises `UnsupportedModelError` if `module`, which is to be exported as a causal LM, is such a model."""
    config = module.config
    reason = _REASONS.get(config.model_type)
    if reason is not None and _REFUSED.get(config.model_type, lambda _: True)(config):
        raise UnsupportedModelError(f"{reason}; run it with Transformers itself")
