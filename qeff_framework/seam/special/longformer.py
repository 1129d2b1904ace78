"""Longformer, and the encoder of LED: windows are computed in chunks of a padded text, and global tokens found by their contents.

A token sees its window and the global tokens; a global token sees all, by projections of its own. Here both are one call of the
attention interface over the whole text with a mask, in which padding to a multiple of the window has no use. What is saved by
windows is lost: memory and time grow with the square of ``seq_len``. In LED no token is global, as in Transformers when nobody
passes a ``global_attention_mask``.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.longformer.modeling_longformer import LongformerBaseModelOutput

from qeff_framework.seam.attention import attention_interface


def adapt(model: PreTrainedModel) -> None:
    """Replaces the windows of every attention, and what prepares them."""
    running = _Running()
    module: Any
    for module in model.modules():
        if hasattr(module, "query_global"):
            module.forward = MethodType(_attend_with(running), module)
        elif hasattr(module, "_pad_to_window_size"):
            module._merge_to_attention_mask = running.take_global_tokens  # noqa: SLF001
            module._pad_to_window_size = running.take_real_tokens  # noqa: SLF001
            if hasattr(module, "encoder"):  # The encoder of LED does this by itself.
                module.encoder.forward = MethodType(_encode, module.encoder)
    if hasattr(model, "qa_outputs"):
        model.forward = MethodType(_with_global_question(type(model).forward), model)


class _Running:
    """What the attentions of a running forward need, bool ``[B, S]``."""

    real: torch.Tensor
    is_global: torch.Tensor | None = None
    #: By window to each side: what a token that is not global sees, ``[B, 1, S, S]``.
    _seen: dict[int, torch.Tensor]

    def take_global_tokens(self, attention_mask: torch.Tensor, global_attention_mask: torch.Tensor) -> torch.Tensor:
        self.is_global = (global_attention_mask * attention_mask) != 0
        return attention_mask

    def take_real_tokens(self, **given: Any) -> tuple[Any, ...]:
        self.real, self._seen = given["attention_mask"] != 0, {}
        names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
        return (0, *(given[name] for name in names if name in given))

    def seen(self, window: int) -> torch.Tensor:
        if window not in self._seen:
            places = torch.arange(self.real.shape[1])
            near = (places[:, None] - places).abs() <= window
            if self.is_global is not None:
                near = near | self.is_global[:, None, None, :]
            # Padding has no result, but may have nothing else around it, and no row of the mask may be empty.
            itself = places[:, None] == places
            self._seen[window] = (near & self.real[:, None, None, :]) | itself
        return self._seen[window]


def _encode(self: Any, hidden_states: torch.Tensor, **_unused: Any) -> LongformerBaseModelOutput:
    for layer in self.layer:
        hidden_states = layer(hidden_states)[0]
    return LongformerBaseModelOutput(last_hidden_state=hidden_states)


def _attend_with(running: _Running) -> Any:
    def attend(self: Any, hidden_states: torch.Tensor, **_unused: Any) -> tuple[torch.Tensor]:
        def attended(kind: str, mask: torch.Tensor) -> torch.Tensor:
            heads = (*hidden_states.shape[:2], self.num_heads, self.head_dim)
            query, key, value = (
                getattr(self, f"{name}{kind}")(hidden_states).view(heads).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            return attention_interface(self, query, key, value, mask)[0].flatten(2)

        local = attended("", running.seen(self.one_sided_attn_window_size))
        if running.is_global is None:
            return (local,)
        everywhere = attended("_global", running.real[:, None, None, :])
        return (torch.where(running.is_global[:, :, None], everywhere, local),)

    return attend


def _with_global_question(forward: Any) -> Any:
    """The tokens before the first separator are global, as in Transformers, which finds them by the contents of the batch."""

    def answer(
        self: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> Any:
        is_separator = input_ids == self.config.sep_token_id
        is_question = (is_separator.long().cumsum(dim=1) == 0).long()
        given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return forward(self, input_ids=input_ids, global_attention_mask=is_question, **given)

    return answer
