"""GGUF files as llama.cpp writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf

#: Puts values and tensors into a file.
Say = Callable[[gguf.GGUFWriter], object]


def write_file(path: Path, architecture: str, say: Say) -> Path:
    """A file with what `say` puts into it."""
    writer = gguf.GGUFWriter(str(path), architecture)
    say(writer)
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    """Writes what was put into `writer`."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf(
    path: Path,
    module: Any,
    *,
    without: str = "",
    packed: Mapping[str, tuple[Any, Any]] = {},
    say: Say = lambda writer: None,
) -> Path:
    """A Llama as llama.cpp would write it, without a permutation of its heads and without a tokenizer's merges.

    `packed`: bytes and type of what stands in place of a weight; `say` puts more into the file.
    """
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    for index in range(module.config.num_hidden_layers):
        layer, block = f"model.layers.{index}.", f"blk.{index}."
        names |= {
            **{f"{layer}self_attn.{side}_proj.weight": f"{block}attn_{side}.weight" for side in "qkv"},
            f"{layer}self_attn.o_proj.weight": f"{block}attn_output.weight",
            **{f"{layer}mlp.{part}_proj.weight": f"{block}ffn_{part}.weight" for part in ("gate", "up", "down")},
            f"{layer}input_layernorm.weight": f"{block}attn_norm.weight",
            f"{layer}post_attention_layernorm.weight": f"{block}ffn_norm.weight",
        }

    def model(writer: gguf.GGUFWriter) -> None:
        writer.add_context_length(64)
        writer.add_embedding_length(module.config.hidden_size)
        writer.add_block_count(module.config.num_hidden_layers)
        writer.add_feed_forward_length(module.config.intermediate_size)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_dimension_count(8)
        writer.add_vocab_size(128)
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["<pad>", "<s>", "</s>", "<unk>", *(f"w{index}" for index in range(124))])
        writer.add_token_scores([0.0] * 128)
        writer.add_token_types([3, 3, 3, 2] + [1] * 124)
        for key, tensor in module.state_dict().items():
            if key in packed:
                writer.add_tensor(names[key], packed[key][0], raw_dtype=packed[key][1])
            elif key != without:
                writer.add_tensor(names[key], tensor.numpy())
        say(writer)

    return write_file(path, "llama", model)
