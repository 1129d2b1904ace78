"""Components of diffusers' pipelines with tiny random weights: texts, autoencoders, schedulers, denoisers."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any, Final

#: Width of the text encoders; of two that stand side by side the sum.
TEXT: Final = 16
_PROMPT_TOKENS: Final = 8
_SPECIAL: Final = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_CHAT: Final = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
#: For messages that are lists of parts.
_PARTS_CHAT: Final = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"

# --- texts ----------------------------------------------------------------------------------------------------------------


def byte_words() -> list[str]:
    """A letter for each byte."""
    untyped: Any = importlib.import_module("transformers.convert_slow_tokenizer")
    return list(untyped.bytes_to_unicode().values())


def clip_tokenizer(length: int = _PROMPT_TOKENS) -> Any:
    """Reads bytes."""
    from transformers import CLIPTokenizer

    letters = byte_words()
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=length)


def clip_text(kind: str = "CLIPTextModel", **changed: Any) -> Any:
    """A text encoder for `clip_tokenizer`."""
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=514, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=_PROMPT_TOKENS, bos_token_id=512, eos_token_id=513, pad_token_id=513, projection_dim=TEXT,
        **changed,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


def letters_tokenizer(length: int = 16, *, parts_of_messages: bool = False, **special: Any) -> Any:
    """Reads letters, and has a chat template that is nothing but the contents."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "</s>", "<unk>", "<s>", *_SPECIAL, "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram([(word, -float(number > 6)) for number, word in enumerate(words)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer_class: Any = transformers.PreTrainedTokenizerFast  # untyped
    return tokenizer_class(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>",  # noqa: S106
        model_max_length=length, chat_template=_PARTS_CHAT if parts_of_messages else _CHAT, **special,
    )  # fmt: skip


def t5_text(kind: str = "T5EncoderModel", size: int = TEXT) -> Any:
    """A text encoder for `letters_tokenizer`."""
    import transformers

    config_class = transformers.UMT5Config if kind.startswith("UMT5") else transformers.T5Config
    config = config_class(d_model=size, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=64)
    return getattr(transformers, kind)(config)


def decoder_text(kind: str, config: str, **changed: Any) -> Any:
    """A decoder whose hidden states are taken."""
    import transformers

    sizes = {
        "vocab_size": 64, "hidden_size": TEXT, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 512, "pad_token_id": 0,
    }  # fmt: skip
    return getattr(transformers, kind)(getattr(transformers, config)(**{**sizes, **changed}))


def qwen25_vl(tokens_of: Any = None) -> Any:
    """A text encoder that could also read pictures, and does where `tokens_of`, a tokenizer, has tokens that stand for them."""
    import transformers

    special: dict[str, Any] = {
        "image_token_id": 60,
        "video_token_id": 61,
        "vision_start_token_id": 62,
        "vision_end_token_id": 63,
    }
    if tokens_of is not None:
        names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
        special = dict(zip(special, tokens_of.convert_tokens_to_ids(list(names)), strict=True))

    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 64, "hidden_size": TEXT, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "max_position_embeddings": 1024, "pad_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": TEXT},
        **special,
    )  # fmt: skip
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl(layers: int, kind: str = "Qwen3VLModel") -> Any:
    """A text encoder that could also read pictures, by default without a head."""
    import transformers

    config = transformers.Qwen3VLConfig(
        text_config={
            "vocab_size": 64, "hidden_size": TEXT, "intermediate_size": 32, "num_hidden_layers": layers,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": TEXT,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [],
        },
        image_token_id=60, video_token_id=61, vision_start_token_id=62, vision_end_token_id=63,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


# --- pictures -------------------------------------------------------------------------------------------------------------


def vae(channels: int = 4, blocks: int = 4, **changed: Any) -> Any:
    """An autoencoder that makes sides shorter by 2 to the power of ``blocks - 1``."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[8] * blocks, norm_num_groups=4, latent_channels=channels, layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * blocks, up_block_types=["UpDecoderBlock2D"] * blocks, **changed,
    )  # fmt: skip


def flow_vae(channels: int = 4, blocks: int = 1) -> Any:
    """An autoencoder without the convolutions around the latents."""
    return vae(channels, blocks, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5)


def video_vae() -> Any:
    """An autoencoder of videos of Wan."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def make_scheduler(kind: str, **changed: Any) -> Any:
    """A scheduler of diffusers by its name."""
    import diffusers

    return getattr(diffusers, kind)(**changed)


flow_scheduler = partial(make_scheduler, "FlowMatchEulerDiscreteScheduler")


# --- denoisers ------------------------------------------------------------------------------------------------------------


def unet(kind: str = "UNet2DConditionModel", **changed: Any) -> Any:
    """Two blocks of 8 and 16 channels over latents of 8 x 8."""
    import diffusers

    sizes = {
        "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "cross_attention_dim": TEXT,
        "attention_head_dim": 2, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    }  # fmt: skip
    if kind == "UNet2DConditionModel":
        sizes |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "sample_size": 8}
    return getattr(diffusers, kind)(**{**sizes, **changed})


def make_model(kind: str, **sizes: Any) -> Any:
    """A model of diffusers by its name."""
    import diffusers

    return getattr(diffusers, kind)(**sizes)
