"""Blocks of consecutive tokens, for models that make one key of each block.

How many blocks a step completes depends on where it begins, which differs from row to row: no shape of a graph. So each token
makes the key of the block that would end with it, from itself and the tokens before it, which the cache keeps like the columns
of a convolution; the key goes to the slot of the token. Those of tokens that do end a block are the model's keys, and
`block_ends` tells them from the others. Making keys costs a step the same at any length of the context.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from qeff_framework.dialect import ops
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.seam.cache import SeamCache
from qeff_framework.seam.scope import Step, current_step


def positioned_step() -> Step:
    """The running step."""
    step = current_step()
    if step is None:
        raise UnsupportedModelError("it selects keys of a cache that it does not have")
    return step


def windows(cache: SeamCache, states: torch.Tensor, width: int, layer: int, number: int = 0) -> torch.Tensor:
    """The last `width` of ``states [B, S, N]`` that each token sees, its own last: ``[B, S, width, N]``.

    They are the convolution state `number` of the layer; before the start of a text they are zeros.
    """
    columns = states.transpose(1, 2)
    everything = cache.update_conv_state(columns, layer, number, conv_kernel_size=width)
    if not cache.has_previous_state(layer):
        everything = functional.pad(columns, (width, 0))
    found = everything.transpose(1, 2)[:, 1:].unsqueeze(2)
    while (length := found.shape[2]) < width:
        # A window of `length` tokens grows by the last ones of the window that begins `more` tokens behind it.
        more = min(length, width - length)
        found = torch.cat([found[:, :-more], found[:, more:, -more:]], dim=2)
    return found


def block_ends(step: Step, size: int) -> torch.Tensor:
    """Which slots hold the key of a whole block that a token sees: bool ``[B, 1, S, C]``."""
    ends = (step.kv_positions + 1) % size == 0
    return ops.causal_mask(step.position_ids, step.kv_positions) & ends


def highest(scores: torch.Tensor, allowed: torch.Tensor, count: int) -> torch.Tensor:
    """The slots of the `count` highest of ``scores [B, S, C]``, of those that ``allowed [B, 1, S, C]`` has: bool like it."""
    scores = scores.masked_fill(~allowed.squeeze(1), float("-inf"))
    best = scores.topk(min(count, scores.shape[2]), dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(2, best, value=True).unsqueeze(1) & allowed
