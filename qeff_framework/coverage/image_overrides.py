"""Tiny sizes of vision-language types that no field name tells: test data, one entry a type, as in `overrides`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qeff_framework.coverage.overrides import Override

_WIDTH: Final = 64
#: Ids below those that the tokens of other configurations get.
_IMAGE_TOKEN: Final = 4
_VIDEO_TOKEN: Final = 5
_AUDIO_TOKEN: Final = 6
_START_TOKEN: Final = 7
_LAYERS_WITH_WINDOWS: Final[Mapping[str, Any]] = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
#: An image tokenizer: its codes are ids of the vocabulary, which the language model embeds.
_CODES: Final = 32
_TOKENIZER: Final[Mapping[str, Any]] = {
    "embed_dim": 8,
    "latent_channels": 8,
    "base_channels": 32,
    "channel_multiplier": [1, 1, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "resolution": 32,
}
_SAM: Final[Mapping[str, Any]] = {
    "output_channels": 32,
    "mlp_dim": 96,
    "window_size": 2,
    "global_attn_indexes": [1, 3],
}


def _vocabulary(name: str, **others: int) -> dict[str, int]:
    """Names of codes, whose ids follow those of the text."""
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    names = (name.format(number=code, letters=str(code).translate(letters)) for code in range(_CODES))
    return {"<image>": _IMAGE_TOKEN, **others, **{each: 128 + place for place, each in enumerate(names)}}


IMAGE_OVERRIDES: Final[Mapping[str, Override]] = {
    "apertus1p5": Override(
        reason="the codes of images and sound are ids of the vocabulary",
        values={
            "audio_config": {"codebook_dim": _WIDTH},
            "vision_config": {**_TOKENIZER, "codebook_size": _CODES},
            "text_config": {"vocab_size": 4400},
            "image_token_offset": 128,
            "audio_token_offset": 128 + _CODES,
        },
    ),
    "aria": Override(
        reason="names the numbers of patches that it takes", values={"projector_patch_to_query_dict": {16: 4}}
    ),
    "chameleon": Override(
        reason="the codes of images are ids of the vocabulary, by names that have no default",
        values={
            "vocabulary_map": _vocabulary("IMGIMG{letters}Z"),
            "vq_config": {**_TOKENIZER, "num_embeddings": _CODES, "resolution": 32},
        },
    ),
    "emu3": Override(
        reason="the codes of images are ids of the vocabulary, by names that have no default",
        values={
            "vocabulary_map": _vocabulary("<|visual token {number:06d}|>", **{"<|extra_200|>": _START_TOKEN}),
            "vq_config": {**_TOKENIZER, "codebook_size": _CODES, "attn_resolutions": [3], "num_attention_heads": 1},
        },
    ),
    "deepseek_ocr2": Override(
        reason="the encoder of images is two encoders; the dense layers have no default",
        values={
            "vision_config": {
                "sam_config": {**_SAM, "image_size": 128, "downsample_channels": [48, _WIDTH]},
                "encoder_config": {"num_key_value_heads": 2},
            },
            "text_config": {
                "mlp_layer_types": ["dense", "sparse"] * 2,
                "num_experts_per_tok": 3,
                "max_position_embeddings": 1024,
            },
        },
    ),
    "unlimited_ocr": Override(
        reason="the encoder of images is two encoders, whose grids must agree",
        values={
            "vision_config": {
                "sam_config": {**_SAM, "image_size": 128, "downsample_channels": [48, _WIDTH]},
            },
            "text_config": {"num_key_value_heads": 4},
        },
    ),
    "ernie4_5_vl_moe": Override(
        reason="experts of two kinds have sizes of their own",
        values={
            "text_config": {
                "moe_intermediate_size": [48, 32],
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]},
            }
        },
    ),
    "glm5_next": Override(
        reason="keys are pooled in blocks that divide the number of chosen ones",
        values={
            "text_config": {
                "qk_rope_head_dim": 0,
                "head_dim": 0,
                "index_kpool": 2,
                "index_topk": 6,
                "index_n_heads": 16,
                "hc_sinkhorn_iters": 3,
            }
        },
    ),
    "granite4_vision": Override(
        reason="which layers the features go to has no default",
        values={
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-2, 0], [-1, 1]],
            "spatial_target_layers": [2, 3],
            "image_grid_pinpoints": [[32, 64], [64, 32]],
        },
    ),
    "granite_docling": Override(
        reason="the widths must agree; one layer of the encoder feeds the language model too",
        values={"vision_config": {"out_hidden_size": _WIDTH, "scale_factor": 2, "deepstack_visual_indexes": [0, 1]}},
    ),
    "hunyuan_vl": Override(
        reason="the widths must agree",
        values={
            "vision_config": {
                "out_hidden_size": _WIDTH,
                "text_hidden_size": _WIDTH,
                "max_image_size": 128,
                "max_vit_seq_len": 256,
                "min_image_size": 32,
                "img_max_token_num": 64,
            },
            "text_config": {"head_dim": 16},
        },
    ),
    "hy_v4_vl": Override(reason="the widths must agree", values={"vision_config": {"max_image_size": 128}}),
    "inkling2": Override(
        reason="the widths must agree",
        values={"vision_config": {"text_hidden_size": _WIDTH, "projection_hidden_dim": 96, "posemb_grid_size": 8}},
    ),
    "inkling2_loop": Override(
        reason="the widths must agree",
        values={"vision_config": {"text_hidden_size": _WIDTH, "projection_hidden_dim": 96, "posemb_grid_size": 8}},
    ),
    "inkling_mm_model": Override(
        reason="the widths must agree", values={"vision_config": {"text_hidden_size": _WIDTH, "patch_size": 8}}
    ),
    "kimi_k25": Override(reason="the widths must agree", values={"projection_hidden_size": _WIDTH}),
    "blip-2": Override(reason="the token of images has no default", values={"image_token_index": _IMAGE_TOKEN}),
    "florence2": Override(
        reason="sizes are given per stage",
        values={
            "vision_config": {
                "depths": [1, 1],
                "patch_size": [7, 3],
                "patch_stride": [4, 2],
                "patch_padding": [3, 1],
                "patch_prenorm": [False, True],
                "embed_dim": [32, _WIDTH],
                "num_heads": [2, 4],
                "num_groups": [2, 4],
                "window_size": 4,
                "projection_dim": _WIDTH,
            }
        },
    ),
    "llama4": Override(
        reason="the projector's widths follow from others",
        values={
            "vision_config": {
                "projector_input_dim": _WIDTH,
                "projector_output_dim": _WIDTH,
                "vision_output_dim": _WIDTH,
                "intermediate_size": 4 * _WIDTH,
            }
        },
    ),
    "mllama": Override(
        reason="layers that attend to images, and those of the encoder that are read, are named by number; widths must agree",
        values={
            "text_config": {"cross_attention_layers": [1, 3]},
            "vision_config": {
                "intermediate_layers_indices": [0, 2],
                "vision_output_dim": 3 * _WIDTH,
                "num_global_layers": 2,
            },
        },
    ),
    "molmo2": Override(
        reason="names layers of the encoder, and widths of the language model",
        values={
            "adapter_config": {
                "vision_feature_layer": [-1, -2],
                "text_hidden_size": _WIDTH,
                "head_dim": 16,
                "num_key_value_heads": 4,
            },
            "vision_config": {"image_size": [32, 32], "num_position_embeddings": 16, "head_dim": 16},
            "image_patch_id": _IMAGE_TOKEN,
        },
    ),
    "muse_glimmer": Override(
        reason="positions of patches have a table of their own",
        values={
            "out_hidden_size": 4 * _WIDTH,
            "projector_hidden_size": 48,
            "vision_config": {"pos_emb_height": 8, "pos_emb_width": 8, "max_position_embeddings": 64},
        },
    ),
    "muse_spark": Override(
        reason="the widths must agree",
        values={
            "audio_config": {"out_hidden_size": _WIDTH, "num_hidden_layers": 4, "depths": [1, 1, 1, 1]},
            "out_hidden_size": 4 * _WIDTH,
            "projector_hidden_size": 48,
        },
    ),
    "nemotron_h_omni": Override(
        reason="two fields must agree, and token ids have no default",
        values={
            "vision_config": {"video_temporal_patch_size": 2},
            "vision_hidden_size": _WIDTH,
            "projector_hidden_size": 48,
            "image_token_id": _IMAGE_TOKEN,
            "video_token_id": _VIDEO_TOKEN,
            "audio_token_id": _AUDIO_TOKEN,
        },
    ),
    "minicpmv4_6": Override(
        reason="token ids have no default; the merger stands between layers",
        values={
            "image_token_id": _IMAGE_TOKEN,
            "video_token_id": _VIDEO_TOKEN,
            "insert_layer_id": 1,
            "vision_config": {"insert_layer_id": 1},
        },
    ),
    "minicpmv4_7": Override(
        reason="token ids have no default; the merger stands between layers",
        values={
            "image_token_id": _IMAGE_TOKEN,
            "video_token_id": _VIDEO_TOKEN,
            "insert_layer_id": 1,
            "vision_config": {"insert_layer_id": 1},
        },
    ),
    "minicpm_ocr": Override(
        reason="token ids have no default; the merger stands between layers",
        values={
            "image_token_id": _IMAGE_TOKEN,
            "video_token_id": _VIDEO_TOKEN,
            "insert_layer_id": 1,
            "vision_config": {"insert_layer_id": 1},
        },
    ),
    "ovis2": Override(
        reason="the tokens around an image have ids beyond the vocabulary",
        values={"visual_indicator_token_ids": [7, 8, 9, 10, 11]},
    ),
    "vision-encoder-decoder": Override(
        reason="any decoder may stand there, and its own default is none",
        values={"decoder": {"is_decoder": True, "add_cross_attention": True}},
    ),
    "pp_formulanet": Override(
        reason="the widths must agree",
        values={
            "vision_config": {
                "image_size": 64,
                "post_conv_in_channels": _WIDTH,
                "post_conv_mid_channels": 48,
                "post_conv_out_channels": _WIDTH,
                "decoder_hidden_size": _WIDTH,
                "output_channels": _WIDTH,
                "initializer_range": 0.1,
            }
        },
    ),
    "qwen2_5_omni_thinker": Override(
        reason="a token of the config has no default",
        values={"vision_start_token_id": _START_TOKEN, "audio_start_token_id": _AUDIO_TOKEN},
    ),
    "qwen3_omni_moe_thinker": Override(
        reason="a token of the config has no default",
        values={"vision_start_token_id": _START_TOKEN, "audio_start_token_id": _AUDIO_TOKEN},
    ),
    "step3p7": Override(
        reason="the default has no windows",
        values={
            "text_config": {**_LAYERS_WITH_WINDOWS, "sliding_window": 5, "mlp_layer_types": ["dense", "sparse"] * 2},
            "vision_config": {"max_position_embeddings": 16},
        },
    ),
    "vipllava": Override(
        reason="names layers of the encoder by their number", values={"vision_feature_layer": [-1, -2, -3, 1, 0]}
    ),
    "gemma4": Override(
        reason="the default has neither KV sharing nor experts, nor the encoders",
        values={
            "vision_config": {
                "pooling_kernel_size": 2,
                "position_embedding_size": 64,
                "head_dim": 16,
                "num_key_value_heads": 4,
            },
        },
    ),
    "gemma4_unified": Override(
        reason="the default has no encoders",
        values={
            "vision_config": {
                "mm_embed_dim": _WIDTH,
                "output_proj_dims": _WIDTH,
                "mm_posemb_size": 32,
                "pooling_kernel_size": 2,
            }
        },
    ),
}
