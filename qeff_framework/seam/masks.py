"""The mask interface: a model's own mask function, recognised where it has a closed form.

Transformers describes every mask by an index-wise function ``(batch, head, query, key) -> bool``. The probe run evaluates it on
concrete indices and compares it with the closed forms of the dialect op ``CausalMask``; a lowering can then tell a sliding
window from a plain causal mask. A function that fits none of them is traced with the positions as its indices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from qeff_framework.dialect import ops
from qeff_framework.errors import ExportError, UnsupportedModelError
from qeff_framework.seam.mask_plan import ClosedForm, MaskFunction, MaskPlan
from qeff_framework.seam.scope import Memory, Step, current_scope

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: Configuration fields by which Transformers makes attention causal or not, with what makes it look ahead.
_LOOKS_AHEAD: dict[str, tuple[Any, ...]] = {
    "is_decoder": (False,),
    "is_causal": (False,),
    "use_bidirectional_attention": (True, "all"),
}


def not_causal(config: PreTrainedConfig | None) -> UnsupportedModelError:
    """The refusal of a model that keeps keys and values of tokens that look ahead."""
    set_to = {
        name: getattr(config, name) for name, ahead in _LOOKS_AHEAD.items() if getattr(config, name, None) in ahead
    }
    told = f" ({', '.join(f'{name}={value!r}' for name, value in set_to.items())} in its config)" if set_to else ""
    return UnsupportedModelError(
        f"its attention is not causal{told}, so the keys of a token depend on the tokens behind it and cannot be kept. If it "
        "was trained to generate text, load it with a config that makes its attention causal (is_decoder=True for BERT "
        "and its like); to embed text, use QEFFAutoModelForFeatureExtraction (--task encoder)"
    )


@contextmanager
def refusing_lookahead(masks: MaskPlan, config: PreTrainedConfig) -> Iterator[None]:
    """Around the probe run of a decoder: refuses it if every mask that it asks for lets all tokens see each other.

    A causal decoder may ask for such a mask as well, for the cross-attention that it does without. Where the attention code is
    the model's own, its failure to apply the mask to the cache would hide the reason.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 - raised again below
        failure = error
    if masks.forms and all(form == ClosedForm(causal=False) for form in masks.forms):
        raise not_causal(config) from failure
    if failure is not None:
        raise failure


def mask_interface(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction | None = None,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    config: PreTrainedConfig | None = None,
    **_unused: Any,
) -> torch.Tensor:
    """Implements the mask interface of Transformers (`ALL_MASK_ATTENTION_FUNCTIONS`); returns a bool ``[B|1, 1, S, C]``."""
    del q_offset
    if mask_function is None:
        raise ExportError("Transformers asks for an attention mask without a mask function")
    scope = current_scope()
    form = scope.masks.form_of_call(mask_function, config, local_size)
    if scope.step is not None and kv_length == scope.step.kv_positions.shape[0]:
        mask = _positional_mask(mask_function, form, scope.step)
        if scope.masks.watched is not None:
            scope.masks.watched.append(mask)
        elif scope.masks.recording and _looks_ahead(mask, scope.step):
            raise not_causal(config)
        return mask
    if scope.memory is not None:
        scope.masks.memory_calls += scope.masks.recording
        return _memory_mask(form, scope.memory, q_length)
    query = torch.arange(q_length)
    key = torch.arange(kv_length) + kv_offset
    mask = _token_mask(mask_function, form, batch_size, query, key)
    if attention_mask is not None:
        # A model's own mask may count a frame that reaches into padding.
        is_real = None if scope.real_frames is None else scope.real_frames(kv_length)
        attention_mask = attention_mask if is_real is None else is_real
        mask = mask & attention_mask.to(torch.bool)[:, None, None, :]
    return mask


def _positional_mask(function: MaskFunction, form: ClosedForm | None, step: Step) -> torch.Tensor:
    """The mask of a model with a cache: the query indices are positions, the key indices are slots."""
    if form is not None and form.causal:
        return ops.causal_mask(step.position_ids, step.kv_positions, window=form.window, chunk=form.chunk)
    batch, seq = step.position_ids.shape
    rows = torch.arange(batch)[:, None, None, None]
    heads = torch.arange(1)[None, :, None, None]
    query = step.position_ids.clamp(min=0)[:, None, :, None]
    key = step.kv_positions[None, None, None, :]
    # A mask that looks ahead must not look at slots that hold nothing so far.
    written = key <= query.amax(dim=2, keepdim=True)
    return (function(rows, heads, query, key) & written).expand(batch, -1, seq, key.shape[3])


def _looks_ahead(mask: torch.Tensor, step: Step) -> bool:
    """Whether a token sees one behind it; `False` where that depends on tensors without data."""
    ahead = mask & (step.kv_positions[None, None, None, :] > step.position_ids[:, None, :, None])
    return not isinstance(ahead, FakeTensor) and bool(ahead.any())


def _memory_mask(form: ClosedForm | None, memory: Memory, tokens: int) -> torch.Tensor:
    """The mask of cross-attention: every token sees all of the encoder's output, and nothing behind its end."""
    if form != ClosedForm(causal=False):
        raise UnsupportedModelError("its cross-attention masks more than the padding of the encoder's input")
    last = (memory.lengths - 1).expand(-1, tokens)
    return ops.causal_mask(last, memory.kv_positions)


def _token_mask(
    function: MaskFunction, form: ClosedForm | None, batch: int, query: torch.Tensor, key: torch.Tensor
) -> torch.Tensor:
    """The mask of a model without a cache, over token indices."""
    if form is not None and form.causal:
        return ops.causal_mask(query[None], key, window=form.window, chunk=form.chunk)
    if form is not None:
        return torch.ones((1, 1, query.shape[0], key.shape[0]), dtype=torch.bool)
    rows = torch.arange(batch)[:, None, None, None]
    heads = torch.arange(1)[None, :, None, None]
    return function(rows, heads, query[None, None, :, None], key[None, None, None, :])
