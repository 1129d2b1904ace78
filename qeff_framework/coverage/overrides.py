"""Tiny sizes that a field name alone cannot give: test data, one entry a model type.

This table only says how to make a *small random instance* of a type whose configuration has constraints of its own or
whose default switches a kind of layer off. It is read by `tiny` and by nothing else: the export path has no table of
architectures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final


@dataclasses.dataclass(frozen=True, kw_only=True)
class Override:
    """Values for one type of configuration (nested ones included) and why they are needed."""

    reason: str
    values: Mapping[str, Any]


def _alternate(first: str, second: str, times: int = 2) -> dict[str, Any]:
    return {"num_hidden_layers": 2 * times, "layer_types": [first, second] * times}


def _windows(times: int = 2) -> dict[str, Any]:
    return _alternate("sliding_attention", "full_attention", times)


OVERRIDES: Final[Mapping[str, Override]] = {
    # --- kinds of layer that the default configuration does not contain ----------------------------------------------
    "bamba": Override(
        reason="the default has no attention layer, and the cache of Transformers needs one",
        values={"attn_layer_indices": [1, 3]},
    ),
    "granitemoehybrid": Override(
        reason="the default has no attention layer, and the cache of Transformers needs one",
        values=_alternate("linear_attention", "full_attention"),
    ),
    "jamba": Override(
        reason="attention and expert layers come in periods; eight layers hold every combination twice",
        values={"num_hidden_layers": 8, "attn_layer_period": 4, "attn_layer_offset": 1},
    ),
    "lfm2": Override(reason="the default has no convolution layer", values=_alternate("conv", "full_attention")),
    "lfm2_moe": Override(
        reason="layer_types has no default",
        values=_alternate("conv", "full_attention"),
    ),
    "minimax_m3_vl_text": Override(
        reason="the default has neither sparse attention nor dense feed-forward layers; blocks shorter than the prompts",
        values={
            **_alternate("full_attention", "minimax_m3_sparse"),
            "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
            "index_n_heads": 2,
            "index_block_size": 4,
            "index_topk_blocks": 2,
            "shared_intermediate_size": 48,
        },
    ),
    "laguna": Override(
        reason="the default has full attention only, with the same number of heads everywhere",
        values={
            **_windows(),
            "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
            "num_attention_heads_per_layer": [8, 4, 8, 4],
        },
    ),
    "mellum": Override(
        reason="the default has neither windows nor dense feed-forward layers",
        values={**_windows(), "mlp_layer_types": ["dense", "dense", "sparse", "sparse"]},
    ),
    "cohere2_moe": Override(
        reason="the default has neither dense feed-forward layers nor shared experts",
        values={
            **_windows(),
            "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
            "num_shared_experts": 1,
            "prefix_dense_intermediate_size": 96,
        },
    ),
    "inkling_text": Override(
        reason="the default has no dense feed-forward layer; the position bias and the scaling must act within the prompts",
        values={
            "num_hidden_layers": 4,
            "layer_types": ["hybrid_sliding", "hybrid"] * 2,
            "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
            "rel_extent": 8,
            "d_rel": 8,
            "log_scaling_n_floor": 8,
            "logits_mup_width_multiplier": 1.0,
        },
    ),
    "inkling2_text": Override(
        reason="the head has its own size; the position bias and the scaling must act within the prompts",
        values={
            "unpadded_vocab_size": 150,
            "rel_extent": 8,
            "d_rel": 8,
            "log_scaling_n_floor": 8,
            "n_layers_per_attn_res_block": 2,
        },
    ),
    "inkling2_loop_text": Override(
        reason="as inkling2_text, and the loop must lie within the layers",
        values={
            "num_hidden_layers": 6,
            "layer_types": ["hybrid_sliding", "hybrid"] * 3,
            "unpadded_vocab_size": 150,
            "rel_extent": 8,
            "d_rel": 8,
            "log_scaling_n_floor": 8,
            "n_layers_per_attn_res_block": 2,
            "loop_layer_index_start": 2,
            "loop_layer_index_end": 4,
            "loop_gate_rank": 8,
        },
    ),
    "ministral": Override(
        reason="the default has windows only, and no head_dim, without which it does not run",
        values={**_windows(), "head_dim": 32},
    ),
    "zaya": Override(
        reason="one chosen expert is all that the family allows; the default has no windows",
        values={**_alternate("hybrid_sliding", "hybrid"), "num_experts_per_tok": 1, "sliding_window": 5},
    ),
    "cohere_compass_text": Override(
        reason="rotary settings are given per kind of layer and have no default; the default has no windows",
        values={
            **_windows(),
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
                "full_attention": None,
            },
        },
    ),
    "gemma4_text": Override(
        reason="the default has neither KV sharing nor experts; the head size of full attention is given apart",
        values={
            **_windows(3),
            "global_head_dim": 48,
            "num_kv_shared_layers": 2,
            "enable_moe_block": True,
            "num_experts": 8,
            "top_k_experts": 3,
            "moe_intermediate_size": 48,
        },
    ),
    "gemma4_unified_text": Override(
        reason="the head sizes of full attention are given apart; values that reuse the keys are off by default",
        values={
            **_windows(),
            "global_head_dim": 48,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
        },
    ),
    "gemma3n_text": Override(
        reason="the layers that share keys and values must be fewer than the layers, in whole patterns",
        values={
            **_windows(3),
            "num_kv_shared_layers": 2,
            "activation_sparsity_pattern": [0.9, 0.9, 0.9, 0.0, 0.0, 0.0],
            "laurel_rank": 8,
        },
    ),
    "llama4_text": Override(
        reason="the default has experts in every layer; temperature tuning must act within the prompts",
        values={"interleave_moe_layer_step": 2, "floor_scale": 4},
    ),
    "dots3_note_text": Override(
        reason="windowed layers have their own head sizes, given under other names",
        values={
            "sliding_window": 5,
            "swa_num_attention_heads": 2,
            "swa_num_key_value_heads": 2,
            "swa_q_lora_rank": 40,
            "swa_kv_lora_rank": 20,
            "swa_head_dim": 24,
            "swa_qk_nope_head_dim": 16,
            "swa_v_head_dim": 16,
        },
    ),
    "dots3_note_vision_encoder": Override(
        reason="widths that must agree with the text part; never reached by text",
        values={"num_hidden_layers": 2, "mlp_layer_types": ["dense"] * 2, "adapter_in_dim": 64, "adapter_out_dim": 64},
    ),
    "dots3_note_audio_encoder": Override(
        reason="widths that must agree with the text part; never reached by text",
        values={"adapter_input_size": 64, "adapter_out_dim": 64, "downsample_hidden_size": 16},
    ),
    "qwen4_exp_text": Override(
        reason="the learned selection of keys and the n-gram embeddings have no default sizes",
        values={
            "indexer_n_heads": 16,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 32,
            "indexer_budget": 6,
            "indexer_compress_ratio": 2,
            "ple_layer_ids": [1, 2],
            "ngram_vocab_size_base": 200,
            "heads_per_ngram": 2,
            "split_ngram_parts": 2,
            "eos_token_id": 2,
            "hc_lowrank": 16,
        },
    ),
    "dory": Override(
        reason="input, recurrent and output sections must add up to the layers",
        values={**_windows(3), "n_input_layers": 2, "n_recurrent_layers": 2, "n_output_layers": 2},
    ),
    "recurrent_gemma": Override(
        reason="three layers are one period; two periods hold every kind twice", values={"num_hidden_layers": 6}
    ),
    "glm_moe_dsa": Override(
        reason="the default has no layer that reuses the selection of the one before",
        values={
            "num_hidden_layers": 4,
            "layer_types": ["indexed_attention"] * 4,
            "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
            "indexer_types": ["full", "shared"] * 2,
        },
    ),
    "gpt_neo": Override(
        reason="the pattern is run-length encoded", values={"attention_types": [[["global", "local"], 2]]}
    ),
    "deepseek_v4": Override(
        reason="compressed blocks and head groups are given in a dictionary and relative to the heads; the default has no layer "
        "without compression, which checkpoints have, and twenty times the same two divisions",
        values={
            "num_hidden_layers": 4,
            "layer_types": [
                "sliding_attention",
                "heavily_compressed_attention",
                "compressed_sparse_attention",
                "compressed_sparse_attention",
            ],
            "mlp_layer_types": ["hash_moe", "hash_moe", "moe", "moe"],
            "hc_sinkhorn_iters": 3,
            "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
            "o_groups": 2,
            "o_lora_rank": 24,
            "index_topk": 3,
        },
    ),
    "gemma4_assistant": Override(
        reason="a draft model: the family's default is refused by its own checks",
        values={
            "text_config": {
                "hidden_size_per_layer_input": 0,
                "vocab_size_per_layer_input": 0,
                "enable_moe_block": False,
                "num_kv_shared_layers": 0,
            }
        },
    ),
    # --- constraints between sizes ------------------------------------------------------------------------------------
    "hunyuan_v1_dense": Override(reason="does not run without head_dim", values={"head_dim": 32}),
    "hunyuan_v1_moe": Override(reason="does not run without head_dim", values={"head_dim": 32}),
    "xlstm": Override(
        reason="query and key sizes are rounded up to multiples of 64, from half the width", values={"hidden_size": 128}
    ),
    "dbrx": Override(
        reason="the modelling code reads a rotary base and a clip that only checkpoints carry",
        values={"attn_config": {"rope_theta": 10000.0, "clip_qkv": 1.0}},
    ),
    "marian": Override(
        reason="off by default, on in checkpoints: without it the fixed positions drown the tokens",
        values={"scale_embedding": True},
    ),
    "reformer": Override(
        reason="axial positions factor the width and the length; fixed hashes; hashed chunks keep their length, since cached "
        "decoding in Transformers fails beyond one of them",
        values={
            "axial_pos_shape": [8, 16],
            "axial_pos_embds_dim": [16, 48],
            "local_attn_chunk_length": 4,
            "hash_seed": 0,
        },
    ),
    "phi4_multimodal_audio": Override(
        reason="channel counts under names of its own; never reached by text",
        values={
            "num_blocks": 1,
            "ext_pw_out_channel": 64,
            "depthwise_separable_out_channel": 64,
            "nemo_conv_channels": 32,
        },
    ),
    "hrm_text": Override(
        reason="layers times cycles: 32 applications of random layers magnify rounding to visible differences",
        values={"num_hidden_layers": 2, "L_cycles": 2},
    ),
    "moshi": Override(
        reason="Transformers drops keys beyond the window from the cache but does not mask them in the prompt",
        values={"sliding_window": 64},
    ),
    "zamba2": Override(
        reason="Transformers applies the lower limit of the time step to the prompt and not to single tokens",
        values={"time_step_min": 1e-6},
    ),
    "nemotron_h": Override(
        reason="Transformers applies the lower limit of the time step to the prompt and not to single tokens",
        values={"time_step_min": 1e-6},
    ),
    "xmod": Override(reason="needs a language to choose adapters by", values={"default_language": "en_XX"}),
    "big_bird": Override(
        reason="the default chooses between two attentions by the length of the text",
        values={"attention_type": "original_full"},
    ),
    "bigbird_pegasus": Override(
        reason="the default chooses between two attentions by the length of the text",
        values={"attention_type": "original_full"},
    ),
    "blt": Override(
        reason="a hash table of half a million rows; the cache of Transformers counts layers by a field that only nested "
        "configurations have",
        values={"encoder_hash_byte_group_vocab": 64, "num_hidden_layers": 8},
    ),
    "roc_bert": Override(
        reason="tables of shapes and pronunciations",
        values={
            "shape_vocab_size": 40,
            "pronunciation_vocab_size": 40,
            "shape_embed_dim": 24,
            "pronunciation_embed_dim": 20,
        },
    ),
    # --- text encoders ------------------------------------------------------------------------------------------------
    "deberta": Override(
        reason="what sets the family apart is off by default, on in checkpoints",
        values={"pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    ),
    "deberta-v2": Override(
        reason="what sets the family apart is off by default, on in checkpoints",
        values={
            "pos_att_type": ["c2p", "p2c"],
            "position_biased_input": False,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "conv_kernel_size": 3,
        },
    ),
    "esm": Override(
        reason="vocabulary and special tokens have no default",
        values={"vocab_size": 160, "pad_token_id": 1, "mask_token_id": 4, "position_embedding_type": "rotary"},
    ),
    "esmc": Override(reason="refuses fewer key heads than heads", values={"num_key_value_heads": 4}),
    "funnel": Override(
        reason="depth is given in blocks; AutoModel chooses between two classes by the checkpoint's architecture",
        values={"architectures": ["FunnelModel"], "block_sizes": [2, 2, 2], "d_head": 16},
    ),
    "layoutlmv3": Override(
        reason="the sizes of coordinates must add up to the width", values={"coordinate_size": 12, "shape_size": 8}
    ),
    "lilt": Override(reason="the width is split into six coordinates", values={"hidden_size": 96}),
    "squeezebert": Override(reason="embeddings must have the width of the model", values={"embedding_size": 64}),
    "perceiver": Override(
        reason="latents under names of their own",
        values={"num_latents": 16, "d_latents": 64, "num_self_attends_per_block": 2, "num_blocks": 1},
    ),
}
