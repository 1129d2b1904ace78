"""Families whose code goes around the seam: what Transformers computes, in chunks, with padding in a batch; or a refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BigBirdConfig,
    LongformerConfig,
)

from qeff_framework.coverage.reference import clear_reference
from qeff_framework.coverage.tiny import DEPTH_FIELDS, declared_fields, tiny_config, tiny_model, tiny_prompts
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.export.last_logits import cache_argument
from qeff_framework.export.portable import export_portable
from qeff_framework.seam import special
from qeff_framework.seam.special import refusals
from tests.portable_loop import greedy

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::RuntimeWarning"
)


SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.5,
}

#: Special without a cache only.
ENCODERS = {"big_bird", "fnet", "longformer"}
#: Tested in tests/export/test_seq2seq_lm.py.
ENCODER_DECODERS = {"led", "moonshine", "switch_transformers"}

#: Special with images only: tests/end_to_end/test_image_text.py and the coverage.
OF_IMAGES = {"llama4", "mllama"}
#: Their language model has a type of its own in the list.
WRAPPERS = {"qwen4_exp"}

#: Their tiny configurations have layers of several kinds, each twice.
PATTERNED = {"gpt_neo", "minimax"}
#: These take four times as long as others: one layer of each kind.
ONE_OF_A_KIND: dict[str, dict[str, object]] = {
    "deepseek_v4": {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention"],
        "mlp_layer_types": ["hash_moe", "moe", "moe"],
    },
    "qwen4_exp_text": {
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "indexed_attention"],
        "ple_layer_ids": [1],
    },
}
NEW_TOKENS = 8


def changes(model_type: str) -> dict[str, object]:
    """No more layers than two of the kind that is special, and the biases without which Falcon is not."""
    if model_type in PATTERNED:
        return {}
    if model_type in ONE_OF_A_KIND:
        return ONE_OF_A_KIND[model_type]
    if model_type == "recurrent_gemma":
        return {"num_hidden_layers": 3}  # two of three are recurrent
    depth = [name for name in DEPTH_FIELDS if name in declared_fields(type(tiny_config(model_type, "causal-lm")))]
    return dict.fromkeys(depth, 2) | ({"alibi": True} if model_type == "falcon" else {})


@pytest.mark.parametrize(
    "model_type", sorted(special._FAMILIES.keys() - ENCODERS - ENCODER_DECODERS - OF_IMAGES - WRAPPERS)
)
def test_tokens_equal_transformers(model_type, tmp_path):
    module = tiny_model(model_type, "causal-lm", changes=changes(model_type))
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    reference = clear_reference(module, NEW_TOKENS)

    exported = export_portable(module, task="causal-lm", output_dir=tmp_path)

    tokens = greedy(exported, reference.prompts, new_tokens=NEW_TOKENS, chunk=4, ctx_len=24)
    assert tokens == reference.tokens
    # Neither chunks nor context are multiples of the blocks of two and four tokens that some families make keys of; and an
    # earlier text has left something in every state.
    others = greedy(exported, reference.prompts, new_tokens=NEW_TOKENS, chunk=5, ctx_len=23, left_over=7.0)
    assert others == tokens
    if model_type != "rwkv":  # Transformers itself halves weights of it when it runs them.
        assert all(parameter.equal(before[name]) for name, parameter in module.named_parameters())


@pytest.mark.parametrize(
    ("task", "auto", "outputs"),
    [
        # The first token is global for a classifier, and the tokens of the question for question answering.
        ("sequence-classification", AutoModelForSequenceClassification, ["logits"]),
        ("question-answering", AutoModelForQuestionAnswering, ["start_logits", "end_logits"]),
    ],
)
def test_longformer_with_windows_and_global_tokens_equals_transformers(task, auto, outputs, tmp_path):
    config = LongformerConfig(**SIZES, attention_window=[4, 8], num_labels=2, sep_token_id=2, type_vocab_size=1)
    torch.manual_seed(0)
    module = auto.from_config(config).eval()
    # Longer than the windows, and neither is a multiple of them; the question is in front of the first separator.
    rows = [[0, 5, 9, 2, 2, *range(11, 25), 2], [0, 7, 2, 2, 31, 45, 52, 2]]
    ids = np.array([row + [1] * (len(rows[0]) - len(row)) for row in rows])
    mask = np.array([[1] * len(row) + [0] * (len(rows[0]) - len(row)) for row in rows])

    exported = export_portable(module, task=task, output_dir=tmp_path)

    session = ort.InferenceSession(str(exported.model_path), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == outputs
    for name, result in zip(outputs, session.run(None, {"input_ids": ids, "attention_mask": mask}), strict=True):
        for row, got in zip(rows, result, strict=True):
            with torch.no_grad():
                alone = torch.tensor([row])
                want = module(alone, attention_mask=torch.ones_like(alone))[name][0].numpy()
            np.testing.assert_allclose(got[: len(want)], want, rtol=1e-3, atol=1e-4)


def test_big_bird_tells_question_and_context_apart_by_itself(tmp_path):
    config = BigBirdConfig(**SIZES, attention_type="original_full", sep_token_id=2)
    torch.manual_seed(0)
    module = AutoModelForQuestionAnswering.from_config(config).eval()
    rows = [[1, 5, 9, 2, 17, 11, 23, 2], [1, 7, 2, 31, 2]]
    ids = np.array([row + [0] * (len(rows[0]) - len(row)) for row in rows])

    exported = export_portable(module, task="question-answering", output_dir=tmp_path)

    session = ort.InferenceSession(str(exported.model_path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)})
    for name, result in zip(("start_logits", "end_logits"), found, strict=True):
        for row, got in zip(rows, result, strict=True):
            with torch.no_grad():
                want = module(torch.tensor([row]))[name][0].numpy()
            context = slice(row.index(2) + 1, len(row))
            assert want[context].std() > 0.1
            np.testing.assert_allclose(got[context], want[context], rtol=1e-3, atol=1e-4)


def test_each_family_stands_in_a_file_with_its_reason():
    files = {path.stem for path in Path(special.__file__).parent.glob("*.py")} - {"__init__", "refusals"}

    assert files == set(special._FAMILIES.values())
    for name in files:
        text = (Path(special.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
        assert text.startswith('"""'), f"{name} does not say why it is special"


