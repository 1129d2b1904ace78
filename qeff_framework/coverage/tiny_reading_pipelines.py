"""Further components for `tiny_pipelines`: of pipelines whose text encoder is a model that reads pictures as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qeff_framework.coverage.tiny_components import (
    TEXT,
    flow_scheduler,
    letters_tokenizer,
    make_model,
    make_scheduler,
    qwen3_vl,
    qwen25_vl,
    t5_text,
    vae,
    video_vae,
)

Parts = dict[str, Any]
_SEEN: Final = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def _processor(kind: str, *, parts_of_messages: bool, merged: int = 2) -> Any:
    """Reads letters and pictures of few pixels."""
    import transformers

    tokenizer = letters_tokenizer(length=1024, parts_of_messages=parts_of_messages)
    tokenizer.add_special_tokens({"additional_special_tokens": list(_SEEN)})
    images = transformers.Qwen2VLImageProcessorPil(
        min_pixels=32 * 32, max_pixels=64 * 64, patch_size=14, merge_size=merged
    )
    videos = getattr(transformers, "Qwen2VLVideoProcessor" if kind.startswith("Qwen2") else "Qwen3VLVideoProcessor")
    return getattr(transformers, kind)(
        image_processor=images, tokenizer=tokenizer, video_processor=videos(), chat_template=tokenizer.chat_template
    )


def _qwen_vae(levels: int) -> Any:
    return make_model(
        "AutoencoderKLQwenImage", base_dim=8, z_dim=4, dim_mult=[1] * levels, num_res_blocks=1,
        temperal_downsample=[False] * (levels - 1), latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip


def qwen_image_edit(**changed: Any) -> Parts:
    """The picture is made as large as a million pixels first, so that the autoencoder makes its sides shorter by 32."""
    processor = _processor("Qwen2_5_VLProcessor", parts_of_messages=False)
    transformer = make_model(
        "QwenImageTransformer2DModel", patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=TEXT, axes_dims_rope=(8, 4, 4), **changed,
    )  # fmt: skip
    return {
        "transformer": transformer,
        "scheduler": flow_scheduler(),
        "vae": _qwen_vae(6),
        "text_encoder": qwen25_vl(tokens_of=processor.tokenizer),
        "tokenizer": processor.tokenizer,
        "processor": processor,
    }


def qwen_image_21() -> Parts:
    """The encoder's last norm is taken off while it reads a prompt."""
    processor = _processor("Qwen3VLProcessor", parts_of_messages=True)
    transformer = make_model(
        "QwenImage21Transformer2DModel", in_channels=4, out_channels=4, num_layers=1, attention_head_dim=16,
        num_attention_heads=2, context_in_dim=TEXT, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    autoencoder = make_model(
        "AutoencoderKLQwenImage21", base_dim=8, decoder_base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return {
        "transformer": transformer,
        "scheduler": flow_scheduler(),
        "vae": autoencoder,
        "text_encoder": qwen3_vl(layers=2, kind="Qwen3VLForConditionalGeneration"),
        "processor": processor,
    }


def krea2() -> Parts:
    """Two layers of the encoder are the text."""
    transformer = make_model(
        "Krea2Transformer2DModel", in_channels=16, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=32, timestep_embed_dim=16, text_hidden_dim=TEXT, num_text_layers=2,
        text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=32, num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    return {
        "transformer": transformer,
        "scheduler": flow_scheduler(use_dynamic_shifting=True),
        "vae": _qwen_vae(3),
        "text_encoder": qwen3_vl(layers=2),
        "tokenizer": letters_tokenizer(length=1024),
        "text_encoder_select_layers": (1, 2),
    }


def nucleus_moe() -> Parts:
    """Experts that choose their tokens."""
    import torch

    transformer = make_model(
        "NucleusMoEImageTransformer2DModel", in_channels=16, out_channels=4, num_layers=5, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=TEXT, axes_dims_rope=(8, 4, 4), num_experts=4, moe_intermediate_dim=16,
        capacity_factors=2.0,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in transformer.parameters():
            # What its constructor leaves as it lies in memory may be any number.
            parameter.normal_(0.0, 0.1)
    return {
        "transformer": transformer,
        "scheduler": flow_scheduler(),
        "vae": _qwen_vae(3),
        "text_encoder": qwen3_vl(layers=8, kind="Qwen3VLForConditionalGeneration"),
        "processor": _processor("Qwen3VLProcessor", parts_of_messages=False),
    }


def glm_image() -> Parts:
    """A language model writes the tokens of a small picture first."""
    import transformers

    special = {"image_token": "<|image|>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"}
    tokenizer = letters_tokenizer(length=64, parts_of_messages=True, extra_special_tokens=special)
    config = transformers.GlmImageConfig(
        text_config={
            "vocab_size": 64, "hidden_size": TEXT, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 8, "vision_vocab_size": 16, "pad_token_id": 0, "eos_token_id": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2, "image_size": 32, "patch_size": 8,
        },
        vq_config={"embed_dim": 4, "num_embeddings": 16, "latent_channels": 16},
    )  # fmt: skip
    writer = transformers.GlmImageForConditionalGeneration(config)
    writer.generation_config.eos_token_id = None
    transformer = make_model(
        "GlmImageTransformer2DModel", in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, text_embed_dim=TEXT, time_embed_dim=16, condition_dim=4, prior_vq_quantizer_codebook_size=16,
    )  # fmt: skip
    made: Any = transformers.GlmImageProcessor
    processor = made(
        image_processor=transformers.GlmImageImageProcessorPil(patch_size=8), tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    return {
        "transformer": transformer,
        "scheduler": flow_scheduler(),
        "vae": vae(latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
        "text_encoder": t5_text(),
        "tokenizer": tokenizer,
        "processor": processor,
        "vision_language_encoder": writer,
    }


def anyflow_far() -> Parts:
    """Frames come in chunks, and those that are made are kept as keys and values."""
    transformer = make_model(
        "AnyFlowFARTransformer3DModel", num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=TEXT, freq_dim=32, ffn_dim=32, num_layers=2, rope_max_seq_len=32, chunk_partition=(1, 1),
    )  # fmt: skip
    return {
        "transformer": transformer,
        "scheduler": make_scheduler("FlowMapEulerDiscreteScheduler"),
        "vae": video_vae(),
        "text_encoder": t5_text("UMT5EncoderModel"),
        "tokenizer": letters_tokenizer(),
    }


#: Types whose processors Transformers makes with torchvision only.
WITH_TORCHVISION: Final = frozenset(
    {"nucleusmoe-image", "qwenimage21", "qwenimage-edit", "qwenimage-edit-plus", "qwenimage-layered"}
)
#: As `tiny_newer_pipelines.ARGUMENTS`.
ARGUMENTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "qwenimage-layered": {"layers": 1, "resolution": 640},
    "anyflow-far": {"chunk_partition": [1, 1]},
}
