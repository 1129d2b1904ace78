"""Qwen4-Exp: selects blocks of keys by loops over rows and tokens, and hashes pairs and triples of tokens.

The keys of blocks are made as `qeff_framework.seam.windows` describes. The tokens that a hash reads are columns as well, two
numbers each: ids of a large vocabulary would not be exact in the half precision in which some devices keep states. Columns of
the hashes count as layers of their own behind the others, so that the linear attention is the one module that keeps the
states of its layer, and runs token by token. The hashes themselves need whole numbers of 64 bits.
"""

from __future__ import annotations

import inspect
import math
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel

from qeff_framework.seam.cache import SeamCache
from qeff_framework.seam.windows import block_ends, highest, positioned_step, windows

#: Half precision holds every whole number up to twice this.
_DIGIT = 1024


def adapt(model: PreTrainedModel) -> None:
    """Replaces the forward of each indexer and of each hash."""
    layers = len(model.config.get_text_config().layer_types)
    rotary: Any = next(module for module in model.modules() if hasattr(module, "mrope_section"))
    sees_images = hasattr(model.config, "vision_config")
    module: Any
    for module in model.modules():
        if hasattr(module, "block_topk"):
            module.forward = MethodType(_indexer_with(None if sees_images else rotary), module)
        elif hasattr(module, "ngram_embedding"):
            module.layer_idx += layers
            module.forward = MethodType(_hashed, module)
        elif hasattr(module, "short_conv_state_len"):
            module.layer_idx += layers
        elif hasattr(module, "rotary_emb") and hasattr(module.config, "layer_types"):
            # The model would collect the positions of the whole text for the indexers.
            module.config.layer_types = ["linear_attention"] * layers


def _indexer_with(rotary: Any) -> Any:
    """With `rotary` a block is rotated by the place of its first token in the text.

    Where images stand in texts that place has several axes, and the numbers of a token's rotation are kept beside its key.
    """

    def indexer(
        self: Any,
        hidden: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        _: torch.Tensor,
        cache: SeamCache,
    ) -> torch.Tensor:
        """The slots that each token may look at, those after it included: bool ``[B, 1, S, C]``."""
        step, size = positioned_step(), self.compress_ratio
        positions = step.position_ids.clamp(min=0)
        library: Any = inspect.getmodule(type(self))
        queries, keys = self.index_qk_proj(hidden).split(
            [self.index_n_heads * self.index_head_dim, self.index_kv_heads * self.index_head_dim], dim=-1
        )
        queries = self.q_layernorm(queries.unflatten(-1, (-1, self.index_head_dim)))
        cos, sin = position_embeddings
        queries = library.apply_rotary_pos_emb(queries, cos=cos, sin=sin, unsqueeze_dim=2)
        if rotary is None:
            found = windows(cache, torch.cat([keys, cos, sin], dim=-1), size, self.layer_idx)
            keys, cos, sin = torch.split(found, [keys.shape[-1], cos.shape[-1], sin.shape[-1]], dim=-1)
            blocks, cos, sin = self.k_layernorm(keys.mean(dim=2)), cos[:, :, 0], sin[:, :, 0]
        else:
            blocks = self.k_layernorm(windows(cache, keys, size, self.layer_idx).mean(dim=2))
            cos, sin = rotary(blocks, positions // size * size)
        blocks = library.apply_rotary_pos_emb(blocks.unsqueeze(1), cos=cos, sin=sin)
        blocks = cache.write("index_key", self.layer_idx, blocks)
        scores = torch.relu(queries @ blocks.transpose(2, 3)).sum(dim=2) / math.sqrt(self.index_head_dim)
        chosen = highest(scores, block_ends(step, size), self.block_topk)
        block_of_slot = step.kv_positions // size
        # The last block of a context that is no multiple of the size has no end, and the last slot ends none.
        ends = (block_of_slot * size + size - 1).clamp(max=step.kv_positions.shape[0] - 1)
        unfinished = block_of_slot >= ((positions + 1) // size)[:, None, :, None]
        selected: torch.Tensor = chosen.index_select(3, ends) | unfinished
        return selected

    return indexer


def _hashed(self: Any, input_ids: torch.Tensor, cache: SeamCache) -> torch.Tensor:
    """The embeddings of the pairs, triples, ... that end with each token: ``[B, S, E]``."""
    last, end = self.ngram_size - 1, self.eos_token_id
    # Before the start of a text there are zeros: the token that ends texts.
    digits = torch.stack([input_ids // _DIGIT - end // _DIGIT, input_ids % _DIGIT - end % _DIGIT], dim=-1).float()
    found = windows(cache, digits, self.ngram_size, self.layer_idx, 2).long()
    tokens = (found[..., 0] + end // _DIGIT) * _DIGIT + found[..., 1] + end % _DIGIT
    same_text = torch.ones_like(input_ids, dtype=torch.bool)
    mixed, ids = tokens[..., last] * self.layer_multipliers[0], []
    for back in range(1, self.ngram_size):
        token = tokens[..., last - back]
        same_text = same_text & (token != end)
        mixed = mixed ^ (torch.where(same_text, token, end) * self.layer_multipliers[back])
        heads = slice((back - 1) * self.heads_per_ngram, back * self.heads_per_ngram)
        ids.append(mixed.unsqueeze(-1) % self.ngram_heads_vocab_sizes[heads] + self.ngram_heads_offsets[heads])
    embedded: torch.Tensor = self.ngram_embedding(torch.cat(ids, dim=-1)).flatten(-2)
    return embedded
