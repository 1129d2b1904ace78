"""Which ids of tokenizer output are text: the masks that Transformers takes, or infers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BatchEncoding, GenerationConfig

from qeff_framework.errors import InputError
from qeff_framework.generation import TextGenerator, resolve_settings
from qeff_framework.single_pass import EncoderRunner
from qeff_framework.tokenization import normalize_inputs
from tests.generation.fakes import FakeCausalLM, FakeEncoder, encode
from tests.generation.hf_session import tiny_llama

ROWS = [[4, 5, 6], [9]]
PADDED = [[4, 5, 6], [0, 0, 9]]
DEFAULTS = {"pad_token_id": 0, "eos_token_id": 2}


@settings(max_examples=150)
@given(
    rows=st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=3),
    pad=st.none() | st.integers(0, 3),
    eos=st.none() | st.integers(0, 3) | st.lists(st.integers(0, 3), min_size=1, max_size=2),
)
def test_padding_without_a_mask_is_what_transformers_infers(rows: list[list[int]], pad: Any, eos: Any) -> None:
    ids = torch.tensor(rows)
    config = GenerationConfig(pad_token_id=pad, eos_token_id=eos)
    tiny_llama()._prepare_special_tokens(config, device="cpu")
    mask = tiny_llama()._prepare_attention_mask_for_generation(ids, config, {}).tolist()
    expected = [[token for token, kept in zip(*pair, strict=True) if kept] for pair in zip(rows, mask, strict=True)]
    inside = any("0" in "".join(map(str, row)).strip("0") for row in mask)
    padding = resolve_settings({"pad_token_id": pad, "eos_token_id": eos}).padding_token_id
    if inside or not all(expected):
        with pytest.raises(InputError, match="between other tokens|padding only"):
            normalize_inputs(rows, padding)
    else:
        assert normalize_inputs(rows, padding) == expected


@pytest.mark.parametrize(
    "given_ids",
    [
        PADDED,
        np.array(PADDED),
        torch.tensor(PADDED),
        [np.array(row) for row in PADDED],
        {"input_ids": torch.tensor(PADDED)},
        BatchEncoding({"input_ids": PADDED, "token_type_ids": [[0] * 3] * 2, "length": [3, 1]}),
        [[4, 5, 6], [9, 0, 0]],
        ROWS,
    ],
    ids=["lists", "array", "tensor", "arrays", "mapping", "encoding", "right", "ragged"],
)
def test_left_padded_ids_give_the_tokens_of_the_prompts_alone(given_ids: Any) -> None:
    generator = TextGenerator(FakeCausalLM(batch_size=2), generation_defaults=DEFAULTS)
    expected = generator.generate({"input_ids": PADDED, "attention_mask": [[1, 1, 1], [0, 0, 1]]}, max_new_tokens=4)
    output = generator.generate(given_ids, max_new_tokens=4)
    assert output.generated_ids == expected.generated_ids
    assert output.prompt_lengths == [3, 1]


def test_an_id_that_ends_sequences_is_text_and_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    for defaults in ({"pad_token_id": 0, "eos_token_id": [2, 0]}, {"eos_token_id": 0}):
        generator = TextGenerator(FakeCausalLM(batch_size=2), generation_defaults=defaults)
        for asked in ({}, {"ignore_eos": True}):
            caplog.clear()
            assert generator.generate(PADDED, max_new_tokens=2, **asked).prompt_lengths == [3, 3]
        assert generator.generate([[0, 5]], max_new_tokens=2).prompt_lengths == [2]
        assert caplog.text == "", "the second time it is known"
    TextGenerator(FakeCausalLM(batch_size=2), generation_defaults=defaults).generate(PADDED, max_new_tokens=1)
    assert "row 1 of the inputs has the padding id 0 at an end and there is no attention_mask" in caplog.text


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": [[4, 5, 6]], "attention_mask": [[1, 0, 1]]}, r"hidden by attention_mask at place 1 \(token 5\)"),
        ({"input_ids": [[4, 5]], "attention_mask": [[2, 1]]}, "row 0, holds 2; it must hold 1 for tokens"),
        ({"input_ids": [[4, 5]], "attention_mask": [[0.5, 1.0]]}, "attention_mask, row 0, must be a list .* holds 0.5"),
        ({"input_ids": [[4, 5]], "attention_mask": [[[1, 1], [1, 1]]]}, "attention_mask, row 0, must be a list"),
        ([[4, 0, 5]], r"padding id 0 between other tokens \(at place 1\), and no attention_mask"),
        ([[0, 0]], "row 0 of the inputs is padding only"),
        ({"input_ids": [[4]], "token_type_ids": [[1]]}, "token_type_ids tell several texts apart"),
        ({"input_ids": [[4]], "position_ids": [[3]]}, "the inputs hold position_ids, which text generation does not"),
        ({"input_ids": [[4]], "decoder_input_ids": [[3]]}, "the inputs hold decoder_input_ids"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_the_first_step(inputs: Any, message: str) -> None:
    session = FakeCausalLM()
    with pytest.raises(InputError, match=message):
        TextGenerator(session, generation_defaults=DEFAULTS).generate(inputs, max_new_tokens=2)
    assert session.steps == []
    # Transformers takes a mask of torch.ones as well.
    for mask in ([[1, 1, 1]], np.ones((1, 3), np.float32)):
        kept = {"input_ids": [[4, 0, 5]], "attention_mask": mask}
        assert TextGenerator(session, generation_defaults=DEFAULTS).generate(kept, max_new_tokens=1).prompt_lengths == [
            3
        ]


def test_encoders_read_every_id_without_a_mask_as_transformers_do(caplog: pytest.LogCaptureFixture) -> None:
    runner = EncoderRunner(FakeEncoder())  # its padding id is 9
    for _ in range(2):
        output = runner({"input_ids": [[9, 9, 3], [4, 5, 6]]})
    ids = np.array([[9, 9, 3], [4, 5, 6]])
    np.testing.assert_array_equal(output, encode(ids, np.ones_like(ids), np.zeros_like(ids), pooled=False))
    assert caplog.text.count("row 0 of the inputs has the padding id 9 at an end") == 1
    with pytest.raises(InputError, match=r"attention_mask, row 0, holds 3"):
        runner({"input_ids": [[4, 5]], "attention_mask": [[1, 3]]})
