"""Texts whose keys depend on the length of the text: the loop tells it, and reads a text anew where what was kept does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qeff_framework.contracts import PROMPT_LENGTHS, CompiledModel, TensorSpec
from qeff_framework.errors import InputError
from qeff_framework.generation import TextGenerator
from tests.generation.fakes import FakeCausalLM, FakeContinuous, FakeSampler, FakeSpeculative, expected_tokens

LIMIT = 8
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [7] * LIMIT, [2, 7, 1, 8, 2, 8, 1, 8, 2], list(range(1, 14))]
NEW_TOKENS = 7


class LengthDependent:
    """Wraps a fake program: the keys of a token are long or short, and those that a step reads must all be of one kind."""

    def __init__(self, program: Any) -> None:
        self.program = program
        tokens, positions, *others = program.compiled.inputs
        lengths = TensorSpec(name=PROMPT_LENGTHS, dtype="int64", shape=("batch_size", 1))
        self.compiled: CompiledModel = replace(
            program.compiled,
            inputs=(tokens, positions, lengths, *others),
            metadata={**program.compiled.metadata, "reread_lengths": [LIMIT + 1]},
        )
        self.info = program.info
        self.is_long = np.zeros(program.cache.shape, dtype=bool)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        others = dict(inputs)
        prompt_lengths, positions = others.pop(PROMPT_LENGTHS), inputs["position_ids"]
        assert prompt_lengths.shape == (len(positions), 1)
        slots = inputs["batch_index"][:, 0] if "batch_index" in inputs else range(len(positions))
        for row, slot in enumerate(slots):
            written = positions[row][positions[row] >= 0]
            if not written.size:
                continue
            if written[0] == 0 and isinstance(self.program, FakeCausalLM):
                self.program.cache[slot] = -7  # a text that begins anew takes the place of the old one
            lengths = np.maximum(written + 1, prompt_lengths[row, 0])
            self.is_long[slot, written] = lengths > LIMIT
            seen = self.is_long[slot, : written[-1] + 1]
            assert seen.all() or not seen.any(), "keys of short and of long texts are mixed"
        return self.program.run(others)

    def reset(self) -> None:
        self.program.reset()

    def close(self) -> None:
        self.program.close()


@pytest.mark.parametrize("chunk", [1, 3, 8, 32])
def test_a_batch(chunk):
    generator = TextGenerator(LengthDependent(FakeCausalLM(len(PROMPTS), prefill=chunk)))
    output = generator.generate(PROMPTS, max_new_tokens=NEW_TOKENS)
    assert output.generated_ids == [expected_tokens(prompt, NEW_TOKENS) for prompt in PROMPTS]


def test_prompts_that_take_turns():
    # Spare slots keep what finished prompts have left; keys of another length must not be taken over.
    program = LengthDependent(FakeContinuous(batch_size=2, slots=4, prefill=4))
    prompts = [*PROMPTS, [*PROMPTS[4][:6], 3], PROMPTS[4]]
    output = TextGenerator(program).generate(prompts, max_new_tokens=NEW_TOKENS)
    assert output.generated_ids == [expected_tokens(prompt, NEW_TOKENS) for prompt in prompts]


def test_drafts_end_where_the_text_is_read_anew():
    def periodic(history):
        logits = np.zeros(17, dtype=np.float32)
        logits[(history[-1] + 1) % 3] = 1.0
        return logits

    program = LengthDependent(FakeSpeculative(4, rows=2, model=periodic))
    output = TextGenerator(program).generate(
        [[0, 1, 2, 0], [0, 1, 2, 0, 1, 2]], max_new_tokens=10, prompt_lookup_num_tokens=4
    )
    assert output.generated_ids == [[1, 2, 0] * 3 + [1], [0, 1, 2] * 3 + [0]]
    assert output.perf_metrics.drafts_accepted > 8


def test_a_sampler_is_told_again_which_tokens_belong_to_the_answer():
    program = LengthDependent(FakeSampler(batch_size=1, prefill=4))
    prompt = PROMPTS[1]
    output = TextGenerator(program).generate([prompt], max_new_tokens=NEW_TOKENS)
    assert output.generated_ids == [expected_tokens(prompt, NEW_TOKENS)]
    fed = program.program.fed
    answer = [step["last_accepted_output_tokens"] for step in fed if step["position_ids"].max() <= LIMIT][-3:]
    assert np.concatenate(answer, axis=1)[0].tolist() == [
        *[-1] * len(prompt),
        *output.generated_ids[0][:2],
        *[-1] * (12 - LIMIT - 1),
    ]


def test_a_text_that_no_prefill_program_could_read_anew_is_refused():
    program = FakeContinuous(batch_size=1, slots=1, contexts=((LIMIT,), (32,)))
    generator = TextGenerator(LengthDependent(program))
    assert len(generator.generate([PROMPTS[0]], max_new_tokens=LIMIT - 2).generated_ids[0]) == LIMIT - 2
    with pytest.raises(InputError, match=r"a text of 9 tokens is read anew.*prefill programs read 8 at most"):
        generator.generate([PROMPTS[0]], max_new_tokens=LIMIT - 1)
