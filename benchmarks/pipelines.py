"""Tiny random pipelines of several structures: the largest difference per pixel from diffusers after four steps.

python benchmarks/pipelines.py [STRUCTURE ...]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from qeff_framework import QEFFDiffusionPipeline, load_compiled
from tests.pipelines import tiny_stable_diffusion, tiny_text_encoder, tiny_tokenizer, tiny_vae


def _flow() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler()


def _t5_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in letters)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=8
    )


def _t5(kind: str = "T5EncoderModel", size: int = 16) -> Any:
    import transformers

    config = transformers.T5Config(d_model=size, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=64)
    return getattr(transformers, kind)(config)


def _clip_with_projection() -> Any:
    from transformers import CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(tiny_text_encoder(projection_dim=16).config)


def _flux_vae(channels: int = 4) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[8], norm_num_groups=4, latent_channels=channels, layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"], up_block_types=["UpDecoderBlock2D"], sample_size=32,
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5,
    )  # fmt: skip


def stable_diffusion_2() -> tuple[Any, dict[str, Any]]:
    """Predicts velocities."""
    from diffusers import EulerDiscreteScheduler

    pipeline = tiny_stable_diffusion()
    pipeline.scheduler = EulerDiscreteScheduler(prediction_type="v_prediction")
    return pipeline, {"height": 64, "width": 64}


def stable_diffusion_1() -> tuple[Any, dict[str, Any]]:
    """One text encoder and a UNet."""
    return tiny_stable_diffusion(), {"height": 64, "width": 64}


def stable_diffusion_xl() -> tuple[Any, dict[str, Any]]:
    """Two text encoders."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, sample_size=8, cross_attention_dim=32,
        attention_head_dim=(2, 2), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), use_linear_projection=True,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time", transformer_layers_per_block=(1, 1),
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=16 + 6 * 8,
    )  # fmt: skip
    pipeline = StableDiffusionXLPipeline(
        vae=tiny_vae(), text_encoder=tiny_text_encoder(), text_encoder_2=_clip_with_projection(), unet=unet,
        tokenizer=tiny_tokenizer(), tokenizer_2=tiny_tokenizer(), scheduler=EulerDiscreteScheduler(),
    )  # fmt: skip
    return pipeline, {"height": 64, "width": 64}


def stable_diffusion_3() -> tuple[Any, dict[str, Any]]:
    """Three text encoders and a transformer."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=32, patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=32,
    )  # fmt: skip
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=_flow(), vae=_flux_vae(), text_encoder=_clip_with_projection(),
        text_encoder_2=_clip_with_projection(), text_encoder_3=_t5(size=32), tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(), tokenizer_3=_t5_tokenizer(),
    )  # fmt: skip
    return pipeline, {"height": 32, "width": 32, "max_sequence_length": 16}


def flux() -> tuple[Any, dict[str, Any]]:
    """A transformer that takes the guidance as a number."""
    from diffusers import FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    )  # fmt: skip
    pipeline = FluxPipeline(
        transformer=transformer, scheduler=_flow(), vae=_flux_vae(), text_encoder=tiny_text_encoder(),
        text_encoder_2=_t5(size=32), tokenizer=tiny_tokenizer(), tokenizer_2=_t5_tokenizer(),
    )  # fmt: skip
    return pipeline, {"height": 16, "width": 16, "max_sequence_length": 16}


def pixart() -> tuple[Any, dict[str, Any]]:
    """A transformer over T5 texts."""
    from diffusers import DDIMScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(
        sample_size=32, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2, caption_channels=16,
        in_channels=4, cross_attention_dim=16, out_channels=8, norm_type="ada_norm_single", use_additional_conditions=False,
    )  # fmt: skip
    pipeline = PixArtAlphaPipeline(
        transformer=transformer,
        scheduler=DDIMScheduler(),
        vae=tiny_vae(),
        text_encoder=_t5(),
        tokenizer=_t5_tokenizer(),
    )
    return pipeline, {"height": 256, "width": 256, "max_sequence_length": 16}


def wan() -> tuple[Any, dict[str, Any]]:
    """A video."""
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=16,
        freq_dim=32, ffn_dim=32, num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    pipeline = WanPipeline(
        transformer=transformer,
        scheduler=_flow(),
        vae=vae,
        text_encoder=_t5("UMT5EncoderModel"),
        tokenizer=_t5_tokenizer(),
    )
    return pipeline, {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 16}


STRUCTURES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    each.__name__: each
    for each in (stable_diffusion_1, stable_diffusion_2, stable_diffusion_xl, stable_diffusion_3, flux, pixart, wan)
}


def measure(name: str) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    pipeline, sizes = STRUCTURES[name]()
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    pipeline.set_progress_bar_config(disable=True)
    asked: dict[str, Any] = {"prompt": "a lighthouse", "num_inference_steps": 4, "output_type": "np", **sizes}

    def pictures(run: Any) -> Any:
        output = run(**asked, generator=torch.Generator().manual_seed(1))
        return np.asarray(output[0])

    started = time.process_time()
    with tempfile.TemporaryDirectory() as directory:
        compiled = QEFFDiffusionPipeline(pipeline).compile("ort_sim", compile_dir=f"{directory}/{name}", **sizes)
        took = time.process_time() - started
        with load_compiled(compiled.directory) as runner:
            found, expected = pictures(runner), pictures(pipeline)
    error = float(np.abs(found - expected).max())
    spread = float(expected.std())
    programs = len(compiled.programs)
    return f"{name}: error {error:.1e} (spread of pixels {spread:.2f}), {programs} programs, compiled in {took:.1f} s"


if __name__ == "__main__":
    for structure in sys.argv[1:] or STRUCTURES:
        try:
            print(measure(structure), flush=True)
        except Exception as error:  # noqa: BLE001 - a table of all structures is wanted
            print(f"{structure}: {type(error).__name__}: {str(error)[:600]}", flush=True)
