"""Adapts a weightless copy of a model: its attention, masks, norms and experts emit dialect ops from then on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qeff_framework.seam.attention import attention_interface
from qeff_framework.seam.experts import replace_experts
from qeff_framework.seam.isolation import scoped_mask_interfaces
from qeff_framework.seam.mask_plan import MaskPlan
from qeff_framework.seam.masks import mask_interface
from qeff_framework.seam.norms import RMSNormMatch, replace_rms_norms
from qeff_framework.seam.rotary import RotaryMatch, replace_rotary
from qeff_framework.seam.scope import current_scope
from qeff_framework.seam.special import adapt_special
from qeff_framework.thread_quiet import muted_loggers

#: Name under which our functions stand in the registries of Transformers.
IMPLEMENTATION = "qeff"


def adapt(model: PreTrainedModel, norms: tuple[RMSNormMatch, ...], rotary: tuple[RotaryMatch, ...] = ()) -> None:
    """Routes `model`, a weightless copy, through the seam. The copy is changed for good."""
    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, attention_interface)
    ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _planned_mask_interface)
    # The library has advice for people who choose an attention implementation themselves.
    with muted_loggers("transformers"):
        model.set_attn_implementation(IMPLEMENTATION)
        replace_experts(model)
    _settle_forms(model)
    replace_rms_norms(model, norms)
    replace_rotary(model, rotary)
    adapt_special(model)


def _settle_forms(model: PreTrainedModel) -> None:
    """Settles what changes the form of a forward and none of its numbers: its results have names, and it computes in one piece.

    Old configs ask for tuples (``return_dict``); pieces of a feed-forward (``chunk_size_feed_forward``) save memory in training,
    and their number depends on the length of the text.
    """
    for part in model.modules():
        if isinstance(config := getattr(part, "config", None), PreTrainedConfig):
            config.return_dict = True
        if hasattr(part, "chunk_size_feed_forward"):
            part.chunk_size_feed_forward = 0  # type: ignore[assignment]


def fall_back_to_eager(model: PreTrainedModel) -> bool:
    """Gives additive masks to a model whose attention code bypasses the attention interface; returns whether anything changed.

    Such code adds the mask to the scores: the interface's boolean masks would be silently wrong.
    """
    if model.config._attn_implementation != IMPLEMENTATION:  # noqa: SLF001 - the library has no public name for it
        return False
    with muted_loggers("transformers"):
        model.set_attn_implementation("eager")
    return True


def bypasses_attention_interface(encoder: PreTrainedModel, masks: MaskPlan) -> bool:
    """Whether an encoder asked for the interface's boolean masks and passed them to its own attention code."""
    on_interface = encoder.config._attn_implementation == IMPLEMENTATION  # noqa: SLF001 - as above
    return bool(on_interface and masks.forms and masks.attention_calls == 0 and not masks.additive)


@contextmanager
def positional_masks() -> Iterator[None]:
    """Makes the masks of attention code that bypasses the attention interface depend on positions as well.

    Such code runs with the implementation ``eager`` or ``sdpa``, whose stock masks count tokens from the start of the cache.
    """
    with scoped_mask_interfaces({"eager": _additive_mask_interface, "sdpa": mask_interface}):
        yield


def _planned_mask_interface(*args: Any, **kwargs: Any) -> torch.Tensor:
    interface = _additive_mask_interface if current_scope().masks.additive else mask_interface
    return interface(*args, **kwargs)


def _additive_mask_interface(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> torch.Tensor:
    mask = mask_interface(*args, **kwargs)
    return torch.where(mask, torch.zeros((), dtype=dtype), torch.finfo(dtype).min)
