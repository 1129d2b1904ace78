"""Videos from files, beside Transformers with the checkpoint's own processor. Needs a torchvision that fits the installed torch."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from qeff_framework import QEFFAutoModelForImageTextToText, load_compiled
from tests.image_models import qwen2_5_vl, qwen3_vl
from tests.serving.running import serving
from tests.video_clips import written_clip

av = pytest.importorskip("av")
pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))  # type: ignore[arg-type]

_SPECIAL = ("<vision_end>", "<vision_start>", "<|video_pad|>", "<|image_pad|>")
_CHAT = (
    "{% for m in messages %}{% for part in m.content %}{{ 'START ' if part.type != 'text' }}"
    "{{ 'IMAGE ' if part.type == 'image' else 'VIDEO ' if part.type == 'video' else part.text + ' ' }}"
    "{{ 'END ' if part.type != 'text' }}{% endfor %}{% endfor %}"
)


def _tokenizer(special: tuple[str, ...], **names: str) -> PreTrainedTokenizerFast:
    """Words w0 to w59, and the tokens of 60 to 63 as the tiny models know them; times and frames become the word w1."""
    words = {f"w{number}": number for number in range(60)} | {word: 60 + n for n, word in enumerate(special)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="w1", pad_token="w0", extra_special_tokens=names
    )
    fast.add_special_tokens({"additional_special_tokens": [*special]})
    return fast


def _template(start: str, image: str, video: str, end: str) -> str:
    told = {"START ": start, "IMAGE ": image, "VIDEO ": video, "END ": end}
    text = _CHAT
    for word, token in told.items():
        text = text.replace(word, token)
    return text


def qwen(make: Callable[[], Any], family: str) -> tuple[Any, Any, dict[str, int]]:
    """Patches of two frames; positions that count seconds, or times in the text."""
    import transformers

    sizes = {"size": {"shortest_edge": 64, "longest_edge": 32 * 32 * 8}}
    patches = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    part = "Qwen2VL" if family == "Qwen2_5_VL" else family
    special = ("<|vision_end|>", "<|vision_start|>", "<|video_pad|>", "<|image_pad|>")
    processor = getattr(transformers, f"{family}Processor")(
        image_processor=transformers.Qwen2VLImageProcessor(**sizes, **patches),
        video_processor=getattr(transformers, f"{part}VideoProcessor")(**sizes, **patches),
        tokenizer=_tokenizer(special),
        chat_template=_template(special[1], special[3], special[2], special[0]),
    )
    return make()[0], processor, {"height": 32, "width": 48, "num_frames": 4}


def llava(family: str) -> tuple[Any, Any, dict[str, int]]:
    """Frames that are pooled; with a token for the end of a video, or without."""
    import transformers

    name = {"LlavaOnevision": "llava_onevision", "LlavaNextVideo": "llava_next_video"}[family]
    text = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 4, "image_size": 16, "patch_size": 4}
    config = AutoConfig.for_model(
        name,
        text_config=text,
        vision_config=vision,
        image_token_id=63,
        video_token_id=62,
        image_grid_pinpoints=[[16, 16]],
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )
    sizes = {"size": {"height": 16, "width": 16}}
    strategy = {
        "LlavaOnevision": {"num_image_tokens": 16},
        "LlavaNextVideo": {"patch_size": 4, "num_additional_image_tokens": 1},
    }
    special = ("<end>", "<start>", "<video>", "<image>")
    cropped = (
        {} if family == "LlavaOnevision" else {"crop_size": {"height": 16, "width": 16}, "size": {"shortest_edge": 16}}
    )
    images = getattr(
        transformers, {"LlavaOnevision": "LlavaOnevisionImageProcessor"}.get(family, "LlavaNextImageProcessor")
    )
    processor = getattr(transformers, f"{family}Processor")(
        image_processor=images(**{**sizes, **cropped}, image_grid_pinpoints=[[16, 16]]),
        video_processor=getattr(transformers, f"{family}VideoProcessor")(**{**sizes, **cropped}),
        tokenizer=_tokenizer(special),
        vision_feature_select_strategy="default",
        chat_template=_template("", special[3], special[2], ""),
        **strategy[family],
    )
    return AutoModelForImageTextToText.from_config(config), processor, {"height": 16, "width": 16, "num_frames": 4}


def internvl() -> tuple[Any, Any, dict[str, int]]:
    """Frames are images."""
    import transformers

    text = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision |= {"image_size": [16, 16], "patch_size": [4, 4]}
    config = AutoConfig.for_model(
        "internvl", text_config=text, vision_config=vision, image_token_id=63, downsample_ratio=0.5
    )
    special = ("</img>", "<img>", "<video>", "<IMG_CONTEXT>")
    tokenizer = _tokenizer(
        special,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    sizes = {"size": {"height": 16, "width": 16}}
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(**sizes, crop_to_patches=False),
        video_processor=transformers.InternVLVideoProcessor(**sizes),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=_template("", special[3], special[2], ""),
    )
    return AutoModelForImageTextToText.from_config(config), processor, {"num_images": 4}


def smolvlm() -> tuple[Any, Any, dict[str, int]]:
    """Frames are images; fewer of a short clip, by the processor's rule."""
    import transformers

    pytest.importorskip("num2words")
    text = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision |= {"image_size": 16, "patch_size": 4}
    config = AutoConfig.for_model("smolvlm", text_config=text, vision_config=vision, image_token_id=63, scale_factor=2)
    size = {"longest_edge": 16}
    processor = transformers.SmolVLMProcessor(
        image_processor=transformers.SmolVLMImageProcessor(size=size, max_image_size=size, do_image_splitting=False),
        video_processor=transformers.SmolVLMVideoProcessor(
            size=size, max_image_size=size, video_sampling={"fps": 1, "max_frames": 64, "video_size": size}
        ),
        tokenizer=_tokenizer(("<end>", "<global-img>", "<video>", "<image>")),
        image_seq_len=4,
        chat_template=_template("", "<image>", "<video>", ""),
    )
    return AutoModelForImageTextToText.from_config(config), processor, {"num_images": 4}


