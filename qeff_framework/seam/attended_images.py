"""Images that a decoder attends to in layers of its own, between those that read its text (Mllama).

The model's forward gives its language model ``cross_attention_states``: what it has made of the images, ``[tiles, P, H]`` for the
parts (tiles) of one image. The keys and values that a layer makes of them are states of cross-attention, written by the step that
reads an image. Which tiles a token sees, its processor tells.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import BaseModelOutput

from qeff_framework.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STATES, _MASK, _ROWS = "cross_attention_states", "cross_attention_mask", "full_text_row_masked_out_mask"
#: Field of an encoder's output: image tokens of a tile.
TILE_TOKENS = "tile_tokens"
#: Values of ``cross_attention_mask [B, S, G]``, beside 0: a token sees a tile; or it stands in front of the images of its prompt,
#: where Transformers lets its attention look at all of them, and drops what the layer's second half makes of it.
SEEN, IN_FRONT = 1, 2


def attends_beside_text(model_class: Any) -> bool:
    """Whether a decoder attends to images in layers of its own."""
    return _STATES in inspect.signature(model_class.forward).parameters


def attending_layers(model: PreTrainedModel) -> frozenset[int]:
    """The numbers of these layers; none in any other model."""
    if not attends_beside_text(type(model)):
        return frozenset()
    return frozenset(model.config.get_text_config().cross_attention_layers)


def attended_inputs(model_class: Any) -> tuple[str, ...]:
    """Names of the tensors that the image encoder of a class takes."""
    module = sys.modules[model_class.__module__]
    encoder = getattr(module, re.sub(r"For[A-Z]\w*$", "VisionModel", model_class.__name__), None)
    if encoder is None:
        raise UnsupportedModelError("its image encoder has no class of its own")
    return tuple(name for name in inspect.signature(encoder.forward).parameters if name not in ("self", "kwargs"))


class _ReachedError(Exception):
    """The language model is called."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__("the language model is called")
        self.states = states


def attended_encoder(model: PreTrainedModel) -> Callable[..., BaseModelOutput]:
    """What the model makes of an image before it calls its language model."""
    base: Any = model.base_model

    def stop(**kwargs: Any) -> None:
        raise _ReachedError(kwargs[_STATES])

    def encode(*, return_dict: bool = True, **inputs: Any) -> BaseModelOutput:
        del return_dict
        # The tracer keeps account of calls of modules, which an exception must not leave. An attribute hides a submodule.
        base.__dict__["language_model"] = stop
        try:
            base.forward(input_ids=torch.zeros((1, 1), dtype=torch.int64), **inputs)
        except _ReachedError as reached:
            states = reached.states
        finally:
            del base.__dict__["language_model"]
        outputs = BaseModelOutput(last_hidden_state=states.reshape(1, -1, states.shape[-1]))
        object.__setattr__(outputs, TILE_TOKENS, int(states.shape[-2]))
        return outputs

    return encode


@contextmanager
def seeing_tiles(model: PreTrainedModel, kinds: torch.Tensor, slots: torch.Tensor, tile_tokens: int) -> Iterator[None]:
    """Gives the language model the masks of a step.

    Args:
        model: the whole model.
        kinds: ``[B, S, G]``: 0, `SEEN` or `IN_FRONT`, for each token and each tile.
        slots: ``[E]``: 0 .. E - 1, the slots of the states; those of a tile lie side by side.
        tile_tokens: how many a tile has.
    """
    is_seen = kinds.index_select(2, slots // tile_tokens) > 0
    masks = {
        _MASK: is_seen.unsqueeze(1),
        _ROWS: (kinds == SEEN).any(dim=-1).to(torch.float32)[:, None, :, None],
    }

    def add(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, **masks}

    base: Any = model.base_model
    hook = base.language_model.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
