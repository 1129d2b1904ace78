"""Tiny vision-language models, and what Transformers generates with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessorPil,
    MllamaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    ResNetConfig,
    ResNetForImageClassification,
    SiglipVisionConfig,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

IMAGE_TOKEN, VIDEO_TOKEN = 63, 62
NEW_TOKENS = 8
#: Writes conversations of images and texts for the tokenizer of `saved_llava`.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% for part in m.content %}{{ '<image> ' if part.type == 'image' else part.text + ' ' }}"
    "{% endfor %}{% endfor %}"
)
_TEXT: Mapping[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
_VISION: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}
Image = dict[str, torch.Tensor]


def llava() -> tuple[PreTrainedModel, Image]:
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_VISION), text_config=LlamaConfig(**_TEXT), image_token_id=IMAGE_TOKEN
    )
    return LlavaForConditionalGeneration(config), {"pixel_values": torch.zeros(1, 3, 28, 28)}


def gemma3() -> tuple[PreTrainedModel, Image]:
    """The tokens of an image see each other, in windows too."""
    text = Gemma3TextConfig(
        **_TEXT,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=8,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**_VISION),
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        mm_tokens_per_image=4,
        tie_word_embeddings=False,
    )
    return Gemma3ForConditionalGeneration(config), {"pixel_values": torch.zeros(1, 3, 28, 28)}


def qwen3_vl() -> tuple[PreTrainedModel, Image]:
    """Positions of three axes, patches instead of images, and features for the first layers."""
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "out_hidden_size": 32,
        "patch_size": 4,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "deepstack_visual_indexes": [0, 1],
        "num_position_embeddings": 16,
    }
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    config = Qwen3VLConfig(
        vision_config=vision,
        text_config={**_TEXT, "rope_parameters": rope},
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=61,
        vision_end_token_id=60,
    )
    image = {"pixel_values": torch.zeros(4 * 6, 3 * 2 * 16), "image_grid_thw": torch.tensor([[1, 4, 6]])}
    return Qwen3VLForConditionalGeneration(config), image


def qwen2_5_vl() -> tuple[PreTrainedModel, Image]:
    """Patches in windows, then in one; positions of three axes, also for the patches."""
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "out_hidden_size": 32,
        "patch_size": 4,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={**_TEXT, "bos_token_id": 1, "eos_token_id": 2, "rope_parameters": rope},
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=61,
        vision_end_token_id=60,
    )
    image = {"pixel_values": torch.zeros(4 * 6, 3 * 2 * 16), "image_grid_thw": torch.tensor([[1, 4, 6]])}
    return Qwen2_5_VLForConditionalGeneration(config), image


def mllama() -> tuple[PreTrainedModel, Image]:
    """The second layer of the decoder attends to images, each of one to four tiles."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "attention_heads": 4}
    vision = MllamaVisionConfig(
        **sizes,
        num_hidden_layers=2,
        num_global_layers=1,
        image_size=28,
        patch_size=14,
        intermediate_layers_indices=[0],
        vision_output_dim=64,
    )
    text = MllamaTextConfig(
        **sizes,
        vocab_size=64,
        num_hidden_layers=2,
        num_key_value_heads=2,
        cross_attention_layers=[1],
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = MllamaForConditionalGeneration(
        MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name.rpartition(".")[2]:
                parameter.fill_(1.0)
    return model, {}


class Processor:
    """Returns the tensors of an image, whatever the image."""

    def __init__(self, image: Image) -> None:
        self._image = image

    def __call__(self, images: Any, return_tensors: str) -> Image:
        assert return_tensors == "pt"
        assert len(images) == 1
        return self._image

    def save_pretrained(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "processor_config.json").write_text("{}")


class ProcessorOfVideos(Processor):
    """Returns the tensors of an image, or those of a video."""

    def __init__(self, image: Image, video: Image) -> None:
        super().__init__(image)
        self._video = video

    def __call__(self, images: Any = None, return_tensors: str = "pt", videos: Any = None) -> Image:
        return super().__call__(images, return_tensors) if videos is None else self._video


def built(make: Callable[[], tuple[PreTrainedModel, Image]]) -> tuple[PreTrainedModel, Image]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module, image = make()
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # so that the tokens depend on the whole prompt
                if not parameter.any():  # Gemma 3 projects images by zeros at first
                    torch.nn.init.normal_(parameter, std=0.4)
    module.eval().set_attn_implementation("eager")
    return module, image


def greedy(module: PreTrainedModel, prompt: list[int], images: list[Image], video: Image | None = None) -> list[int]:
    """What Transformers answers. `module` stays as it was, so that every test finds the exports of the first."""
    # Qwen-VL keeps how far positions were moved by the images of the last text.
    moved = [part for part in module.modules() if hasattr(part, "rope_deltas")]
    before = [part.rope_deltas for part in moved]
    ids = torch.tensor([prompt])
    given: dict[str, Any] = {name: torch.cat([each[name] for each in images]) for name in (images[0] if images else ())}
    given |= video or {}
    known = inspect.signature(module.forward).parameters
    kinds = (ids == IMAGE_TOKEN).long() + 2 * (ids == VIDEO_TOKEN).long()
    given |= {name: kinds for name in ("token_type_ids", "mm_token_type_ids") if name in known}
    with torch.no_grad():
        output = module.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **given,
        )
    for part, value in zip(moved, before, strict=True):
        part.rope_deltas = value
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


def shaded(image: Image, seed: int) -> Image:
    """An image of the same size with random pixels."""
    generator = torch.Generator().manual_seed(seed)
    return {**image, "pixel_values": torch.randn(image["pixel_values"].shape, generator=generator)}


def qwen_film(seed: int, gap: float) -> Image:
    """Four random frames for `qwen2_5_vl`, of 8 tokens; two of them stand `gap` seconds behind those before."""
    return {
        "pixel_values_videos": torch.randn(2 * 4 * 4, 3 * 2 * 16, generator=torch.Generator().manual_seed(seed)),
        "video_grid_thw": torch.tensor([[2, 4, 4]]),
        "second_per_grid_ts": torch.tensor([gap]),
    }


def saved_llava(module: PreTrainedModel, folder: Path) -> LlavaProcessor:
    """Saves the model with a word-level tokenizer and an image processor."""
    words = {f"w{index}": index for index in range(IMAGE_TOKEN)} | {"<image>": IMAGE_TOKEN}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w1", pad_token="w0")
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=fast,
        patch_size=7,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    module.save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor


def saved_mllama(module: PreTrainedModel, folder: Path) -> MllamaProcessor:
    """Saves the model with a word-level tokenizer and an image processor."""
    words = {f"w{index}": index for index in range(IMAGE_TOKEN)} | {"<|image|>": IMAGE_TOKEN}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w1", pad_token="w0", bos_token="w1")
    fast.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    processor = MllamaProcessor(MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=4), fast)
    module.save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor


def resnet() -> tuple[PreTrainedModel, CLIPImageProcessorPil]:
    """A classifier of four classes, and a processor of images."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = ResNetForImageClassification(config).eval()
    return module, CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def clip_of_words() -> tuple[PreTrainedModel, CLIPProcessor]:
    """Images and texts of the words w0 to w19 in one space; the last word ends a text."""
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(20)}, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    processor = CLIPProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w1", pad_token="w0"),
    )
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 19, "pad_token_id": 0},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIPModel(config).eval(), processor


def picture(path: Path, shade: int) -> Path:
    pixels = np.random.default_rng(shade).integers(0, shade + 1, (40, 50, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path)
    return path
