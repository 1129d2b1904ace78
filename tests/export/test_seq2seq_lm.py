"""The portable graph of an encoder-decoder: its interface, and what its steps compute and leave alone."""

from __future__ import annotations

import numpy as np
import onnx_ir
import onnxruntime as ort
import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from qeff_framework.contracts import TensorSpec
from qeff_framework.coverage.tiny import tiny_model
from qeff_framework.errors import UnsupportedModelError
from qeff_framework.export import seq2seq_lm
from qeff_framework.export.portable import export_portable
from qeff_framework.seam import mask_plan
from qeff_framework.seam.arange_positions import PositionalArangeMode
from tests.tiny_models import tiny_seq2seq_lm

SOURCES = [[5, 17, 99, 23, 42], [71, 30]]
DECODED = [[3, 40, 12], [3, 7, 99]]
CTX_LEN, ENCODER_CTX_LEN = 6, 8


@pytest.fixture(scope="module")
def t5():
    return tiny_seq2seq_lm("t5")


@pytest.fixture(scope="module")
def traces():
    """An entry for each trace of `export`."""
    return []


@pytest.fixture(scope="module")
def export(t5, traces, tmp_path_factory):
    trace = seq2seq_lm.trace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seq2seq_lm, "trace", lambda *args: traces.append(args) or trace(*args))
        return export_portable(t5, task="seq2seq-lm", output_dir=tmp_path_factory.mktemp("t5"))


@pytest.fixture
def step(export):
    return _stepper(export)


