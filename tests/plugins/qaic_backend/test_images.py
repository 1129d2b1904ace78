"""Vision-language models as two programs side by side on one device, and as one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qeff_framework import QEFFAutoModelForImageTextToText, load_compiled
from qeff_framework.runtime.image_text import CompiledImageTextToText
from tests.image_models import (
    IMAGE_TOKEN,
    NEW_TOKENS,
    VIDEO_TOKEN,
    Processor,
    ProcessorOfVideos,
    built,
    gemma3,
    greedy,
    llava,
    qwen2_5_vl,
    qwen_film,
    shaded,
)
from tests.sdk_standins.qaic import StandinSdk


@pytest.fixture(autouse=True)
def _store(session_store: Path) -> None:
    """Exports lie there."""


def test_standin_two_programs_and_the_bundle_of_both(standin: Callable[..., StandinSdk], tmp_path: Path) -> None:
    standin()
    module, image = built(gemma3)
    picture = shaded(image, seed=1)
    prompts = [[5, 6, *[IMAGE_TOKEN] * 4, 8, 9], [11 + number for number in range(8)]]
    model = QEFFAutoModelForImageTextToText(module, processor=Processor(image))
    # Two programs that are loaded together share the cores of the device.
    sizes: dict[str, Any] = {"num_cores": 8, "prefill_seq_len": 5, "ctx_len": 32, "batch_size": 2, "img_size": 28}
    compiled = model.compile(backend="qaic", **sizes)
    ids = np.array(prompts)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), **picture}
    output = model.generate(inputs, generation_len=NEW_TOKENS, eos_token_id=None)
    model.load().close()
    wanted = [greedy(module, prompts[0], [picture]), greedy(module, prompts[1], [])]
    assert output.generated_ids == wanted != [greedy(module, prompts[0], [shaded(image, seed=2)]), wanted[1]]
    assert {name: (compiled.directory / place).is_dir() for name, place in compiled.programs.items()} == {
        "vision": True,
        "language": True,
    }

    bundle = model.compile(backend="qaic", dry_run=True, compile_dir=tmp_path / "bundle", **sizes)
    for program in bundle.parts().values():
        assert not list(program.directory.rglob("programqpc.bin"))
        subprocess.run([str(program.directory / "compile.sh")], check=True, capture_output=True)
    with load_compiled(bundle.directory) as runner:
        assert isinstance(runner, CompiledImageTextToText)
        assert runner.generate(inputs, generation_len=NEW_TOKENS, eos_token_id=None).generated_ids == wanted


def test_standin_a_video_beside_an_image_and_the_bundle_of_three(
    standin: Callable[..., StandinSdk], tmp_path: Path
) -> None:
    """The programs of image and video have the same weights, which lie on the disk once."""
    standin()
    module, image = built(qwen2_5_vl)
    picture, film = shaded(image, seed=1), qwen_film(seed=3, gap=1.5)
    prompts = [[5, 61, *[IMAGE_TOKEN] * 6, 60, 8, *[VIDEO_TOKEN] * 8, 9], [11 + number for number in range(19)]]
    model = QEFFAutoModelForImageTextToText(module, processor=ProcessorOfVideos(image, film))
    sizes: dict[str, Any] = {"num_cores": 5, "prefill_seq_len": 5, "ctx_len": 32, "batch_size": 2}
    sizes |= {"height": 16, "width": 24, "num_frames": 4}
    model.compile(backend="qaic", **sizes)
    ids = np.array(prompts)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), **picture, **film}
    output = model.generate(inputs, generation_len=NEW_TOKENS, eos_token_id=None)
    model.load().close()
    wanted = [greedy(module, prompts[0], [picture], film), greedy(module, prompts[1], [])]
    other = greedy(module, prompts[0], [picture], qwen_film(seed=4, gap=1.5))
    assert output.generated_ids == wanted != [other, wanted[1]]

    bundle = model.compile(backend="qaic", dry_run=True, compile_dir=tmp_path / "bundle", **sizes)
    assert {*bundle.parts()} == {"vision", "video-4", "language"}
    weights = [bundle.parts()[name].directory / "model.onnx.data" for name in ("vision", "video-4")]
    assert weights[0].samefile(weights[1])
    for program in bundle.parts().values():
        subprocess.run([str(program.directory / "compile.sh")], check=True, capture_output=True)
    with load_compiled(bundle.directory) as runner:
        assert isinstance(runner, CompiledImageTextToText)
        assert runner.generate(inputs, generation_len=NEW_TOKENS, eos_token_id=None).generated_ids == wanted


def test_standin_one_program_keeps_the_features_of_an_image(standin: Callable[..., StandinSdk]) -> None:
    """The export is that of the end-to-end test of one program."""
    standin()
    module, image = built(llava)
    one, two = shaded(image, seed=1), shaded(image, seed=2)
    tokens = [IMAGE_TOKEN] * 16
    prompts = [[5, 6, *tokens, 8, *tokens], [11, 12, 13]]
    model = QEFFAutoModelForImageTextToText(module, processor=Processor(image), kv_offload=False)
    model.compile(backend="qaic", prefill_seq_len=9, ctx_len=56, batch_size=2, num_images=2, img_size=28)
    ids = np.array([prompts[0], prompts[1] + [0] * (len(prompts[0]) - 3)])
    inputs = {
        "input_ids": ids,
        "attention_mask": np.array([[1] * ids.shape[1], [1] * 3 + [0] * (ids.shape[1] - 3)]),
        "pixel_values": np.concatenate([one["pixel_values"], two["pixel_values"]]),
    }
    with model.load() as program:
        output = program.generate(inputs=inputs, generation_len=NEW_TOKENS, eos_token_id=None)
    assert output.generated_ids == [greedy(module, prompts[0], [one, two]), greedy(module, prompts[1], [])]
