"""Target aic with the programs of continuous batching, compute contexts and speculative targets: two graphs each."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import yaml

from qeff_framework import QEFFAutoModelForCausalLM
from qeff_framework.contracts import EXTRA_INPUTS
from qeff_framework.errors import CompileError, OptionError
from qeff_framework.generation import GenerationSettings, TextGenerator
from qnn_backend import QnnBackend, QnnOptions
from tests.eager import eager_greedy
from tests.tiny_models import tiny_causal_lm
from tests.twelve_prompts import CTX_LEN, MAX_LENGTH, answers_alone, twelve_prompts

pytestmark = pytest.mark.usefixtures("session_store")

BATCH_INDEX, CONTEXTS, KEPT_LOGITS = EXTRA_INPUTS
SIZES = {"backend": "qnn", "target": "aic", "num_cores": 2, "prefill_seq_len": 4, "ctx_len": CTX_LEN}
PROMPTS = [[5, 17, 99, 23, 42, 7, 64, 31, 88, 12, 54], [71, 3, 90]]


def io_config(compiled: Any) -> dict[str, Any]:
    document = yaml.safe_load((compiled.directory / "custom_io_config.yaml").read_text())
    return {item["Name"]: item["Desired Model Parameters"] for item in document["Input Tensor Configuration"]}


def test_standin_twelve_prompts_in_four_rows(standin_qairt, standin_card) -> None:
    standin_qairt()
    standin_card()
    module, _ = tiny_causal_lm("llama")
    model, prompts = QEFFAutoModelForCausalLM(module), twelve_prompts()
    _, eos = answers_alone(module, prompts)
    asked = {"max_length": MAX_LENGTH, "eos_token_id": eos}
    model.compile(**SIZES)
    alone = [model.generate(prompts=[prompt], **asked).generated_ids[0] for prompt in prompts]
    assert len({len(answer) for answer in alone}) > 5

    compiled = model.compile(full_batch_size=4, **SIZES)
    inputs = io_config(compiled)
    assert inputs[BATCH_INDEX] == {"DataType": "int64", "Shape": "(1, 1), (4, 1)"}
    assert inputs["past_key_0"]["Shape"] == f"(4, 2, {CTX_LEN}, 8)"
    assert model.generate(prompts=prompts, **asked).generated_ids == alone
    model.load().close()


def test_standin_a_compute_context_for_the_prompt_and_one_for_decoding(standin_qairt, standin_card) -> None:
    """One length each makes two graphs; more are more than the converter supports."""
    qairt = standin_qairt()
    standin_card()
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModelForCausalLM(module)
    with pytest.raises(CompileError, match="3 specializations were asked for"):
        model.compile(comp_ctx_lengths_prefill=(8, 16), comp_ctx_lengths_decode=(CTX_LEN,), **SIZES)
    assert not qairt.invocations("qairt-converter")
    compiled = model.compile(comp_ctx_lengths_prefill=(16,), comp_ctx_lengths_decode=(CTX_LEN,), batch_size=2, **SIZES)
    assert io_config(compiled)[CONTEXTS]["Shape"] == f"(16), ({CTX_LEN})"
    output = model.generate(prompts=PROMPTS, generation_len=8, ignore_eos=True)
    assert output.generated_ids == [eager_greedy(module, prompt, 8) for prompt in PROMPTS]
    model.load().close()


def test_standin_drafts_are_checked_in_one_step(standin_qairt, standin_card) -> None:
    standin_qairt()
    standin_card()
    module, _ = tiny_causal_lm("llama")
    prompt = PROMPTS[0][:6]
    tokens = eager_greedy(module, prompt, 4)
    model = QEFFAutoModelForCausalLM(module)
    model.compile(num_speculative_tokens=3, **SIZES)
    runner = model.load()
    session = runner.session
    asked = GenerationSettings(max_new_tokens=4, eos_token_ids=())
    assert TextGenerator(session).generate_ids([prompt], asked).generated_ids == [tokens]
    session.reset()
    one, four = np.zeros((1, 1), np.int64), np.zeros((4, 1), np.int64)
    session.run({"input_ids": np.array([prompt[:4]]), "position_ids": np.arange(4)[None], KEPT_LOGITS: one})
    rest = {"input_ids": np.array([[*prompt[4:], 0, 0]]), "position_ids": np.array([[4, 5, -1, -1]])}
    assert session.run({**rest, KEPT_LOGITS: one})["logits"][0, 0].argmax() == tokens[0]
    drafts = {"input_ids": np.array([tokens]), "position_ids": np.arange(6, 10)[None]}
    checked = session.run({**drafts, KEPT_LOGITS: four})["logits"]
    assert checked[0].argmax(axis=1).tolist()[:3] == tokens[1:]
    runner.close()


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"full_batch_size": 4}, "full_batch_size"),
        ({"num_speculative_tokens": 3}, "num_speculative_tokens"),
        ({"comp_ctx_lengths_prefill": (16,), "comp_ctx_lengths_decode": (CTX_LEN,)}, "comp_ctx_lengths_prefill"),
    ],
)
def test_a_chip_refuses_what_only_the_card_can_do(asked: dict[str, Any], named: str) -> None:
    module, _ = tiny_causal_lm("llama")
    with pytest.raises(OptionError, match=f"'qnn' does not support {named}.* for target SM8650"):
        QEFFAutoModelForCausalLM(module).compile(backend="qnn", prefill_seq_len=4, ctx_len=CTX_LEN, **asked)


def test_the_backend_as_a_whole_can_do_what_a_target_can() -> None:
    backend = QnnBackend()
    for target in ("SM8650", "aic"):
        found = dataclasses.asdict(backend.capabilities_for(QnnOptions(target=target)))
        assert found.pop("scope") == f"target {target}"
        for name, value in found.items():
            whole = getattr(backend.capabilities, name)
            assert value <= whole, name  # subsets of tasks, and what is claimed at all
