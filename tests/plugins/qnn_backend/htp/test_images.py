"""Vision-language models in the HTP simulator, against eager Transformers in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qeff_framework import QEFFAutoModelForImageTextToText
from tests.image_models import IMAGE_TOKEN, NEW_TOKENS, Processor, built, gemma3, greedy, qwen2_5_vl, shaded
from tests.plugins.qnn_backend.htp.simulator import needs_simulator

pytestmark = [needs_simulator, pytest.mark.usefixtures("session_store")]


@pytest.mark.parametrize(
    ("make", "image_tokens", "options"),
    [
        (gemma3, [IMAGE_TOKEN] * 4, {"img_size": 28}),
        # Compared with eager alone, which costs a third less.
        (qwen2_5_vl, [61, *[IMAGE_TOKEN] * 6, 60], {"height": 16, "width": 24, "verify": False}),
    ],
)
def test_two_programs_give_the_tokens_of_eager(
    make: Callable[..., Any], image_tokens: list[int], options: dict[str, Any]
) -> None:
    """Gemma 3 has tokens that see each other, Qwen2.5-VL patches in windows and positions of three axes."""
    module, image = built(make)
    picture = shaded(image, seed=1)
    prompts = [[5, 6, *image_tokens, 8, 9], [11 + number for number in range(4 + len(image_tokens))]]
    model = QEFFAutoModelForImageTextToText(module, processor=Processor(image))
    compiled = model.compile(backend="qnn", target="SM8650", prefill_seq_len=5, ctx_len=32, batch_size=2, **options)
    assert [program.program["partial"] for program in compiled.parts().values()] == [{}, {}]
    ids = np.array(prompts)
    output = model.generate(
        {"input_ids": ids, "attention_mask": np.ones_like(ids), **picture}, generation_len=NEW_TOKENS, eos_token_id=None
    )
    assert output.generated_ids == [greedy(module, prompts[0], [picture]), greedy(module, prompts[1], [])]