def _stepper(export):
    """Runs one step over states that it keeps; the states are ``step.states``."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(export.model_path), options, providers=["CPUExecutionProvider"])
    dims = {"batch_size": len(SOURCES), "ctx_len": CTX_LEN, "encoder_ctx_len": ENCODER_CTX_LEN}
    names = {state.input for state in export.states}
    states = {
        spec.name: np.zeros([dims.get(str(dim), dim) for dim in spec.shape], dtype=spec.dtype)
        for spec in export.inputs
        if spec.name in names
    }

    def run(tokens, positions, source_length):
        ids = np.zeros((len(SOURCES), source_length), np.int64)
        places = np.full_like(ids, -1)
        for row, source in enumerate(SOURCES if source_length > 1 else []):
            ids[row, : len(source)] = source
            places[row, : len(source)] = range(len(source))
        feeds = {
            "input_ids": np.array(tokens),
            "position_ids": np.array(positions),
            "encoder_input_ids": ids,
            "encoder_position_ids": places,
            "encoder_lengths": np.array([[len(source)] for source in SOURCES]),
        }
        outputs = session.run(["logits", *(state.output for state in export.states)], {**feeds, **states})
        states.update(zip((state.input for state in export.states), outputs[1:], strict=True))
        return outputs[0][:, 0]

    run.states = states
    return run


def test_interface(export):
    tokens, source = ("batch_size", "seq_len"), ("batch_size", "encoder_seq_len")
    assert export.inputs[:5] == (
        TensorSpec(name="input_ids", dtype="int64", shape=tokens),
        TensorSpec(name="position_ids", dtype="int64", shape=tokens),
        TensorSpec(name="encoder_input_ids", dtype="int64", shape=source),
        TensorSpec(name="encoder_position_ids", dtype="int64", shape=source),
        TensorSpec(name="encoder_lengths", dtype="int64", shape=("batch_size", 1)),
    )
    shapes = {spec.name: spec.shape for spec in export.inputs}
    kinds = {state.input: state.kind for state in export.states}
    assert kinds["past_key.2"] == "kv"
    assert shapes["past_key.2"] == ("batch_size", 4, "ctx_len", 8)
    assert kinds["past_value_cross.2"] == "cross"
    assert shapes["past_value_cross.2"] == ("batch_size", 4, "encoder_ctx_len", 8)
    assert export.metadata["source_vocab_size"] == 128
    # The first layer of a stack makes the bias on positions; of the others one was traced.
    names = {str(node.name).partition("/")[0] for node in onnx_ir.load(export.model_path).graph}
    assert {name for name in names if "block" in name} == {"decoder.block.1", "decoder.block.2"}


def test_a_decoder_that_numbers_its_tokens_is_traced_once(export, traces):
    assert export.states
    assert len(traces) == 1


@pytest.mark.parametrize("source_length", [5, 7])
def test_logits_equal_transformers_in_every_step(t5, step, source_length):
    _assert_logits_equal(t5, step, source_length)


def _assert_logits_equal(module, step, source_length):
    for place in range(3):
        tokens = [[row[place]] for row in DECODED]
        logits = step(tokens, [[place]] * 2, source_length if place == 0 else 1)
        for row, (source, decoded) in enumerate(zip(SOURCES, DECODED, strict=True)):
            with torch.no_grad():
                ids = torch.tensor([source])
                expected = module(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    decoder_input_ids=torch.tensor([decoded[: place + 1]]),
                ).logits[0, -1]
            np.testing.assert_allclose(logits[row], expected.numpy(), rtol=1e-4, atol=1e-4)


def test_switch_transformers_leaves_out_what_does_not_fit_its_experts(tmp_path):
    fields = {"num_experts": 2, "num_sparse_encoder_layers": 2, "num_decoder_layers": 1}
    module = tiny_seq2seq_lm("switch_transformers", **fields)
    # Of five tokens one at least finds its expert taken by two. In the decoder it would depend on how many are read at a time.
    for part in module.get_encoder().modules():
        if hasattr(part, "expert_capacity"):
            part.expert_capacity = 2
    export = export_portable(module, task="seq2seq-lm", output_dir=tmp_path)
    _assert_logits_equal(module, _stepper(export), 7)


def test_led_attends_in_windows_that_are_shorter_than_the_source(tmp_path):
    module = tiny_seq2seq_lm("led", attention_window=4, decoder_layers=1)
    export = export_portable(module, task="seq2seq-lm", output_dir=tmp_path)
    _assert_logits_equal(module, _stepper(export), 7)


def test_an_encoder_that_adds_masks_to_its_scores_by_itself_gets_numbers(tmp_path):
    # Its decoder goes through the attention interface and shares its config.
    module = tiny_seq2seq_lm("bigbird_pegasus", attention_type="original_full", decoder_layers=1)
    export = export_portable(module, task="seq2seq-lm", output_dir=tmp_path)
    _assert_logits_equal(module, _stepper(export), 7)


def test_a_step_without_tokens_for_the_encoder_leaves_its_states_bit_for_bit(step):
    step([[3], [3]], [[0], [0]], 5)
    before = {name: state.copy() for name, state in step.states.items()}
    step([[40], [7]], [[1], [-1]], 1)

    changed = {name for name, state in step.states.items() if not np.array_equal(state, before[name])}
    assert changed == {name for name in before if "_cross" not in name}
    assert before["past_key_cross.0"][0, :, :5].any(axis=-1).all()
    assert not before["past_key_cross.0"][1, :, 2:].any(), "padding of the source was written"


def test_a_cross_mask_of_another_form_is_refused(monkeypatch, tmp_path):
    config = AutoConfig.for_model("bart", vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1)
    config.encoder_attention_heads = config.decoder_attention_heads = 2
    monkeypatch.setattr(mask_plan, "recognise", lambda function, sizes: None)
    with pytest.raises(UnsupportedModelError, match="cross-attention masks more than the padding"):
        export_portable(AutoModelForSeq2SeqLM.from_config(config), task="seq2seq-lm", output_dir=tmp_path)


def test_a_count_along_the_tokens_that_is_not_answered_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("qeff_framework.export.seq2seq_lm.PositionalCountMode", PositionalArangeMode)
    module = tiny_seq2seq_lm("m2m_100", encoder_layers=1, decoder_layers=1)
    with pytest.raises(UnsupportedModelError, match="its decoder counts along the tokens of the step"):
        export_portable(module, task="seq2seq-lm", output_dir=tmp_path)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("fsmt", "it makes its attention masks by itself"),
        ("longt5", "its encoder cuts the source into blocks"),
        ("pegasus_x", "its encoder cuts the source into blocks"),
        ("prophetnet", "adds position biases of other tokens"),
    ],
)
def test_what_has_no_such_graph_is_refused_before_the_trace(model_type, reason, monkeypatch, tmp_path):
    monkeypatch.setattr("qeff_framework.export.seq2seq_lm.trace", lambda *arguments: pytest.fail("it went on"))
    with pytest.raises(UnsupportedModelError, match=f"cannot be exported as seq2seq-lm: .*{reason}"):
        export_portable(tiny_model(model_type, "seq2seq-lm"), task="seq2seq-lm", output_dir=tmp_path)
