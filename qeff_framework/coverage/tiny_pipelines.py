"""Pipelines of diffusers with tiny random weights: the components of each type, by the names that the pipeline gives them.

A type of diffusers' own mappings is named as there; the same components in the mapping of another task are named
``TYPE/image-to-image`` and ``TYPE/inpainting``.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from qeff_framework.coverage import tiny_newer_pipelines, tiny_reading_pipelines, tiny_staged_pipelines
from qeff_framework.coverage.tiny_components import (
    TEXT,
    clip_text,
    clip_tokenizer,
    decoder_text,
    flow_scheduler,
    flow_vae,
    letters_tokenizer,
    make_model,
    make_scheduler,
    qwen25_vl,
    t5_text,
    unet,
    vae,
    video_vae,
)
from qeff_framework.coverage.tiny_newer_pipelines import (
    cascade,
    flux2,
    flux2_vae,
    helios,
    ideogram4,
    prx,
    z_image_controlnet,
    z_image_omni,
)
from qeff_framework.coverage.tiny_reading_pipelines import (
    anyflow_far,
    glm_image,
    krea2,
    nucleus_moe,
    qwen_image_21,
    qwen_image_edit,
)
from qeff_framework.coverage.tiny_staged_pipelines import kandinsky, kandinsky22, wuerstchen
from qeff_framework.diffusion.arguments import PICTURES
from qeff_framework.sources.diffusers_library import require_diffusers

Parts = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TinyPipeline:
    """A pipeline, and what it is compiled and called with."""

    pipeline: Any
    #: Of ``compile``.
    sizes: Mapping[str, Any]
    #: Further arguments of the calls, which the programs are recorded with.
    arguments: Mapping[str, Any] = field(default_factory=dict)


# --- mappings of diffusers ------------------------------------------------------------------------------------------------

#: Settings of a type that its users know by another name.
_SETTINGS: Final = ("stable-diffusion/2", "flux/schnell")
_VARIANTS: Final = {"image-to-image": "IMAGE2IMAGE", "inpainting": "INPAINT", "image-to-video": "IMAGE2VIDEO"}


def pipeline_classes() -> dict[str, type[Any]]:
    """Every type of diffusers' mappings of pictures and videos from texts, and of those that also read pictures.

    Raises:
        InputError: diffusers is not installed.
    """
    require_diffusers()
    found = {**_mapping("TEXT2IMAGE"), **_mapping("TEXT2VIDEO")}
    found |= {name: found[name.partition("/")[0]] for name in _SETTINGS}
    for title, name in _VARIANTS.items():
        found |= {f"{key}/{title}": kind for key, kind in _mapping(name).items()}
    return found


def _mapping(name: str) -> dict[str, type[Any]]:
    from diffusers.pipelines import auto_pipeline

    return dict(getattr(auto_pipeline, f"AUTO_{name}_PIPELINES_MAPPING"))


def is_built(name: str) -> bool:
    """Whether there are components for the type, and what these need is installed."""
    kind = name.partition("/")[0]
    if kind in tiny_reading_pipelines.WITH_TORCHVISION and importlib.util.find_spec("torchvision") is None:
        return False
    return name in _BUILT or kind in _BUILT


def tiny_pipeline(name: str) -> TinyPipeline:
    """The pipeline of a type that `is_built`, with the same weights each time."""
    import torch

    kind = pipeline_classes()[name]
    build, sizes = _BUILT.get(name) or _BUILT[name.partition("/")[0]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = build()
        taken = inspect.signature(kind.__init__).parameters
        pipeline = kind(**{part: value for part, value in parts.items() if part in taken})
        for module in pipeline.components.values():
            if isinstance(module, torch.nn.Module):
                module.eval()
                _fill(module)
    pipeline.set_progress_bar_config(disable=True)
    called = inspect.signature(kind.__call__).parameters
    further = {**_FURTHER, **_ARGUMENTS.get(name.partition("/")[0], {})}
    arguments = {key: value for key, value in further.items() if key in called}
    if "max_area" in called:
        arguments["max_area"] = sizes["height"] * sizes["width"]
    if "/" in name or "control" in name:
        arguments |= {key: picture(sizes) for key in PICTURES if key in called}
    if "/" in name and "video" in called:
        arguments["video"] = _frame(picture(sizes))
    given = {key: value for key, value in sizes.items() if key in (*called, *_PICTURE_SIZES, "guidance")}
    return TinyPipeline(pipeline=pipeline, sizes=given, arguments=arguments)


def picture(sizes: Mapping[str, Any]) -> Any:
    """Random colours, the left half of them dark."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (sizes["height"], sizes["width"], 3), dtype=np.uint8)
    pixels[:, : sizes["width"] // 2] //= 8
    return Image.fromarray(pixels)


def _frame(picture: Any) -> Any:
    """A video of one frame."""
    import numpy as np
    import torch

    pixels = np.asarray(picture, dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None, None]


def _fill(module: Any) -> None:
    """Numbers for parameters that a constructor leaves empty or zero: an output of zeros depends on nothing."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            if not torch.isfinite(parameter).all() or not parameter.any():
                parameter.normal_(0.0, 0.05)


# --- types ----------------------------------------------------------------------------------------------------------------

_NO_CHECKER: Final = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _stable_diffusion(**changed: Any) -> Parts:
    return {
        "vae": vae(),
        "text_encoder": clip_text(),
        "tokenizer": clip_tokenizer(),
        "unet": unet(**changed),
        "scheduler": make_scheduler("DDIMScheduler", clip_sample=False, steps_offset=1),
        **_NO_CHECKER,
    }


def _stable_diffusion_2() -> Parts:
    """Predicts velocities, with linear projections around attention."""
    return {
        **_stable_diffusion(use_linear_projection=True, attention_head_dim=(2, 4)),
        "text_encoder": clip_text(hidden_act="gelu"),
        "scheduler": make_scheduler("DDIMScheduler", clip_sample=False, steps_offset=1, prediction_type="v_prediction"),
    }


def _with_controlnet(build: Callable[[], Parts], kind: str = "ControlNetModel", **changed: Any) -> Parts:
    net = unet(kind, conditioning_embedding_out_channels=(8, 8, 8, 8), **changed)
    return {**build(), "controlnet": net}


_XL_SIZES: Final[Mapping[str, Any]] = {
    "cross_attention_dim": 2 * TEXT,
    "attention_head_dim": (2, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "transformer_layers_per_block": (1, 1),
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": TEXT + 6 * 8,
}


def _stable_diffusion_xl() -> Parts:
    return {
        "vae": vae(),
        "text_encoder": clip_text(),
        "text_encoder_2": clip_text("CLIPTextModelWithProjection"),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "unet": unet(**_XL_SIZES),
        "scheduler": make_scheduler("EulerDiscreteScheduler"),
    }


def _stable_diffusion_xl_union() -> Parts:
    net = unet(
        "ControlNetUnionModel", conditioning_embedding_out_channels=(8, 8, 8, 8), num_trans_channel=8, num_proj_channel=8,
        num_trans_head=2, **{**_XL_SIZES, "attention_head_dim": (2, 2)},
    )  # fmt: skip
    return {**_stable_diffusion_xl(), "controlnet": net}


_SD3_SIZES: Final[Mapping[str, Any]] = {
    "sample_size": 32, "patch_size": 1, "in_channels": 16, "out_channels": 16, "num_layers": 2, "attention_head_dim": 8,
    "num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": 2 * TEXT,
    "pooled_projection_dim": 2 * TEXT,
}  # fmt: skip


def _stable_diffusion_3() -> Parts:
    return {
        "transformer": make_model("SD3Transformer2DModel", **_SD3_SIZES),
        "scheduler": flow_scheduler(),
        "vae": flow_vae(16),
        "text_encoder": clip_text("CLIPTextModelWithProjection"),
        "text_encoder_2": clip_text("CLIPTextModelWithProjection"),
        "text_encoder_3": t5_text(size=2 * TEXT),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "tokenizer_3": letters_tokenizer(),
    }


def _stable_diffusion_3_controlnet(**changed: Any) -> Parts:
    sizes = {**_SD3_SIZES, "num_layers": 1, **changed}
    return {**_stable_diffusion_3(), "controlnet": make_model("SD3ControlNetModel", **sizes)}


_FLUX_SIZES: Final[Mapping[str, Any]] = {
    "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": TEXT, "axes_dims_rope": [4, 4, 8],
}  # fmt: skip


def _flux(kind: str = "FluxTransformer2DModel", **changed: Any) -> Parts:
    return {
        "transformer": make_model(kind, **{**_FLUX_SIZES, **changed}),
        "scheduler": flow_scheduler(),
        "vae": flow_vae(),
        "text_encoder": clip_text(),
        "text_encoder_2": t5_text(size=32),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": letters_tokenizer(),
    }


def _flux_controlnet() -> Parts:
    return {
        **_flux(guidance_embeds=True),
        "controlnet": make_model("FluxControlNetModel", **_FLUX_SIZES, guidance_embeds=True),
    }


def _flux2_klein() -> Parts:
    transformer = make_model(
        "Flux2Transformer2DModel", patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=3 * TEXT, timestep_guidance_channels=32, axes_dims_rope=[4, 4, 4, 4],
        guidance_embeds=False,
    )  # fmt: skip
    encoder = decoder_text("Qwen3ForCausalLM", "Qwen3Config", num_hidden_layers=28)
    return {
        "transformer": transformer,
        "scheduler": flow_scheduler(),
        "vae": flux2_vae(),
        "text_encoder": encoder,
        "tokenizer": letters_tokenizer(),
    }


def _chroma() -> Parts:
    transformer = make_model(
        "ChromaTransformer2DModel", patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=TEXT, axes_dims_rope=[4, 4, 8], approximator_hidden_dim=32,
        approximator_layers=1, approximator_num_channels=16,
    )  # fmt: skip
    return {**_t5_parts(transformer, flow_vae()), "scheduler": flow_scheduler()}


def _t5_parts(transformer: Any, autoencoder: Any, kind: str = "T5EncoderModel", size: int = TEXT) -> Parts:
    return {
        "transformer": transformer,
        "vae": autoencoder,
        "text_encoder": t5_text(kind, size),
        "tokenizer": letters_tokenizer(),
    }


def _pixart(**changed: Any) -> Parts:
    transformer = make_model(
        "PixArtTransformer2DModel", sample_size=32, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2,
        caption_channels=TEXT, in_channels=4, cross_attention_dim=16, out_channels=8, norm_type="ada_norm_single",
        use_additional_conditions=False, **changed,
    )  # fmt: skip
    return {**_t5_parts(transformer, vae()), "scheduler": make_scheduler("DDIMScheduler")}


def _sana() -> Parts:
    transformer = make_model(
        "SanaTransformer2DModel", patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
        attention_head_dim=8, num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
        caption_channels=TEXT, sample_size=32,
    )  # fmt: skip
    autoencoder = make_model(
        "AutoencoderDC", in_channels=3, latent_channels=4, attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"), decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
        decoder_act_fns="silu", scaling_factor=0.4,
    )  # fmt: skip
    return {
        "transformer": transformer,
        "vae": autoencoder,
        "text_encoder": decoder_text("Gemma2Model", "Gemma2Config"),
        "tokenizer": letters_tokenizer(length=512),
        "scheduler": flow_scheduler(shift=3.0),
    }


def _qwen_image() -> Parts:
    transformer = make_model("QwenImageTransformer2DModel", **_QWEN_SIZES, guidance_embeds=False)
    autoencoder = make_model(
        "AutoencoderKLQwenImage", base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return {
        "transformer": transformer,
        "scheduler": flow_scheduler(),
        "vae": autoencoder,
        "text_encoder": qwen25_vl(),
        "tokenizer": letters_tokenizer(length=1024),
    }


_QWEN_SIZES: Final[Mapping[str, Any]] = {
    "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": TEXT, "axes_dims_rope": (8, 4, 4),
}  # fmt: skip


def _qwen_image_controlnet() -> Parts:
    net = make_model("QwenImageControlNetModel", **{**_QWEN_SIZES, "num_layers": 1})
    return {**_qwen_image(), "controlnet": net}


def _auraflow() -> Parts:
    transformer = make_model(
        "AuraFlowTransformer2DModel", sample_size=32, patch_size=2, in_channels=4, num_mmdit_layers=1,
        num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32,
        joint_attention_dim=TEXT, out_channels=4, pos_embed_max_size=256,
    )  # fmt: skip
    return {**_t5_parts(transformer, vae(blocks=2), "UMT5EncoderModel"), "scheduler": flow_scheduler()}


def _lumina(kind: str = "Lumina2Transformer2DModel", **changed: Any) -> Parts:
    transformer = make_model(
        kind, sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_attention_heads=3,
        num_kv_heads=1, multiple_of=16, ffn_dim_multiplier=None, norm_eps=1e-5, scaling_factor=1.0, **changed,
    )  # fmt: skip
    return {
        "transformer": transformer,
        "vae": flow_vae(),
        "text_encoder": decoder_text("Gemma2Model", "Gemma2Config"),
        "tokenizer": letters_tokenizer(),
        "scheduler": flow_scheduler(),
    }


def _cogview4(**changed: Any) -> Parts:
    transformer = make_model(
        "CogView4Transformer2DModel", **{
            "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2,
            "out_channels": 4, "text_embed_dim": TEXT, "time_embed_dim": 8, "condition_dim": 4, **changed,
        }
    )  # fmt: skip
    shifted = flow_scheduler(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return {
        "transformer": transformer,
        "vae": vae(blocks=2),
        "text_encoder": decoder_text("GlmModel", "GlmConfig"),
        "tokenizer": letters_tokenizer(length=64),
        "scheduler": shifted,
    }


def _cogview3() -> Parts:
    transformer = make_model(
        "CogView3PlusTransformer2DModel", patch_size=2, in_channels=4, num_layers=1, attention_head_dim=4,
        num_attention_heads=2, out_channels=4, text_embed_dim=TEXT, time_embed_dim=8, condition_dim=2, pos_embed_max_size=8,
        sample_size=8,
    )  # fmt: skip
    return {**_t5_parts(transformer, vae(blocks=2)), "scheduler": make_scheduler("CogVideoXDDIMScheduler")}


def _z_image(**changed: Any) -> Parts:
    transformer = make_model(
        "ZImageTransformer2DModel", all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=2,
        n_refiner_layers=1, n_heads=2, n_kv_heads=2, norm_eps=1e-5, qk_norm=True, cap_feat_dim=TEXT, rope_theta=256.0,
        t_scale=1000.0, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32], **changed,
    )  # fmt: skip
    return {
        "transformer": transformer,
        "vae": vae(16, 2, scaling_factor=0.4, shift_factor=0.1),
        "text_encoder": decoder_text("Qwen3Model", "Qwen3Config"),
        "tokenizer": letters_tokenizer(),
        "scheduler": flow_scheduler(),
    }


def _ovis() -> Parts:
    transformer = make_model(
        "OvisImageTransformer2DModel", patch_size=1, in_channels=16, out_channels=16, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=TEXT, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return {
        "transformer": transformer,
        "vae": flow_vae(),
        "text_encoder": decoder_text("Qwen3Model", "Qwen3Config"),
        "tokenizer": letters_tokenizer(length=512),
        "scheduler": flow_scheduler(),
    }


def _deepfloyd() -> Parts:
    denoiser = make_model(
        "UNet2DConditionModel", sample_size=16, layers_per_block=1, block_out_channels=[32, 64],
        down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"], in_channels=3, out_channels=6,
        cross_attention_dim=32, encoder_hid_dim=TEXT, attention_head_dim=8, addition_embed_type="text",
        addition_embed_type_num_heads=2, cross_attention_norm="group_norm", resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )  # fmt: skip
    scheduler = make_scheduler(
        "DDPMScheduler", beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True
    )
    return {
        "tokenizer": letters_tokenizer(length=77),
        "text_encoder": t5_text(),
        "unet": denoiser,
        "scheduler": scheduler,
        "watermarker": None,
        **_NO_CHECKER,
    }


def _kandinsky3() -> Parts:
    denoiser = make_model(
        "Kandinsky3UNet", in_channels=4, time_embedding_dim=4, groups=2, attention_head_dim=4, layers_per_block=3,
        block_out_channels=(32, 64), cross_attention_dim=4, encoder_hid_dim=TEXT,
    )  # fmt: skip
    movq = make_model(
        "VQModel", block_out_channels=(32, 64), latent_channels=4, num_vq_embeddings=12, vq_embed_dim=4,
        norm_type="spatial", down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    )  # fmt: skip
    return {
        "tokenizer": letters_tokenizer(length=128),
        "text_encoder": t5_text(),
        "unet": denoiser,
        "movq": movq,
        "scheduler": make_scheduler(
            "DDPMScheduler", beta_schedule="squaredcos_cap_v2", clip_sample=True, thresholding=False
        ),
    }


def _hunyuan() -> Parts:
    from transformers import BertConfig, BertModel

    transformer = make_model(
        "HunyuanDiT2DModel", sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2,
        in_channels=4, cross_attention_dim=TEXT, cross_attention_dim_t5=TEXT, pooled_projection_dim=16, hidden_size=16,
        activation_fn="gelu-approximate", text_len=77, text_len_t5=256,
    )  # fmt: skip
    encoder = BertModel(
        BertConfig(
            vocab_size=64,
            hidden_size=TEXT,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            pad_token_id=0,
        )
    )
    return {
        "transformer": transformer,
        "vae": vae(),
        "text_encoder": encoder,
        "tokenizer": letters_tokenizer(length=77),
        "text_encoder_2": t5_text(),
        "tokenizer_2": letters_tokenizer(length=256),
        "scheduler": make_scheduler("DDPMScheduler"),
        **_NO_CHECKER,
    }


_WAN_SIZES: Final[Mapping[str, Any]] = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16, "out_channels": 16,
    "text_dim": TEXT, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "cross_attn_norm": True, "rope_max_seq_len": 32,
}  # fmt: skip


def _wan(
    kind: str = "WanTransformer3DModel", scheduler: str = "FlowMatchEulerDiscreteScheduler", **changed: Any
) -> Parts:
    return {
        "transformer": make_model(kind, **{**_WAN_SIZES, **changed}),
        "scheduler": make_scheduler(scheduler),
        "vae": video_vae(),
        "text_encoder": t5_text("UMT5EncoderModel"),
        "tokenizer": letters_tokenizer(),
    }


def _wan_of_pictures() -> Parts:
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=16, projection_dim=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, intermediate_size=16,
        patch_size=8,
    )  # fmt: skip
    return {
        **_wan(in_channels=36, image_dim=16),
        "image_encoder": transformers.CLIPVisionModel(config),
        "image_processor": transformers.CLIPImageProcessorPil(
            crop_size={"height": 32, "width": 32}, size={"shortest_edge": 32}
        ),
    }


def _ltx() -> Parts:
    transformer = make_model(
        "LTXVideoTransformer3DModel", in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4,
        attention_head_dim=8, cross_attention_dim=32, num_layers=1, caption_channels=TEXT,
    )  # fmt: skip
    autoencoder = make_model(
        "AutoencoderKLLTXVideo", latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1, patch_size_t=1, encoder_causal=True, decoder_causal=False,
    )  # fmt: skip
    autoencoder.use_framewise_encoding = autoencoder.use_framewise_decoding = False
    return {**_t5_parts(transformer, autoencoder), "scheduler": flow_scheduler()}


_SMALL: Final = {"height": 32, "width": 32}
_USUAL: Final = {"height": 64, "width": 64}
_TOKENS: Final = {"max_sequence_length": 16}
_VIDEO: Final = {**_SMALL, "num_frames": 5, **_TOKENS}
_XL_NET: Final = {**_XL_SIZES, "attention_head_dim": (2, 2)}

#: How the components of a type are made, and the sizes that it is compiled for.
_BUILT: Final[Mapping[str, tuple[Callable[[], Parts], Mapping[str, Any]]]] = {
    "stable-diffusion": (_stable_diffusion, _USUAL),
    "stable-diffusion/2": (_stable_diffusion_2, _USUAL),
    "stable-diffusion-pag": (_stable_diffusion, _USUAL),
    "stable-diffusion-controlnet": (partial(_with_controlnet, _stable_diffusion), _USUAL),
    "stable-diffusion-controlnet-pag": (partial(_with_controlnet, _stable_diffusion), _USUAL),
    "stable-diffusion-xl": (_stable_diffusion_xl, _USUAL),
    "stable-diffusion-xl-pag": (_stable_diffusion_xl, _USUAL),
    "stable-diffusion-xl-controlnet": (partial(_with_controlnet, _stable_diffusion_xl, **_XL_NET), _USUAL),
    "stable-diffusion-xl-controlnet-pag": (partial(_with_controlnet, _stable_diffusion_xl, **_XL_NET), _USUAL),
    "stable-diffusion-xl-controlnet-union": (_stable_diffusion_xl_union, _USUAL),
    "stable-diffusion-3": (_stable_diffusion_3, {**_SMALL, **_TOKENS}),
    "stable-diffusion-3-pag": (_stable_diffusion_3, _SMALL),
    "stable-diffusion-3-controlnet": (_stable_diffusion_3_controlnet, {**_SMALL, **_TOKENS}),
    "stable-diffusion-3-controlnet/inpainting": (
        partial(_stable_diffusion_3_controlnet, extra_conditioning_channels=1),
        {**_SMALL, **_TOKENS},
    ),
    "lcm": (
        lambda: {
            **_stable_diffusion(time_cond_proj_dim=8),
            "scheduler": make_scheduler("LCMScheduler", clip_sample=False),
        },
        {**_USUAL, "guidance": False},
    ),
    "if": (_deepfloyd, {"height": 16, "width": 16}),
    "hunyuan": (_hunyuan, _USUAL),
    "hunyuan-pag": (_hunyuan, _USUAL),
    "kandinsky3": (_kandinsky3, _SMALL),
    "pixart-alpha": (_pixart, {**_USUAL, **_TOKENS}),
    "pixart-sigma": (_pixart, {**_USUAL, **_TOKENS}),
    "pixart-sigma-pag": (_pixart, {**_USUAL, **_TOKENS}),
    "sana": (_sana, {**_SMALL, **_TOKENS}),
    "sana-pag": (_sana, {**_SMALL, **_TOKENS}),
    "auraflow": (_auraflow, {**_SMALL, **_TOKENS}),
    "flux": (partial(_flux, guidance_embeds=True), {**_SMALL, **_TOKENS}),
    "flux/schnell": (partial(_flux, guidance_embeds=False), {**_SMALL, **_TOKENS}),
    "flux-control": (partial(_flux, guidance_embeds=True, in_channels=32, out_channels=16), {**_SMALL, **_TOKENS}),
    "flux-controlnet": (_flux_controlnet, {**_SMALL, **_TOKENS}),
    "flux-kontext": (partial(_flux, guidance_embeds=True), {**_SMALL, **_TOKENS}),
    "flux-control/image-to-image": (
        partial(_flux, guidance_embeds=True, in_channels=32, out_channels=16),
        {**_SMALL, **_TOKENS},
    ),
    "flux2": (flux2, {**_USUAL, **_TOKENS}),
    "ideogram4": (ideogram4, {**_SMALL, **_TOKENS}),
    "prx": (prx, _SMALL),
    "cascade": (cascade, {"height": 128, "width": 128}),
    "helios": (helios, {**_VIDEO, "num_frames": 5}),
    "helios-pyramid": (partial(helios, stages=3), {**_VIDEO, "height": 64, "width": 64}),
    "z-image-controlnet": (lambda: z_image_controlnet(_z_image()), {**_SMALL, **_TOKENS}),
    "z-image-controlnet-inpaint": (lambda: z_image_controlnet(_z_image(), control=33), {**_SMALL, **_TOKENS}),
    "z-image-omni": (lambda: z_image_omni(_z_image(siglip_feat_dim=16)), {**_SMALL, **_TOKENS}),
    "flux2-klein": (_flux2_klein, {**_USUAL, **_TOKENS}),
    "lumina": (
        partial(_lumina, "LuminaNextDiT2DModel", learn_sigma=True, cross_attention_dim=TEXT),
        {**_SMALL, **_TOKENS},
    ),
    "lumina2": (partial(_lumina, axes_dim_rope=[4, 2, 2], cap_feat_dim=TEXT), {**_SMALL, **_TOKENS}),
    "chroma": (_chroma, {**_SMALL, **_TOKENS}),
    "cogview3": (_cogview3, {"height": 16, "width": 16, **_TOKENS}),
    "cogview4": (_cogview4, {**_SMALL, **_TOKENS}),
    "cogview4-control": (partial(_cogview4, in_channels=8), {**_SMALL, **_TOKENS}),
    "qwenimage": (_qwen_image, {**_SMALL, "max_sequence_length": 256}),
    "qwenimage-controlnet": (_qwen_image_controlnet, {**_SMALL, "max_sequence_length": 256}),
    "z-image": (_z_image, {**_SMALL, **_TOKENS}),
    "ovis": (_ovis, {**_SMALL, "max_sequence_length": 256}),
    "wan": (_wan, _VIDEO),
    "anyflow": (partial(_wan, "AnyFlowTransformer3DModel", "FlowMapEulerDiscreteScheduler"), _VIDEO),
    "ltx": (_ltx, {**_VIDEO, "num_frames": 9}),
    "wan-i2v/image-to-video": (_wan_of_pictures, _VIDEO),
    "kandinsky": (kandinsky, _USUAL),
    "kandinsky/inpainting": (partial(kandinsky, channels=9), _USUAL),
    "kandinsky22": (kandinsky22, _USUAL),
    "kandinsky22/inpainting": (partial(kandinsky22, channels=9), _USUAL),
    "wuerstchen": (wuerstchen, {"height": 128, "width": 128}),
    "qwenimage-edit": (qwen_image_edit, {"height": 64, "width": 64}),
    "qwenimage-edit-plus": (qwen_image_edit, {"height": 64, "width": 64}),
    "qwenimage-layered": (partial(qwen_image_edit, use_additional_t_cond=True, use_layer3d_rope=True), _USUAL),
    "qwenimage21": (qwen_image_21, {**_USUAL, **_TOKENS}),
    "krea2": (krea2, {**_SMALL, "max_sequence_length": 64}),
    "nucleusmoe-image": (nucleus_moe, _SMALL),
    "glm_image": (glm_image, _USUAL),
    "anyflow-far": (anyflow_far, _VIDEO),
}
#: Arguments without which a picture has a size of a table, or a prompt an introduction of hundreds of words.
_FURTHER: Final[Mapping[str, Any]] = {
    "use_resolution_binning": False,
    "_auto_resize": False,
    "complex_human_instruction": None,
}
_ARGUMENTS: Final = {
    **tiny_newer_pipelines.ARGUMENTS,
    **tiny_staged_pipelines.ARGUMENTS,
    **tiny_reading_pipelines.ARGUMENTS,
}
_PICTURE_SIZES: Final = ("height", "width")
