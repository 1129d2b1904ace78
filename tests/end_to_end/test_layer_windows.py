"""A language model as several programs of some of its layers each: the same tokens as Transformers' eager greedy decoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qeff_framework import QEFFAutoModel, load_compiled
from qeff_framework.plugin_api import OptionError
from qeff_framework.sessions import host_inputs, host_outputs
from tests.eager import eager_greedy
from tests.tiny_models import tiny_causal_lm

pytestmark = pytest.mark.usefixtures("session_store")

#: Longer than the sliding windows of 5, longer than one prefill step, and of unequal lengths.
PROMPTS = [[5, 17, 99, 23, 42, 7, 64, 31, 88, 12, 54], [71, 3, 90], [11, 29, 47, 83, 101, 6, 38, 77]]
NEW_TOKENS = 8
SIZES = {"prefill_seq_len": 4, "ctx_len": 32, "num_cores": 2}


@pytest.mark.parametrize(
    ("model_type", "layers", "windows"),
    [
        ("llama", 1, ["layers_0_0", "layers_1_1"]),
        ("gemma3_text", 2, ["layers_0_1", "layers_2_2"]),
        ("mixtral", 1, ["layers_0_0", "layers_1_1"]),
    ],
)
def test_windows_of_layers_give_the_tokens_of_eager_in_continuous_batches(model_type, layers, windows):
    module, config = tiny_causal_lm(model_type)
    model = QEFFAutoModel(module)

    compiled = model.compile("ort_sim", full_batch_size=2, num_layers_per_program=layers, **SIZES)
    output = model.generate(prompts=PROMPTS, generation_len=NEW_TOKENS, ignore_eos=True)

    assert output.generated_ids == [eager_greedy(module, prompt, NEW_TOKENS) for prompt in PROMPTS]
    first, second = compiled.parts().values()
    assert [*compiled.programs] == windows
    # Masks and rotary embeddings are computed in each program: the hidden states alone are handed on.
    (handed_on,) = host_outputs(first)
    assert handed_on.shape == ("batch_size", "seq_len", config.hidden_size)
    assert [spec.name for spec in host_inputs(second)] == ["position_ids", "batch_index", handed_on.name]
    assert len(first.states) + len(second.states) == len(compiled.states) == 2 * config.num_hidden_layers


def test_the_states_of_all_windows_are_those_of_one_session(tmp_path: Path):
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModel(module)
    whole = model.compile("ort_sim", batch_size=1, **SIZES)
    cut = model.compile("ort_sim", batch_size=1, num_layers_per_program=1, compile_dir=tmp_path / "cut", **SIZES)
    steps = [(PROMPTS[0][:4], [0, 1, 2, 3]), (PROMPTS[0][4:6], [4, 5, -1, -1])]
    feeds = [
        {"input_ids": np.array([[*ids, *[0] * (4 - len(ids))]]), "position_ids": np.array([places])}
        for ids, places in steps
    ]

    with load_compiled(whole.directory) as one, load_compiled(cut.directory) as several:
        assert several.info["programs"] == "2"
        for feed in feeds:
            expected, found = one.session.run(feed), several.session.run(feed)
            assert np.array_equal(expected["logits"], found["logits"])
        held = one.session.read_states()
        assert all(np.array_equal(value, held[name]) for name, value in several.session.read_states().items())
        several.session.reset()
        assert not any(value.any() for value in several.session.read_states().values())
        several.session.write_states(held)
        assert np.array_equal(several.session.read_states(["past_key.1"])["past_key.1"], held["past_key.1"])


def test_a_window_of_all_layers_is_an_ordinary_program_and_the_number_is_part_of_the_key():
    model = QEFFAutoModel(tiny_causal_lm("llama")[0])

    whole = model.compile("ort_sim", batch_size=1, **SIZES)
    same = model.compile("ort_sim", batch_size=1, num_layers_per_program=9, **SIZES)

    assert same.programs == {}
    assert not same.chained
    assert same.directory != whole.directory


def test_numbers_and_tasks_that_have_no_windows_are_refused():
    model = QEFFAutoModel(tiny_causal_lm("llama")[0])
    with pytest.raises(OptionError, match="option 'num_layers_per_program' must be at least 1, got 0"):
        model.compile("ort_sim", num_layers_per_program=0, **SIZES)
    with pytest.raises(OptionError, match="num_layers_per_program=1 does not go with precision='w4'"):
        model.compile("ort_sim", num_layers_per_program=1, precision="w4", **SIZES)
