"""The logits of each row's last tokens, and no others."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from qeff_framework.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def last_logits(
    model: PreTrainedModel,
    position_ids: torch.Tensor,
    run: Callable[[], torch.Tensor],
    kept_logits: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits ``[B, K, V]`` of each row's last tokens that are not padding, K the length of `kept_logits`.

    `run` runs the model and returns the logits that it computes. Without `kept_logits` K is 1. A row with fewer tokens than K
    repeats its first one in front.
    """
    last = position_ids.argmax(dim=1).unsqueeze(1)
    if kept_logits is not None:
        count = kept_logits.shape[0]
        last = (last + (torch.arange(count) - (count - 1))).clamp(min=0)
    gather = _GatherBeforeHead(last)
    head: torch.nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    hook = head.register_forward_pre_hook(gather) if head is not None else None
    try:
        logits = run()
    finally:
        if hook is not None:
            hook.remove()
    return logits if gather.applied else _rows(logits, last)


class _GatherBeforeHead:
    """Pre-hook of the LM head, the largest product of a small model: lets one row per sequence through."""

    def __init__(self, last: torch.Tensor) -> None:
        self.last = last
        self.applied = False

    def __call__(self, head: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        del head
        hidden = arguments[0] if arguments else None
        if not isinstance(hidden, torch.Tensor) or hidden.dim() != 3:
            return None
        self.applied = True
        return (_rows(hidden, self.last), *arguments[1:])


def _rows(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows ``index [B, K]`` of ``tokens [B, S, N]`` for each b: ``[B, K, N]``."""
    return tokens.gather(1, index.unsqueeze(2).expand(-1, -1, tokens.shape[2]))


def cache_argument(model: PreTrainedModel) -> str:
    """Transformers 5.24 renamed `past_key_values` to `cache`, and the `cache_params` of state-space models as well."""
    parameters = inspect.signature(model.forward).parameters
    for name in ("cache", "past_key_values", "cache_params"):
        if name in parameters:
            return name
    if not {"input_ids", "inputs_embeds"} & set(parameters):
        raise UnsupportedModelError(
            f"its forward{inspect.signature(model.forward)} does not name its arguments; one that wraps another keeps the names "
            "with functools.wraps"
        )
    raise UnsupportedModelError("its forward takes no key/value cache")