@pytest.mark.parametrize("model_type", refusals._REASONS)
def test_what_no_steps_can_compute_is_refused_before_it_is_traced(model_type, tmp_path, monkeypatch):
    monkeypatch.setattr("qeff_framework.export.causal_lm.weightless_copy", lambda module: pytest.fail("it went on"))

    with pytest.raises(UnsupportedModelError, match=r"cannot be exported as causal-lm: .*; run it with Transformers"):
        export_portable(_refused(model_type), task="causal-lm", output_dir=tmp_path)


@pytest.mark.parametrize("model_type", refusals._ENCODER_REASONS)
def test_an_encoder_that_has_no_graph_for_all_lengths_is_refused_before_it_is_traced(model_type, tmp_path, monkeypatch):
    monkeypatch.setattr("qeff_framework.export.encoder.weightless_copy", lambda module: pytest.fail("it went on"))

    with pytest.raises(UnsupportedModelError, match="cannot be exported as encoder: .*; choose a model") as caught:
        export_portable(tiny_model(model_type, "encoder"), task="encoder", output_dir=tmp_path)
    assert refusals._ENCODER_REASONS[model_type] in str(caught.value)


def test_attention_that_skips_keys_of_long_texts_only_is_refused(tmp_path):
    config = BigBirdConfig(**SIZES, attention_type="block_sparse", block_size=4, num_random_blocks=1)
    torch.manual_seed(0)
    module = AutoModel.from_config(config).eval()
    text = torch.arange(32)[None] + 1  # more than (5 + 2) * 4
    with torch.no_grad():
        sparse = module(text).last_hidden_state
        module.set_attention_type("original_full")
        whole = module(text).last_hidden_state
    assert (sparse - whole).abs().max() > 0.1

    with pytest.raises(UnsupportedModelError, match="load it with attention_type='original_full'"):
        export_portable(AutoModel.from_config(config).eval(), task="encoder", output_dir=tmp_path)


@pytest.mark.parametrize("model_type", refusals._REASONS)
def test_a_refused_model_does_compute_something_else_in_steps(model_type):
    module, prompt = _refused(model_type), tiny_prompts()[1]

    with torch.no_grad():
        whole = module(input_ids=torch.tensor([prompt])).logits[0]
        steps = (
            _one_by_one(module, prompt)
            if model_type == "blt"
            else module(input_ids=torch.tensor([prompt[:8]])).logits[0]
        )

    # Steps cannot know what comes behind the eighth token. BLT would not need to, but its cache lacks what comes before.
    assert (whole[:8] - steps[:8]).abs().max() > 0.1


def _refused(model_type):
    """A tiny model to which the refusal applies."""
    module = tiny_model(model_type, "causal-lm")
    if model_type == "xlm":
        module.config.causal = module.transformer.causal = False
    if model_type == "reformer":  # Texts within two chunks are not sorted.
        module.config.lsh_attn_chunk_length = 4
        for part in module.modules():
            if hasattr(part, "hash_seed"):
                part.chunk_length = 4
    return module


def _one_by_one(module, prompt):
    """Logits ``[S, V]`` of a prompt that is read in steps of one token."""
    name, cache, logits = cache_argument(module), None, []
    for token in prompt:
        output = module(input_ids=torch.tensor([[token]]), use_cache=True, **{name: cache})
        cache = output[name]
        logits.append(output.logits[0, -1])
    return torch.stack(logits)
