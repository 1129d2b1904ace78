"""Tiny random encoder-decoders through `ort_sim`: the tokens of Transformers' eager greedy decoding."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from ort_sim_backend.descriptor import OrtSimBackend
from qeff_framework import QEFFAutoModel, QEFFAutoModelForCausalLM, QEFFAutoModelForSeq2SeqLM
from qeff_framework import load_compiled as load_program
from qeff_framework.errors import InputError, OptionError, UnsupportedModelError
from qeff_framework.model import QEFFBaseModel
from qeff_framework.runtime import CompiledSeq2SeqLM
from qeff_framework.serving import Engine
from tests.checkpoints import save_tiny_checkpoint
from tests.eager import eager_attention, eager_seq2seq_greedy
from tests.tiny_models import tiny_seq2seq_lm

pytestmark = pytest.mark.usefixtures("session_store")

#: One for each compiled length of the source, and of unequal lengths within one batch.
SOURCES = [[5, 17, 99, 23, 42, 7, 64, 31, 88, 12, 54], [71, 30, 90], [11, 29, 47, 83]]
NEW_TOKENS = 12
#: For tests that are not about layers: the first one of a side is of a kind of its own, with the bias of all others.
ONE_LAYER_OF_T5 = {"num_layers": 1, "num_decoder_layers": 1}


def compiled(module: PreTrainedModel) -> QEFFBaseModel:
    model = QEFFAutoModel(module)
    assert isinstance(model, QEFFAutoModelForSeq2SeqLM)
    model.compile(backend="ort_sim", encoder_seq_len=[6, 16], ctx_len=16, batch_size=3, num_cores=2)
    return model


@pytest.fixture(scope="module")
def bart(session_store: None) -> tuple[PreTrainedModel, QEFFBaseModel]:
    module = tiny_seq2seq_lm("bart")
    return module, compiled(module)


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("t5", {}),
        ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, **ONE_LAYER_OF_T5}),
        ("bart", {}),
        ("marian", {}),
        ("m2m_100", {"tie_word_embeddings": False}),
    ],
)
def test_same_tokens_as_eager(model_type: str, fields: dict[str, Any]) -> None:
    module = tiny_seq2seq_lm(model_type, **fields)
    expected = [eager_seq2seq_greedy(module, source, NEW_TOKENS) for source in SOURCES]
    assert len({tuple(tokens) for tokens in expected}) == len(SOURCES), "the reference does not depend on the source"
    assert len({token for tokens in expected for token in tokens}) > 2, "the reference is degenerate"

    model = compiled(module)
    together = model.generate(prompts=SOURCES[:2], generation_len=NEW_TOKENS, ignore_eos=True)
    assert together.generated_ids == expected[:2]
    assert together.prompt_lengths == [11, 3]
    # A shorter source in the program for short ones; what the longer one has left behind it in the states plays no part.
    assert model.generate(prompts=SOURCES[1:], generation_len=NEW_TOKENS, ignore_eos=True).generated_ids == expected[1:]


def test_beams_are_those_of_transformers(bart: tuple[PreTrainedModel, QEFFBaseModel]) -> None:
    module, model = bart
    asked: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": True}
    found: set[tuple[int, ...]] = set()
    for source in SOURCES:
        ids, ends = torch.tensor([source]), [3, 5]
        config = GenerationConfig(
            max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=ends, **asked
        )
        with eager_attention(module), torch.no_grad():
            expected = module.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        output = model.generate(prompts=[source], generation_len=NEW_TOKENS, eos_token_id=ends, **asked)
        for tokens, wanted in zip(output.generated_ids, expected[:, 1:].tolist(), strict=True):
            assert tokens == wanted[: len(tokens)]
            assert set(wanted[len(tokens) :]) <= {0}
        found |= {tuple(tokens) for tokens in output.generated_ids}
    assert len(found) == 2 * len(SOURCES)


def test_sources_that_come_while_others_are_decoded(bart: tuple[PreTrainedModel, QEFFBaseModel]) -> None:
    module, model = bart
    assert model.compiled is not None
    with load_program(model.compiled.directory) as program:
        assert isinstance(program, CompiledSeq2SeqLM)
        engine = Engine(program)
        numbers: list[int] = []
        for source in (*SOURCES, *SOURCES[::-1]):
            numbers.append(engine.add(source, max_new_tokens=NEW_TOKENS - len(numbers), ignore_eos=True))
            engine.step()
            engine.step()
        answers = [[token for piece in engine.stream(number) for token in piece.tokens] for number in numbers]
    assert answers == [
        eager_seq2seq_greedy(module, source, NEW_TOKENS - index)
        for index, source in enumerate((*SOURCES, *SOURCES[::-1]))
    ]


def test_the_padding_of_tokenizer_output_changes_nothing(bart: tuple[PreTrainedModel, QEFFBaseModel]) -> None:
    module, model = bart
    width = max(map(len, SOURCES))
    left = {
        "input_ids": [[0] * (width - len(row)) + row for row in SOURCES],
        "attention_mask": [[0] * (width - len(row)) + [1] * len(row) for row in SOURCES],
    }
    expected = [eager_seq2seq_greedy(module, source, NEW_TOKENS) for source in SOURCES]
    assert model.generate(left, generation_len=NEW_TOKENS, ignore_eos=True).generated_ids == expected


def test_start_forced_and_end_tokens_are_those_of_the_generation_config() -> None:
    module = tiny_seq2seq_lm("t5", seed=1, **ONE_LAYER_OF_T5)
    free = eager_seq2seq_greedy(module, SOURCES[0], NEW_TOKENS, decoder_start_token_id=9, forced_bos_token_id=40)
    settings = module.generation_config
    settings.decoder_start_token_id, settings.forced_bos_token_id, settings.forced_eos_token_id = 9, 40, 77
    settings.eos_token_id = next(token for token in free[2:] if token not in free[:2])
    expected = [eager_seq2seq_greedy(module, source, NEW_TOKENS) for source in SOURCES]
    model = compiled(module)

    output = model.generate(prompts=SOURCES, generation_len=NEW_TOKENS)

    assert output.generated_ids == expected
    assert output.finish_reasons[0] == "eos"
    assert {ids[0] for ids in expected} == {40}
    assert any(ids[-1] == 77 and len(ids) == NEW_TOKENS for ids in expected), "no row reaches the limit"
    # The caller's word counts, as it does in Transformers for the language of a translation.
    other = model.generate(prompts=SOURCES[:1], generation_len=4, forced_bos_token_id=41)
    assert other.generated_ids == [eager_seq2seq_greedy(module, SOURCES[0], 4, forced_bos_token_id=41)]


@pytest.mark.parametrize(
    "rules",
    [
        {"encoder_no_repeat_ngram_size": 1, "no_repeat_ngram_size": 2},
        {"encoder_repetition_penalty": 3.0, "repetition_penalty": 1.5},
        {"bad_words_ids": [[12], [40, 40]], "min_length": 6, "eos_token_id": list(range(64))},
    ],
    ids="+".join,
)
def test_rules_look_at_the_source_as_in_transformers(
    bart: tuple[PreTrainedModel, QEFFBaseModel], rules: dict[str, Any]
) -> None:
    module, model = bart
    expected = [eager_seq2seq_greedy(module, source, NEW_TOKENS, **rules) for source in SOURCES]
    assert expected != [eager_seq2seq_greedy(module, source, NEW_TOKENS) for source in SOURCES]
    assert model.generate(prompts=SOURCES, generation_len=NEW_TOKENS, **rules).generated_ids == expected


def test_a_checkpoint_is_recognised_and_its_artifact_runs_by_itself(tmp_path: Path) -> None:
    module = tiny_seq2seq_lm("t5", **ONE_LAYER_OF_T5)
    checkpoint = save_tiny_checkpoint(tmp_path / "t5", module=module)
    model = QEFFAutoModel.from_pretrained(checkpoint)
    program = model.compile(backend="ort_sim", encoder_seq_len=16, ctx_len=16, batch_size=1, num_cores=2)

    assert program.task == "seq2seq-lm"
    assert {state.kind for state in program.states} == {"kv", "cross"}
    with load_program(program.directory) as runner:
        ids = runner.generate(prompts=SOURCES[:1], generation_len=NEW_TOKENS, ignore_eos=True).generated_ids
    assert ids == [eager_seq2seq_greedy(module, SOURCES[0], NEW_TOKENS)]
    with pytest.raises(UnsupportedModelError, match="use QEFFAutoModelForSeq2SeqLM"):
        QEFFAutoModelForCausalLM.from_pretrained(checkpoint)


def test_what_does_not_fit_is_refused_before_it_runs(bart: tuple[PreTrainedModel, QEFFBaseModel]) -> None:
    _, model = bart
    with pytest.raises(InputError, match="prompt 0 has 17 tokens, the encoder was compiled for 16 at most"):
        model.generate(prompts=[[5] * 17])
    with pytest.raises(InputError, match=r"prompt 1 has no tokens"):
        model.generate(prompts=[[5], []])
    with pytest.raises(InputError, match="1 tokens, and 16 new ones make 17: more than the compiled ctx_len=16"):
        model.generate(prompts=SOURCES[:1], generation_len=16)
    with pytest.raises(InputError, match="decoder_start_token_id=500 is no token of the model"):
        model.generate(prompts=SOURCES[:1], decoder_start_token_id=500)
    with pytest.raises(OptionError, match="one or more lengths of at least 2"):
        model.compile(backend="ort_sim", encoder_seq_len=1)


def test_a_backend_that_cannot_carry_the_task_refuses_before_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    model = QEFFAutoModelForSeq2SeqLM(tiny_seq2seq_lm("t5"))

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the model was exported")

    monkeypatch.setattr(model, "_export", fail)

    class DecodersOnly(OrtSimBackend):
        capabilities = dataclasses.replace(OrtSimBackend.capabilities, tasks=frozenset({"causal-lm"}))

    with pytest.raises(OptionError, match="backend 'ort_sim'.* does not support task 'seq2seq-lm'"):
        model.compile(backend=DecodersOnly())
