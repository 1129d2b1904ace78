"""Vision-language models through stand-in QAIRT tools, and on the stand-in's card."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from qeff_framework import QEFFAutoModelForImageTextToText, load_compiled
from qeff_framework.runtime.image_text import CompiledImageTextToText
from tests.image_models import IMAGE_TOKEN, NEW_TOKENS, Processor, built, gemma3, greedy, shaded

pytestmark = pytest.mark.usefixtures("session_store")


def test_standin_two_programs_and_the_bundle_of_both(standin_qairt, standin_card) -> None:
    standin_qairt()
    standin_card()
    module, image = built(gemma3)
    picture = shaded(image, seed=1)
    prompt = [5, 6, *[IMAGE_TOKEN] * 4, 8, 9]
    model = QEFFAutoModelForImageTextToText(module, processor=Processor(image))
    sizes = {"target": "aic", "num_cores": 8, "prefill_seq_len": 5, "ctx_len": 32, "img_size": 28}
    model.compile(backend="qnn", **sizes)
    inputs = {"input_ids": np.array([prompt]), "attention_mask": np.ones((1, 8), np.int64), **picture}
    output = model.generate(inputs, generation_len=NEW_TOKENS, eos_token_id=None)
    model.load().close()
    assert output.generated_ids == [greedy(module, prompt, [picture])]

    bundle = model.compile(backend="qnn", dry_run=True, **sizes)
    assert {*bundle.parts()} == {"vision", "language"}
    for program in bundle.parts().values():
        subprocess.run([program.directory / "compile.sh"], check=True, capture_output=True)
    with load_compiled(bundle.directory) as runner:
        assert isinstance(runner, CompiledImageTextToText)
        found = runner.generate(inputs, generation_len=NEW_TOKENS, eos_token_id=None).generated_ids
    assert found == output.generated_ids
