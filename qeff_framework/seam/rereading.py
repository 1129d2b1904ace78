"""Whether Transformers reads a text anew when it has grown to some length: what was kept of it would no longer fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def reread_lengths(model: PreTrainedModel, limits: Sequence[int], cache_argument: str) -> tuple[int, ...]:
    """The lengths at which `model` reads its text anew, of those that follow `limits`.

    Its ``prepare_inputs_for_generation`` is asked what it would run next with a text of that length, all but the last token of
    which is in a cache. Phi-3 and its relatives then drop the cache; by default only the last token is run.
    """
    return tuple(limit + 1 for limit in limits if _runs_whole_text(model, limit + 1, cache_argument))


def _runs_whole_text(model: PreTrainedModel, length: int, cache_argument: str) -> bool:
    cache = DynamicCache()
    kept = torch.zeros((1, 1, length - 1, 1))
    cache.update(kept, kept, 0)
    text = torch.zeros((1, length), dtype=torch.int64)
    prepare: Any = model.prepare_inputs_for_generation
    prepared = prepare(
        text, next_sequence_length=1, attention_mask=torch.ones_like(text), use_cache=True, **{cache_argument: cache}
    )
    return bool(prepared["input_ids"].shape[1] == length)