_STRUCTURES: dict[str, Callable[[], tuple[Any, Any, dict[str, int]]]] = {
    "qwen2_5_vl": lambda: qwen(qwen2_5_vl, "Qwen2_5_VL"),
    "qwen3_vl": lambda: qwen(qwen3_vl, "Qwen3VL"),
    "llava_onevision": lambda: llava("LlavaOnevision"),
    "llava_next_video": lambda: llava("LlavaNextVideo"),
    "internvl": internvl,
    "smolvlm": smolvlm,
}


@pytest.mark.parametrize("name", _STRUCTURES)
def test_the_tokens_are_those_of_transformers_for_the_same_clip(name: str, tmp_path: Path):
    """Frames are chosen by the processor, as for `apply_chat_template`; a clip of 5 s and one of 1.2 s run on one program."""
    torch.manual_seed(2)
    module, processor, sizes = _STRUCTURES[name]()
    module = module.eval()
    with torch.no_grad():  # answers that depend on what is seen
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 if parameter.dim() > 1 else parameter)
    module.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    clips = {"long.mp4": (40, 8), "short.mkv": (12, 10)}
    wanted, films = [], []
    for seed, (file, (frames, rate)) in enumerate(clips.items()):
        films.append(written_clip(tmp_path / file, frames=frames, rate=rate, seed=seed))
        with av.open(str(films[-1])) as container:
            pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        told = {"total_num_frames": frames, "fps": rate, "duration": frames / rate, "height": 32, "width": 48}
        message = [{"type": "video", "video": pictures}, {"type": "text", "text": "w5 w6"}]
        given = processor.apply_chat_template(
            [{"role": "user", "content": message}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"num_frames": 4, "fps": None, "do_sample_frames": True, "video_metadata": [told]},
        )
        with torch.no_grad():
            output = module.generate(**given, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
        wanted.append(output[0, given["input_ids"].shape[1] :].tolist())
    assert wanted[0] != wanted[1]

    model = QEFFAutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    model.compile(backend="ort_sim", prefill_seq_len=16, ctx_len=128, batch_size=2, **sizes)
    output = model.generate(
        prompts=["w5 w6"] * 2, videos=[str(films[0]), [films[1]]], generation_len=8, eos_token_id=None
    )
    assert output.generated_ids == wanted
    if name != "qwen2_5_vl":
        return
    url = f"data:video/mp4;base64,{base64.b64encode(films[0].read_bytes()).decode()}"
    parts = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "w5 w6"}]
    runner: Any = load_compiled(model.compiled.directory)  # type: ignore[union-attr]
    with serving(runner) as served:
        answer = served.client.chat.completions.create(
            model="tiny", max_tokens=8, messages=[{"role": "user", "content": parts}], extra_body={"ignore_eos": True}
        )
        assert answer.choices[0].message.content == runner.tokenizer.decode(wanted[0])
        parts[0] = {"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}}
        with pytest.raises(openai.BadRequestError, match="the server fetches nothing from elsewhere"):
            served.client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}])
