"""Further components for `tiny_pipelines`: of pipelines that make an embedding of a picture first, and a picture of that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qeff_framework.coverage.tiny_components import (
    TEXT,
    clip_text,
    clip_tokenizer,
    letters_tokenizer,
    make_model,
    make_scheduler,
)

Parts = dict[str, Any]


def kandinsky(*, channels: int = 4) -> Parts:
    """The text is read a second time, by a multilingual encoder."""
    from diffusers.pipelines.kandinsky import MultilingualCLIP
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig

    config = MCLIPConfig(
        numDims=TEXT, transformerDimensions=TEXT, hidden_size=TEXT, intermediate_size=32, num_attention_heads=2,
        num_hidden_layers=2, vocab_size=64,
    )  # fmt: skip
    denoiser = _denoiser(
        channels, addition_embed_type="text_image", encoder_hid_dim_type="text_image_proj", encoder_hid_dim=TEXT
    )
    return {
        **_prior_parts(),
        **denoiser,
        "text_encoder": MultilingualCLIP(config),
        "tokenizer": letters_tokenizer(length=77),
        "scheduler": make_scheduler(
            "DDIMScheduler", beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
            set_alpha_to_one=False,
        ),
    }  # fmt: skip


def kandinsky22(*, channels: int = 4) -> Parts:
    """The denoiser sees no text, but the embedding of a picture."""
    denoiser = _denoiser(channels, addition_embed_type="image", encoder_hid_dim_type="image_proj", encoder_hid_dim=TEXT)
    return {
        **_prior_parts(),
        **denoiser,
        "scheduler": make_scheduler("DDPMScheduler", beta_schedule="linear", beta_start=0.00085, beta_end=0.012),
    }


def _denoiser(channels: int, **changed: Any) -> Parts:
    unet = make_model(
        "UNet2DConditionModel", in_channels=channels, out_channels=8, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), cross_attention_dim=TEXT, attention_head_dim=4,
        resnet_time_scale_shift="scale_shift", **changed,
    )  # fmt: skip
    movq = make_model(
        "VQModel", block_out_channels=(32, 64), latent_channels=4, num_vq_embeddings=12, vq_embed_dim=4,
        norm_num_groups=8, norm_type="spatial", down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    )  # fmt: skip
    return {"unet": unet, "movq": movq}


def _prior_parts() -> Parts:
    import transformers

    vision = transformers.CLIPVisionConfig(
        hidden_size=16, projection_dim=TEXT, num_hidden_layers=1, num_attention_heads=2, image_size=32, intermediate_size=16,
        patch_size=8,
    )  # fmt: skip
    prior = make_model(
        "PriorTransformer",
        num_attention_heads=2,
        attention_head_dim=8,
        embedding_dim=TEXT,
        num_layers=1,
        num_embeddings=8,
    )
    return {
        "prior_prior": prior,
        "prior_image_encoder": transformers.CLIPVisionModelWithProjection(vision),
        "prior_text_encoder": clip_text("CLIPTextModelWithProjection"),
        "prior_tokenizer": clip_tokenizer(),
        "prior_scheduler": make_scheduler(
            "UnCLIPScheduler", variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=10.0
        ),
        "prior_image_processor": transformers.CLIPImageProcessorPil(
            crop_size={"height": 32, "width": 32}, size={"shortest_edge": 32}
        ),
    }


def wuerstchen() -> Parts:
    """Two stages: latents of a picture from the text, a picture from these."""
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel, WuerstchenDiffNeXt, WuerstchenPrior

    decoder = WuerstchenDiffNeXt(
        c_cond=TEXT, c_r=8, c_hidden=[16], nhead=[2], blocks=[1], level_config=["CTA"], inject_effnet=[True], effnet_embd=4,
        clip_embd=TEXT,
    )  # fmt: skip
    return {
        "tokenizer": clip_tokenizer(),
        "text_encoder": clip_text(),
        "decoder": decoder,
        "scheduler": make_scheduler("DDPMWuerstchenScheduler"),
        "vqgan": PaellaVQModel(levels=2, bottleneck_blocks=1, embed_dim=16, num_vq_embeddings=32),
        "prior_tokenizer": clip_tokenizer(),
        "prior_text_encoder": clip_text(),
        "prior_prior": WuerstchenPrior(c_in=4, c=16, c_cond=TEXT, c_r=8, depth=1, nhead=2),
        "prior_scheduler": make_scheduler("DDPMWuerstchenScheduler"),
    }


_PRIOR: Final[Mapping[str, Any]] = {"prior_num_inference_steps": 4}
#: As `tiny_newer_pipelines.ARGUMENTS`.
ARGUMENTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "kandinsky": _PRIOR,
    "kandinsky22": _PRIOR,
    "wuerstchen": {**_PRIOR, "prior_guidance_scale": 4.0, "decoder_guidance_scale": 2.0},
}
