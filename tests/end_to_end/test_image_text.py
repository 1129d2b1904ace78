"""Vision-language models through two programs and through one: the tokens of Transformers, for prompts with no, one and two images in a batch."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openai
import PIL.Image
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    PreTrainedModel,
    TextIteratorStreamer,
)

from qeff_framework import QEFFAutoModelForImageTextToText, load_compiled
from qeff_framework.cli.app import main
from qeff_framework.errors import InputError, OptionError
from qeff_framework.lowering import FoldConstants, InlineDialect, bind_sizes, load_portable
from qeff_framework.runtime.image_text import CompiledImageTextToText, processed_text
from tests.image_models import (
    CHAT_TEMPLATE,
    IMAGE_TOKEN,
    NEW_TOKENS,
    VIDEO_TOKEN,
    Image,
    Processor,
    ProcessorOfVideos,
    built,
    gemma3,
    greedy,
    llava,
    mllama,
    picture,
    qwen2_5_vl,
    qwen3_vl,
    qwen_film,
    saved_llava,
    saved_mllama,
    shaded,
)
from tests.serving.running import serving


@pytest.fixture(autouse=True)
def _store(session_store: Path) -> None:
    """Exports lie there."""


@pytest.mark.parametrize(("make", "tokens", "chunk"), [(llava, 16, 7), (gemma3, 4, 5), (qwen3_vl, 6, 4)])
def test_tokens_for_prompts_with_images(
    make: Callable[[], tuple[PreTrainedModel, Image]], tokens: int, chunk: int
) -> None:
    """The images of llava and Qwen3-VL cross chunks; those of Gemma 3 are read in one. LLaVA is one program."""
    module, image = built(make)
    generator = torch.Generator().manual_seed(1)
    images = [
        {**image, "pixel_values": torch.randn(image["pixel_values"].shape, generator=generator)} for _ in range(3)
    ]
    picture = [IMAGE_TOKEN] * tokens
    prompts = [[5, 6, 7, *picture, 8, 9], [11, 12, 13], [5, *picture, 7, *picture, 9]]
    wanted = [
        greedy(module, prompt, of_prompt)
        for prompt, of_prompt in zip(prompts, ([images[0]], [], images[1:]), strict=True)
    ]
    assert len({token for row in wanted for token in row}) > 3

    one = make is llava
    model = QEFFAutoModelForImageTextToText(module, processor=Processor(image), kv_offload=not one)
    compiled = model.compile(
        backend="ort_sim", prefill_seq_len=chunk, ctx_len=56, batch_size=3, num_images=2, img_size=28
    )
    assert [*compiled.programs] == ([] if one else ["vision", "language"])
    longest = max(map(len, prompts))
    inputs = {
        "input_ids": np.array([prompt + [0] * (longest - len(prompt)) for prompt in prompts]),
        "attention_mask": np.array([[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts]),
        **{name: torch.cat([each[name] for each in images]) for name in image},
    }
    output = model.generate(inputs, generation_len=NEW_TOKENS, eos_token_id=None)
    assert output.generated_ids == wanted

    if make is llava:
        refuses_what_does_not_fit(model, inputs, prompts)
        keeps_features_inside(model, module, images)
    if make is qwen3_vl:
        runs_as_two_artifacts(model, chunk, inputs, wanted)


def runs_as_two_artifacts(
    model: QEFFAutoModelForImageTextToText, chunk: int, inputs: dict[str, Any], wanted: list[list[int]]
) -> None:
    """The programs in artifacts of their own: each says what it lacks, together they give the same tokens."""
    sizes = {"prefill_seq_len": chunk, "ctx_len": 56, "batch_size": 3, "num_images": 2, "img_size": 28}
    with pytest.raises(OptionError, match="skip_vision and skip_lang leave no program"):
        model.compile(backend="ort_sim", skip_vision=True, skip_lang=True)
    parts = [model.compile(backend="ort_sim", **{skipped: True}, **sizes) for skipped in ("skip_lang", "skip_vision")]
    assert [[*part.programs] for part in parts] == [["vision"], ["language"]]
    with load_compiled(parts[0].directory) as vision, load_compiled(parts[1].directory) as language:
        with pytest.raises(InputError, match="compiled with skip_lang and generates no text"):
            vision.generate(inputs)
        with pytest.raises(InputError, match="compiled with skip_vision and encodes no images"):
            language.generate(inputs)
        alone = {name: inputs[name][1:2] for name in ("input_ids", "attention_mask")}
        assert language.generate(alone, generation_len=NEW_TOKENS, eos_token_id=None).generated_ids == wanted[1:2]
        language.take_images_from(vision)
        assert language.generate(inputs, generation_len=NEW_TOKENS, eos_token_id=None).generated_ids == wanted


def keeps_features_inside(model: QEFFAutoModelForImageTextToText, module: PreTrainedModel, images: list[Image]) -> None:
    """One program: embeddings are read from its states, its steps without an image need no encoder, sizes must be one."""
    program = model.load()
    assert isinstance(program, CompiledImageTextToText)
    (got,) = program.image_embeddings(images[2])
    with torch.no_grad():
        want: torch.Tensor = module.get_image_features(**images[2], return_dict=True).pooler_output[0]
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="one program for images and text .*compile two programs"):
        program.take_images_from(program)
    for sizes, told in (
        ({"skip_lang": True}, "leave out one of two programs"),
        ({"img_size": [28, 56]}, "one size"),
        ({"img_size": 0}, "img_size=0 must be at least 1"),
    ):
        with pytest.raises(OptionError, match=told):
            model.compile(backend="ort_sim", **sizes)
    portable = load_portable(model.export().model_path)
    steps = {entry.name: entry for entry in program.compiled.specializations}
    encoders = {}
    for name in ("image", "prefill", "decode"):
        static = bind_sizes(portable, steps[name])
        for lowering in (InlineDialect(), FoldConstants()):
            lowering(static)
        encoders[name] = any((node.name or "").startswith("vision/") for node in static.graph)
    assert encoders == {"image": True, "prefill": False, "decode": False}


def refuses_what_does_not_fit(
    model: QEFFAutoModelForImageTextToText, inputs: dict[str, Any], prompts: list[list[int]]
) -> None:
    pixels = inputs["pixel_values"]
    wrong: dict[str, tuple[Any, str]] = {
        "fewer": (pixels[:2], "has 32 image tokens .*the images that are left give 16"),
        "more": (torch.cat([pixels, pixels]), "6 images .* were given, and the prompts have places for 3"),
        "another size": (
            pixels[..., :14],
            r"pixel_values \[1, 3, 28, 14\], the programs were compiled for \[1, 3, 28, 28\]",
        ),
        "none": (None, "prompt 0 has 16 image tokens .*give 0"),
    }
    for given, told in wrong.values():
        with pytest.raises(InputError, match=told):
            model.generate({**inputs, "pixel_values": given})
    with pytest.raises(InputError, match="a mapping with input_ids and pixel_values; got Tensor"):
        model.generate(inputs=pixels)
    with pytest.raises(InputError, match="takes pixel_values_videos: .* compile with num_frames"):
        model.generate({**inputs, "pixel_values_videos": pixels})
    # As of prompts of text, padding is found without a mask.
    without_mask = {name: value for name, value in inputs.items() if name != "attention_mask"}
    told = [
        model.generate(each, generation_len=2, eos_token_id=None, pad_token_id=0) for each in (without_mask, inputs)
    ]
    assert told[0].generated_ids == told[1].generated_ids
    one_prompt = {"input_ids": [[IMAGE_TOKEN] * 48], "pixel_values": pixels}
    with pytest.raises(InputError, match="48 tokens, the program has room for 32; compile with more num_images"):
        model.generate(one_prompt)


def test_the_command_reads_images_from_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint with a real processor; the tokens are those of Transformers with the same processor."""
    module, _ = built(llava)
    processor = saved_llava(module, tmp_path / "llava")
    pictures = [picture(tmp_path / name, shade) for name, shade in (("a.png", 30), ("b.jpg", 200))]
    prompts = ["w5 w6 <image> w7", "<image> w9"]
    argv = [
        "-q",
        "generate",
        str(tmp_path / "llava"),
        "--backend",
        "ort_sim",
        "--json",
        "--max-new-tokens",
        str(NEW_TOKENS),
    ]
    sizes = ["--prefill-seq-len", "8", "--ctx-len", "48", "--batch-size", "2"]
    code = main([*argv, *sizes, "--prompt", *prompts, *(part for file in pictures for part in ("--image", str(file)))])
    told = capsys.readouterr()
    assert code == 0, told.err
    results = json.loads(told.out)["results"]
    for prompt, file, result in zip(prompts, pictures, results, strict=True):
        given = processor(text=prompt, images=PIL.Image.open(file).convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            output = module.generate(
                **given, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        assert result["token_ids"] == output[0, given["input_ids"].shape[1] :].tolist()

    wrong = tmp_path / "empty.png"
    wrong.touch()
    refused = {
        ("--image", str(wrong)): "empty.png cannot be read",
        ("--image", str(tmp_path / "absent.png")): "absent.png cannot be read",
        (): "does not take prompt 0 with 0 images",
        ("--image", str(pictures[0]), str(pictures[1])): "has 2 images, and num_images is 1; compile with num_images=2",
        ("--image", str(pictures[0]), "--image", str(pictures[1])): "1 prompts and 2 times --image",
        ("--image", str(pictures[0]), "--chat"): "leave --chat",
        ("--image", str(pictures[0]), "-O", "img_size=56"): "makes 28 x 28 of every image; leave img_size",
    }
    for given_images, message in refused.items():
        assert main([*argv, *sizes, "--prompt", "<image> w9", *given_images]) in (1, 2)
        assert message in capsys.readouterr().err

    assert main(["-q", "export", str(tmp_path / "llava")]) == 2
    assert "call compile(), or export one program (kv_offload=False)" in capsys.readouterr().err

    assert main(["-q", "compile", str(tmp_path / "llava"), "--backend", "ort_sim", "--json", *sizes]) == 0
    answers_over_http(Path(json.loads(capsys.readouterr().out)["directory"]), pictures)


def answers_over_http(directory: Path, pictures: list[Path]) -> None:
    """OpenAI's client gets the texts of `generate`; what is elsewhere is not fetched."""
    images = [PIL.Image.open(file).convert("RGB") for file in pictures]
    asked: list[tuple[str, list[int]]] = [("w5 w6", [0]), ("w9", [1]), ("w7 w8 w9", [])]
    with load_compiled(directory) as alone:
        assert isinstance(alone, CompiledImageTextToText)
        alone.processor.chat_template = CHAT_TEMPLATE
        wanted = [
            alone.generate(prompts=[text], images=[[images[n] for n in chosen]], max_new_tokens=9).generated_texts[0]
            for text, chosen in asked
        ]
        assert len(set(wanted)) == 3
        with pytest.raises(InputError, match="holds <image> itself, and the chat template adds a place"):
            alone.generate(prompts=["<image> w5"], images=[[images[0]]])
        streamer = TextIteratorStreamer(alone.processor.tokenizer, skip_prompt=True)
        with redirect_stdout(io.StringIO()) as printed:
            alone.generate(prompts=["w5 w6"], images=[images[0]], max_new_tokens=9, stream=True, streamer=streamer)
        assert printed.getvalue() == wanted[0] + "\n"
        assert "".join(streamer).split() == wanted[0].split()
    urls = [
        f"data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
        for kind, file in zip(("png", "jpeg"), pictures, strict=True)
    ]

    def messages(text: str, *sources: str) -> Any:
        parts = [{"type": "image_url", "image_url": {"url": url, "detail": "auto"}} for url in sources]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]

    runner = load_compiled(directory)
    assert isinstance(runner, CompiledImageTextToText)
    runner.processor.chat_template = CHAT_TEMPLATE
    with serving(runner) as served:
        ask = partial(served.client.chat.completions.create, model="tiny", max_tokens=9)
        streams = [ask(messages=messages(text, *(urls[n] for n in chosen)), stream=True) for text, chosen in asked]
        assert ["".join(piece.choices[0].delta.content or "" for piece in stream) for stream in streams] == wanted
        assert ask(messages=[{"role": "user", "content": "w7 w8 w9"}]).choices[0].message.content == wanted[2]
        refused = {
            ("https://example.org/a.png",): "the server fetches nothing from elsewhere",
            (str(pictures[0]),): "the server fetches nothing from elsewhere",
            (urls[0], urls[1]): "32 tokens, the program has room for 16; compile with more num_images",
            ("data:image/png;base64,AAAA",): "the image cannot be read",
        }
        for sources, told in refused.items():
            with pytest.raises(openai.BadRequestError, match=told):
                ask(messages=messages("w5", *sources))
        assert (
            served.client.completions.create(model="tiny", prompt="w7 w8 w9", max_tokens=9).choices[0].text == wanted[2]
        )


def test_a_video_beside_images() -> None:
    """Its frames stand in time, as far apart as the processor says; an image of the same prompt stands in front or behind."""
    module, image = built(qwen2_5_vl)
    pictures = [shaded(image, seed) for seed in (1, 2)]
    # Frames of another clip, further apart: the same program.
    films = [qwen_film(seed=3, gap=1.5), qwen_film(seed=4, gap=2.3)]
    seen, film = [IMAGE_TOKEN] * 6, [VIDEO_TOKEN] * 8
    prompts = [[5, *film, 6, 7, *seen, 8], [11, 12, 13], [5, *seen, 9, 7, *film, 9, 4]]
    wanted = [
        greedy(module, prompt, images, of_prompt)
        for prompt, images, of_prompt in zip(
            prompts, (pictures[:1], [], pictures[1:]), (films[0], None, films[1]), strict=True
        )
    ]
    model = QEFFAutoModelForImageTextToText(module, processor=ProcessorOfVideos(image, films[0]))
    compiled = model.compile(
        backend="ort_sim", prefill_seq_len=4, ctx_len=40, batch_size=3, height=16, width=24, num_frames=4
    )
    assert [*compiled.programs] == ["vision", "video-4", "language"]
    longest = max(map(len, prompts))
    inputs = {
        "input_ids": [prompt + [0] * (longest - len(prompt)) for prompt in prompts],
        "attention_mask": [[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts],
        **{name: torch.cat([each[name] for each in pictures]) for name in image},
        **{name: torch.cat([each[name] for each in films]) for name in films[0]},
    }
    assert model.generate(inputs, generation_len=NEW_TOKENS, eos_token_id=None).generated_ids == wanted
    shorter = {
        **inputs,
        "pixel_values_videos": torch.zeros(48, 96),
        "video_grid_thw": torch.tensor([[1, 4, 4], [2, 4, 4]]),
    }
    with pytest.raises(InputError, match="pixel_values_videos .*, the programs were compiled for"):
        model.generate(shorter)


def test_layers_that_attend_to_images(tmp_path: Path) -> None:
    """Mllama, with its processor: images of one, two and four tiles in prompts that take turns in two slots of the cache."""
    module, _ = built(mllama)
    processor = saved_mllama(module, tmp_path)
    shades = np.random.default_rng(0)
    square, wide, large = (
        PIL.Image.fromarray(shades.integers(0, 255, (height, width, 3), dtype=np.uint8))
        for height, width in ((20, 24), (20, 50), (56, 56))
    )
    prompts = ["w5 w6 <|image|> w8 w9", "w11 w12 w13", "<|image|> w7 w20 <|image|> w9 w10 w30"]
    images = [[square], [], [wide, large]]
    wanted = []
    for prompt, of_prompt in zip(prompts, images, strict=True):
        given = processor(text=prompt, images=of_prompt or None, return_tensors="pt")
        with torch.no_grad():
            output = module.generate(
                **given, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        wanted.append(output[0, given["input_ids"].shape[1] :].tolist())
    assert len({token for row in wanted for token in row}) > 3

    model = QEFFAutoModelForImageTextToText.from_pretrained(tmp_path)
    model.compile(backend="ort_sim", prefill_seq_len=3, ctx_len=32, full_batch_size=2, num_images=2)
    output = model.generate(prompts=prompts, images=images, generation_len=NEW_TOKENS, eos_token_id=None)
    assert output.generated_ids == wanted
    with pytest.raises(InputError, match="have 60 tokens, the program has room for 40; compile with more num_images"):
        model.generate(prompts="<|image|> <|image|> <|image|> w5", images=[square, square, square])


class ProcessorOfSizes(Processor):
    """Returns the tensors of an image by its height and width."""

    def __init__(self, sizes: dict[tuple[int, int], Image]) -> None:
        self._sizes = sizes

    def __call__(self, images: Any, return_tensors: str) -> Image:
        del return_tensors
        return self._sizes[images[0].shape[:2]]


def test_images_of_two_sizes_in_prompts_that_take_turns() -> None:
    """Rows are padded on the left, as tokenizers of decoders pad; the artifact runs without torch and Transformers."""
    module, wide = built(qwen3_vl)
    square = {"pixel_values": torch.zeros(4 * 4, 3 * 2 * 16), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    first, second = shaded(wide, seed=1), shaded(square, seed=2)
    picture_of = {6: [IMAGE_TOKEN] * 6, 4: [IMAGE_TOKEN] * 4}
    prompts = [[5, 6, *picture_of[6], 8], [11, 12, 13], [5, *picture_of[4], 7, *picture_of[6], 9]]
    wanted = [
        greedy(module, prompt, images) for prompt, images in zip(prompts, ([first], [], [second, first]), strict=True)
    ]
    model = QEFFAutoModelForImageTextToText(module, processor=ProcessorOfSizes({(16, 24): wide, (16, 16): square}))
    compiled = model.compile(
        backend="ort_sim",
        prefill_seq_len=4,
        ctx_len=40,
        full_batch_size=2,
        num_images=2,
        height=[16, 16],
        width=[24, 16],
    )
    assert [*compiled.programs] == ["vision-16x24", "vision-16x16", "language"]
    longest = max(map(len, prompts))
    inputs = {
        "input_ids": [[0] * (longest - len(prompt)) + prompt for prompt in prompts],
        "attention_mask": [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts],
        **{name: torch.cat([each[name] for each in (first, second, first)]).tolist() for name in wide},
    }
    script = """
import json, sys
import numpy as np
from qeff_framework import load_compiled
inputs = {name: np.array(value) for name, value in json.load(sys.stdin).items()}
with load_compiled(sys.argv[1]) as program:
    output = program.generate(**inputs, generation_len=int(sys.argv[2]), eos_token_id=None)
print(json.dumps([output.generated_ids, sorted({"torch", "transformers"} & {*sys.modules})]))
"""
    argv = [sys.executable, "-c", script, str(compiled.directory), str(NEW_TOKENS)]
    done = subprocess.run(argv, input=json.dumps(inputs), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [wanted, []]


def test_images_whose_tokens_see_each_other_need_a_chunk_that_holds_them() -> None:
    module, image = built(gemma3)
    model = QEFFAutoModelForImageTextToText(module, processor=Processor(image))
    with pytest.raises(OptionError, match="prefill_seq_len=2 is less than the 4 tokens of an image"):
        model.compile(backend="ort_sim", prefill_seq_len=2, ctx_len=32, img_size=28)


def test_a_rendered_start_token_gets_no_second_one(tmp_path: Path) -> None:
    module, _ = built(llava)
    processor = saved_llava(module, tmp_path)
    processor.tokenizer.add_special_tokens({"bos_token": "w3"})
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="w3 $A", special_tokens=[("w3", 3)]
    )
    for text in ("w3 w5", "w5"):
        assert np.asarray(processed_text(processor, text, [])["input_ids"]).tolist() == [[3, 5]]
