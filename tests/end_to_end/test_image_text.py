"""Vision-language models through both programs: the tokens of Transformers, for prompts with no, one and two images in a batch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import (
    PreTrainedModel,
)

from qeff_framework import QEFFAutoModelForImageTextToText
from qeff_framework.cli.app import main
from qeff_framework.errors import InputError, OptionError
from tests.image_models import (
    IMAGE_TOKEN,
    NEW_TOKENS,
    Image,
    Processor,
    built,
    gemma3,
    greedy,
    llava,
    picture,
    qwen3_vl,
    saved_llava,
    shaded,
)


@pytest.fixture(autouse=True)
def _store(session_store: Path) -> None:
    """Exports lie there."""


@pytest.mark.parametrize(("make", "tokens", "chunk"), [(llava, 16, 7), (gemma3, 4, 5), (qwen3_vl, 6, 4)])
def test_tokens_for_prompts_with_images(
    make: Callable[[], tuple[PreTrainedModel, Image]], tokens: int, chunk: int
) -> None:
    """The images of llava and Qwen3-VL cross chunks; those of Gemma 3 are read in one."""
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

    model = QEFFAutoModelForImageTextToText(module, processor=Processor(image))
    compiled = model.compile(
        backend="ort_sim", prefill_seq_len=chunk, ctx_len=56, batch_size=3, num_images=2, img_size=28
    )
    assert [*compiled.programs] == ["vision", "language"]
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
        ("--image", str(pictures[0]), str(pictures[1])): "prompt 0 with 2 images",
        ("--image", str(pictures[0]), "--image", str(pictures[1])): "1 prompts and 2 times --image",
        ("--image", str(pictures[0]), "--chat"): "leave --chat",
    }
    for given_images, message in refused.items():
        assert main([*argv, *sizes, "--prompt", "<image> w9", *given_images]) in (1, 2)
        assert message in capsys.readouterr().err


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
