"""Models whose rotary frequencies depend on the length of the text, against Transformers."""

from __future__ import annotations

import pytest

from qeff_framework import QEFFAutoModelForCausalLM
from qeff_framework.contracts import PROMPT_LENGTHS
from tests.eager import eager_greedy
from tests.tiny_models import tiny_causal_lm

pytestmark = pytest.mark.usefixtures("session_store")

#: Frequencies change beyond this many tokens.
LIMIT = 16
LONGROPE = {
    "original_max_position_embeddings": LIMIT,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 5.0, 8.0, 11.0],
        "original_max_position_embeddings": LIMIT,
    },
}
PROMPTS = {
    "stays short": [5, 17, 99, 23],
    "grows beyond the limit": [23, 42, 7, 64, 31, 88, 12, 54, 71, 3, 90],
    "long, in several chunks": [*range(20, 40), 5, 17, 99],
}


def test_longrope() -> None:
    module, _ = tiny_causal_lm("phi3", **LONGROPE)
    expected = [eager_greedy(module, prompt, 12) for prompt in PROMPTS.values()]
    model = QEFFAutoModelForCausalLM(module)
    compiled = model.compile(
        "ort_sim", prefill_seq_len=8, ctx_len=64, batch_size=3, num_speculative_tokens=3, num_cores=1
    )
    assert PROMPT_LENGTHS in {spec.name for spec in compiled.inputs}
    asked = {"prompts": list(PROMPTS.values()), "generation_len": 12, "ignore_eos": True}
    assert model.generate(**asked).generated_ids == expected
    assert model.generate(**asked, prompt_lookup_num_tokens=3).generated_ids == expected

    compiled = model.compile("ort_sim", prefill_seq_len=4, ctx_len=LIMIT, num_speculative_tokens=3, num_cores=1)
    assert PROMPT_LENGTHS not in {spec.name for spec in compiled.inputs}
    short = model.generate(prompts=[PROMPTS["stays short"]], generation_len=12, ignore_eos=True)
    assert short.generated_ids == expected[:1]
