"""The tiny value for each *name* of a configuration field.

Configuration classes of different families use the same names for the same thing, so one table over field names shrinks
them all. A name that is absent keeps the family's own default. Sizes are chosen so that different axes have different
lengths (a confused axis then fails instead of passing by luck) and so that every mechanism is active: fewer KV heads than
heads, more experts than chosen ones, windows and attention chunks shorter than the prompts.
"""

from __future__ import annotations

from typing import Any, Final

HIDDEN: Final = 64
HEADS: Final = 4
KV_HEADS: Final = 2
HEAD_DIM: Final = HIDDEN // HEADS
# For families whose heads are not a split of the residual width: heads * head_dim != hidden_size.
WIDE_HEAD_DIM: Final = 2 * HEAD_DIM
VOCAB: Final = 160
POSITIONS: Final = 128
LAYERS: Final = 4
WINDOW: Final = 5
EXPERTS: Final = 8
CHOSEN_EXPERTS: Final = 3

# Ids below this one are kept for padding, start, end and the placeholders of other modalities.
FIRST_PLAIN_TOKEN: Final = 16


def _each(names: str, value: Any) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


# Applied when the family's default is not None: None means "derive it" or "this family does without".
SIZES: Final[dict[str, Any]] = {
    # residual width
    **_each("hidden_size d_model n_embd emb_dim dim embed_dim hidden_size_global", HIDDEN),
    # depth
    **_each("num_hidden_layers n_layer n_layers num_layers", LAYERS),
    **_each("decoder_layers num_decoder_layers encoder_layers num_encoder_layers", 3),
    **_each("decoder_num_hidden_layers encoder_num_hidden_layers", 3),
    # heads
    **_each("num_attention_heads n_head n_heads num_heads attention_heads linear_num_heads", HEADS),
    **_each("decoder_attention_heads encoder_attention_heads swa_num_attention_heads", HEADS),
    **_each("num_decoder_attention_heads num_encoder_attention_heads", HEADS),
    **_each("num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads", KV_HEADS),
    **_each("kv_channels dim_head swa_head_dim attention_head_size d_kv", HEAD_DIM),
    "rotary_dim": 8,
    # feed-forward
    **_each("intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size dim_ff dff d_ff", 96),
    **_each("d_inner feed_forward_size dense_intermediate_size intermediate_size_mlp hidden_dim", 96),
    # vocabulary and positions
    **_each("vocab_size vocab_size_per_layer_input", VOCAB),
    **_each("max_position_embeddings n_positions n_ctx max_seq_len context_length", POSITIONS),
    **_each("max_target_positions max_source_positions", POSITIONS),
    **_each("hidden_size_per_layer_input embedding_size", 24),
    "entity_vocab_size": 20,
    "entity_emb_size": 24,
    # experts
    **_each("num_experts n_routed_experts num_local_experts moe_num_experts", EXPERTS),
    **_each("num_experts_per_tok moe_topk moe_k moe_top_k top_k_experts", CHOSEN_EXPERTS),
    **_each("moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size", 48),
    **_each("shared_experts_intermediate_size moe_shared_expert_intermediate_size", 48),
    "zero_expert_num": 4,
    **_each("first_k_dense_replace num_dense_layers moe_layer_start_index", 2),
    # multi-head latent attention
    "q_lora_rank": 40,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    # learned selection of keys
    # Many heads: a key that every head scores below zero gets exactly zero, and ties make the selection arbitrary.
    "index_n_heads": 16,
    "index_head_dim": 16,
    "index_topk": 6,
    # windows
    **_each("sliding_window sliding_window_size", WINDOW),
    **_each("attention_chunk_size window_size attention_window_size", WINDOW + 1),
    # The modelling code takes half of these on each side.
    "local_attention": 2 * WINDOW,
    "attention_window": 4,
    # state-space and linear-attention layers
    **_each("state_size mamba_d_state ssm_state_size", 8),
    **_each("mamba_d_conv conv_kernel linear_conv_kernel_dim conv_kernel_size short_conv_kernel_size", 3),
    **_each("chunk_size mamba_chunk_size", 4),
    **_each("mamba_n_heads mamba_num_heads", 8),
    "mamba_head_dim": 16,
    "mamba_d_ssm": 128,
    "n_groups": 2,
    **_each("linear_key_head_dim linear_head_dim", 16),
    "linear_value_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    # pixels and sound: only so that the parts that text never reaches stay small
    "image_size": 32,
    "patch_size": 8,
}

# Applied also when the family's default is None, because None there switches the mechanism off.
EVEN_IF_NONE: Final = frozenset({"num_key_value_heads", "num_experts_per_tok", "n_routed_experts"})

# Switches that are off by default and without which a kind of layer of the family never occurs. They are set before the
# family's own code derives its per-layer lists.
SWITCHES: Final[dict[str, Any]] = {"use_sliding_window": True, "relative_attention": True}

# Encoders that double as decoders attend in both directions unless told otherwise.
CAUSAL_SWITCHES: Final[dict[str, Any]] = {"is_decoder": True, "causal": True}
