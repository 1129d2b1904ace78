"""Further components for `tiny_pipelines`: of pipelines with several stages, memories of frames, or united ControlNets."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final

from qeff_framework.coverage.tiny_components import (
    TEXT,
    clip_text,
    clip_tokenizer,
    flow_scheduler,
    letters_tokenizer,
    make_model,
    make_scheduler,
    qwen3_vl,
    t5_text,
    vae,
    video_vae,
)

Parts = dict[str, Any]


def flux2_vae() -> Any:
    """An autoencoder whose latents are normalised by the statistics of its own batch norm."""
    return make_model(
        "AutoencoderKLFlux2", block_out_channels=(8,), norm_num_groups=4, latent_channels=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), sample_size=32,
    )  # fmt: skip


def flux2() -> Parts:
    """Three layers of a Mistral 3 side by side are the text."""
    import transformers

    transformer = make_model(
        "Flux2Transformer2DModel", patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=3 * TEXT, timestep_guidance_channels=32, axes_dims_rope=[4, 4, 4, 4],
    )  # fmt: skip
    config = transformers.Mistral3Config(
        text_config={
            "model_type": "mistral", "vocab_size": 64, "hidden_size": TEXT, "intermediate_size": 32, "num_hidden_layers": 30,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 512,
        },
        vision_config={
            "model_type": "pixtral", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "image_size": 32, "patch_size": 8,
        },
        image_token_index=60,
    )  # fmt: skip
    return {
        "transformer": transformer,
        "scheduler": flow_scheduler(),
        "vae": flux2_vae(),
        "text_encoder": transformers.Mistral3ForConditionalGeneration(config),
        "tokenizer": letters_tokenizer(parts_of_messages=True),
    }


def ideogram4() -> Parts:
    """Two denoisers, with and without the prompt; the loop itself runs the layers of the text encoder."""
    sizes: Mapping[str, Any] = {
        "in_channels": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "intermediate_size": 32,
        "adaln_dim": 16, "llm_features_dim": 13 * TEXT, "mrope_section": (4, 2, 2),
    }  # fmt: skip
    return {
        "transformer": make_model("Ideogram4Transformer2DModel", **sizes),
        "unconditional_transformer": make_model("Ideogram4Transformer2DModel", **sizes),
        "scheduler": flow_scheduler(),
        "vae": flux2_vae(),
        "text_encoder": qwen3_vl(layers=36),
        "tokenizer": letters_tokenizer(parts_of_messages=True),
        "prompt_enhancer_head": None,
    }


def prx() -> Parts:
    """The text encoder of T5Gemma."""
    import transformers

    transformer = make_model(
        "PRXTransformer2DModel", in_channels=4, patch_size=2, context_in_dim=TEXT, hidden_size=16, mlp_ratio=2.0,
        num_heads=2, depth=2, axes_dim=[4, 4],
    )  # fmt: skip
    config = transformers.T5GemmaModuleConfig(
        vocab_size=64, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64, layer_types=["full_attention"] * 2,
    )  # fmt: skip
    whole = transformers.T5GemmaConfig(encoder=config, decoder=config, is_encoder_decoder=False, vocab_size=64)
    module: Any = importlib.import_module("transformers.models.t5gemma.modeling_t5gemma")
    return {
        "transformer": transformer,
        "scheduler": flow_scheduler(),
        "text_encoder": module.T5GemmaEncoder(whole.encoder),
        "tokenizer": letters_tokenizer(),
        "vae": vae(4, 2, shift_factor=0.1, scaling_factor=0.4),
    }


def z_image_controlnet(base: Parts, *, control: int = 16) -> Parts:
    """Of two layers the first has samples of the ControlNet, which they find by its number."""
    net = make_model(
        "ZImageControlNetModel", control_layers_places=[0], control_in_dim=control, dim=32, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2,
    )  # fmt: skip
    return {**base, "controlnet": net}


def z_image_omni(base: Parts) -> Parts:
    """A reader of pictures beside the text encoder."""
    import transformers

    config = transformers.Siglip2VisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_patches=16, patch_size=8
    )
    return {
        **base,
        "siglip": transformers.Siglip2VisionModel(config),
        "siglip_processor": transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16),
    }


def _cascade_unet(**changed: Any) -> Any:
    """Of two levels, with attention in the second."""
    sizes: Mapping[str, Any] = {
        "timestep_ratio_embedding_dim": 8, "patch_size": 1, "conditioning_dim": 16, "block_out_channels": (16, 32),
        "num_attention_heads": (0, 4), "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1),
        "down_blocks_repeat_mappers": (1, 1), "up_blocks_repeat_mappers": (1, 1), "clip_text_pooled_in_channels": TEXT,
        "block_types_per_layer": (
            ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        ),
    }  # fmt: skip
    return make_model("StableCascadeUNet", **{**sizes, **changed})


def cascade() -> Parts:
    """Two stages: latents of a picture from the text, a picture from these."""
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    prior = _cascade_unet(
        in_channels=16, out_channels=16, clip_text_in_channels=TEXT, clip_image_in_channels=TEXT, switch_level=(False,),
        timestep_conditioning_type=("sca", "crp"),
    )  # fmt: skip
    decoder = _cascade_unet(
        in_channels=4, out_channels=4, effnet_in_channels=16, patch_size=2, timestep_conditioning_type=("sca",),
        pixel_mapper_in_channels=3,
    )  # fmt: skip
    texts = clip_text("CLIPTextModelWithProjection")
    return {
        "tokenizer": clip_tokenizer(),
        "text_encoder": texts,
        "decoder": decoder,
        "scheduler": make_scheduler("DDPMWuerstchenScheduler"),
        "vqgan": PaellaVQModel(levels=2, bottleneck_blocks=1, embed_dim=16, num_vq_embeddings=32),
        "prior_prior": prior,
        "prior_text_encoder": texts,
        "prior_tokenizer": clip_tokenizer(),
        "prior_scheduler": make_scheduler("DDPMWuerstchenScheduler"),
        "prior_feature_extractor": None,
        "prior_image_encoder": None,
    }


def helios(*, stages: int = 1) -> Parts:
    """A memory of frames in three lengths; of several `stages` each has twice the size of the last."""
    transformer = make_model(
        "HeliosTransformer3DModel", num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=TEXT, freq_dim=32, ffn_dim=32, num_layers=2, rope_dim=(4, 4, 4),
    )  # fmt: skip
    # With the default of gamma the noise between stages has a covariance that rounding makes no covariance.
    return {
        "transformer": transformer,
        "scheduler": make_scheduler(
            "HeliosScheduler", stages=stages, stage_range=[number / stages for number in range(stages + 1)], gamma=0.3
        ),
        "vae": video_vae(),
        "text_encoder": t5_text("UMT5EncoderModel"),
        "tokenizer": letters_tokenizer(),
    }


#: Arguments of the calls of a type that its pipeline needs, or whose defaults are for pictures of full size.
ARGUMENTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "stable-diffusion-xl-controlnet-union": {"control_mode": [0]},
    "ideogram4": {"guidance_schedule": None},
    "cascade": {"prior_num_inference_steps": 4, "prior_guidance_scale": 4.0, "decoder_guidance_scale": 2.0},
    "helios": {"num_latent_frames_per_chunk": 1, "history_sizes": [4, 2, 1]},
    "helios-pyramid": {
        "num_latent_frames_per_chunk": 1, "history_sizes": [4, 2, 1], "pyramid_num_inference_steps_list": [2, 2, 2],
    },
}  # fmt: skip
