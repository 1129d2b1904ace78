"""A language model as several programs of some of its layers each: the same tokens as Transformers' eager greedy decoding.

``benchmarks/layer_windows.py`` compares models of all families with themselves uncut.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qeff_framework import QEFFAutoModel, QEFFAutoModelForImageTextToText, load_compiled
from qeff_framework.coverage.tiny import tiny_model
from qeff_framework.errors import ArtifactCorruptError, ArtifactError
from qeff_framework.plugin_api import CompiledModel, OptionError
from qeff_framework.sessions import host_inputs, host_outputs
from tests.eager import eager_greedy
from tests.image_models import IMAGE_TOKEN, Processor, built, greedy, qwen3_vl
from tests.image_models import NEW_TOKENS as IMAGE_TOKENS
from tests.tiny_models import tiny_causal_lm, tiny_seq2seq_lm

pytestmark = pytest.mark.usefixtures("session_store")

#: Longer than the sliding windows of 5, longer than one prefill step, and of unequal lengths.
PROMPTS = [[5, 17, 99, 23, 42, 7, 64, 31, 88, 12, 54], [71, 3, 90], [11, 29, 47, 83, 101, 6, 38, 77]]
NEW_TOKENS = 8
SIZES = {"prefill_seq_len": 4, "ctx_len": 32, "num_cores": 2}


def test_windows_of_layers_give_the_tokens_of_eager_in_continuous_batches():
    module, config = tiny_causal_lm("gemma3_text")
    model = QEFFAutoModel(module)

    compiled = model.compile("ort_sim", full_batch_size=2, num_layers_per_program=2, **SIZES)
    output = model.generate(prompts=PROMPTS, generation_len=NEW_TOKENS, ignore_eos=True)

    assert output.generated_ids == [eager_greedy(module, prompt, NEW_TOKENS) for prompt in PROMPTS]
    first, second = compiled.windows().values()
    assert [*compiled.programs] == ["layers_0_1", "layers_2_2"]
    assert compiled.parts() == {"": compiled}
    # Masks and rotary embeddings are computed in each program: the hidden states alone are handed on.
    (handed_on,) = host_outputs(first)
    assert handed_on.shape == ("batch_size", "seq_len", config.hidden_size)
    assert [spec.name for spec in host_inputs(second)] == ["position_ids", "batch_index", handed_on.name]
    assert len(first.states) + len(second.states) == len(compiled.states) == 2 * config.num_hidden_layers


def test_a_cache_that_layers_of_several_windows_read_is_a_state_of_each():
    """Nothing that is handed on grows with the context: the new keys and values of a step are, and each window writes its own."""
    layers = {"num_hidden_layers": 3, "num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 3}
    module = tiny_model("gemma4_text", "causal-lm", changes=layers)
    model = QEFFAutoModel(module)
    compiled = model.compile("ort_sim", batch_size=1, num_layers_per_program=2, **SIZES)

    output = model.generate(prompts=PROMPTS[:1], generation_len=NEW_TOKENS, ignore_eos=True)

    assert output.generated_ids == [eager_greedy(module, PROMPTS[0], NEW_TOKENS)]
    windows = [*compiled.windows().values()]
    assert sum(len(window.states) for window in windows) > len(compiled.states)
    assert not {"ctx_len"} & {size for window in windows for spec in host_outputs(window) for size in spec.shape}


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [
        ({"include_sampler": True, "comp_ctx_lengths_prefill": (12,), "comp_ctx_lengths_decode": (16, 24)}, {}),
        ({"num_speculative_tokens": 2, "prefill_seq_len": (4, 8)}, {"prompt_lookup_num_tokens": 2}),
    ],
    ids=["sampler and compute contexts", "drafts and two chunks"],
)
def test_each_window_has_the_inputs_that_it_reads_sizes_of(sizes, settings):
    """The sampler, with what it knows of a row, stands behind the last layer; compute contexts are sizes of every mask."""
    module, _ = tiny_causal_lm("llama")
    model = QEFFAutoModel(module)
    compiled = model.compile("ort_sim", full_batch_size=2, num_layers_per_program=1, **{**SIZES, **sizes})

    output = model.generate(prompts=PROMPTS, generation_len=NEW_TOKENS, ignore_eos=True, **settings)

    assert output.generated_ids == [eager_greedy(module, prompt, NEW_TOKENS) for prompt in PROMPTS]
    first, last = compiled.windows().values()
    assert not [state for state in first.states if state.kind == "sampler"]
    fed = [{spec.name for spec in host_inputs(window)} for window in (first, last)]
    assert "num_logits_to_keep" not in fed[0]
    assert ("comp_ctx_lengths" in fed[0] & fed[1]) == ("include_sampler" in sizes)


def test_the_language_model_behind_an_image_encoder_is_cut():
    """Qwen3-VL: its first layers read features of the image as well. What an earlier text has left in the module plays no part."""
    module, image = built(qwen3_vl)
    module.model.rope_deltas = torch.tensor([[7]])
    prompt = [5, 6, 7, *[IMAGE_TOKEN] * 6, 8, 9]
    model = QEFFAutoModelForImageTextToText(module, processor=Processor(image))
    sizes = {"prefill_seq_len": 4, "ctx_len": 32, "img_size": 28, "num_layers_per_program": 1}
    compiled = model.compile("ort_sim", **sizes)

    output = model.generate(
        {"input_ids": np.array([prompt]), "attention_mask": np.ones((1, len(prompt)), np.int64), **image},
        generation_len=IMAGE_TOKENS,
        ignore_eos=True,
    )

    assert output.generated_ids == [greedy(module, prompt, [image])]
    assert {name: len(part.windows()) for name, part in compiled.parts().items()} == {"vision": 0, "language": 2}
    with pytest.raises(
        OptionError, match="num_layers_per_program=1 cuts the language model, and with kv_offload=False"
    ):
        QEFFAutoModelForImageTextToText(module, kv_offload=False).compile("ort_sim", **sizes)


@pytest.fixture(scope="module")
def three_windows(tmp_path_factory: pytest.TempPathFactory, session_store: Path) -> Path:
    model = QEFFAutoModel(tiny_causal_lm("llama", num_hidden_layers=3)[0])
    directory = tmp_path_factory.mktemp("windows") / "artifact"
    model.compile("ort_sim", batch_size=1, num_layers_per_program=1, compile_dir=directory, **SIZES)
    return directory


def exchanged(directory: Path) -> None:
    first, second, aside = (directory / "programs" / name for name in ("layers_1_1", "layers_2_2", "aside"))
    for source, target in ((first, aside), (second, first), (aside, second)):
        source.rename(target)


def edited(change: Callable[[dict[str, Any]], object], *, program: str = "") -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        file = directory / program / CompiledModel.FILE
        content = json.loads(file.read_text(encoding="utf-8"))
        change(content)
        file.write_text(json.dumps(content), encoding="utf-8")

    return apply


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: shutil.rmtree(path / "programs" / "layers_1_1"), "holds no compiled.json"),
    "exchanged": (exchanged, "layers_1_1 stands in the place of program 2 of 3, and was made for another one"),
    "left out": (edited(lambda content: content["programs"].pop("layers_1_1")), "layers_0_0 stands in the place of"),
    "of another artifact": (
        edited(lambda content: content["metadata"]["window"].update(key="0"), program="programs/layers_1_1"),
        "layers_0_0 and another one are of two artifacts",
    ),
    "reads something else": (
        edited(lambda content: content["outputs"][0].update(name="carried_9"), program="programs/layers_0_0"),
        "layers_1_1 reads carried_0, which no program before it returns in this form",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_windows_that_are_not_those_of_the_artifact_are_refused(fault, three_windows, tmp_path, monkeypatch):
    """Also where the manifest has been made to agree: they would give wrong tokens."""
    damage, message = FAULTS[fault]
    shutil.copytree(three_windows, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(ArtifactCorruptError):
        load_compiled(tmp_path / "copy")
    monkeypatch.setattr("qeff_framework.runtime.loading.open_artifact", lambda *_, **__: None)
    with pytest.raises(ArtifactError, match=message):
        load_compiled(tmp_path / "copy")


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
        assert np.shares_memory(
            several.session.states["past_key.1"], several.session.sessions["layers_1_1"].states["past_key.1"]
        )
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
    with pytest.raises(
        OptionError, match="num_layers_per_program=1 is for programs that generate text token by token.*leave it out"
    ):
        QEFFAutoModel(tiny_seq2seq_lm("t5")).compile("ort_sim", num_layers_per_program=1)
    with pytest.raises(OptionError, match="num_layers_per_program=1 does not go with precision='w4'"):
        model.compile("ort_sim", num_layers_per_program=1, precision="w4", **SIZES)
