"""Encoders and classifiers against Transformers, over padded batches of several sizes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
import torch
from transformers import PreTrainedModel, XLNetConfig, XLNetModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qeff_framework.contracts import ExportedModel
from qeff_framework.export.encoder import input_names
from qeff_framework.export.portable import export_portable
from tests.tiny_models import VOCAB_SIZE, tiny_classifier, tiny_encoder

#: Lengths of the rows of each batch; the second one has no padding and a single token.
BATCHES = [(7, 4, 1), (1,), (3, 3)]


@pytest.mark.parametrize(
    ("model_type", "inputs"),
    [
        ("bert", ["input_ids", "attention_mask", "token_type_ids"]),
        ("distilbert", ["input_ids", "attention_mask"]),
        ("mpnet", ["input_ids", "attention_mask"]),  # a bias on relative positions
        ("modernbert", ["input_ids", "attention_mask"]),  # windows in both directions
        ("xmod", ["input_ids", "attention_mask", "token_type_ids"]),  # rows selected by the contents of a tensor
        ("qwen3", ["input_ids", "attention_mask"]),  # a decoder as an embedding model
    ],
)
def test_hidden_states_equal_transformers(model_type, inputs, tmp_path):
    model = tiny_encoder(model_type)

    exported = export_portable(model, task="encoder", output_dir=tmp_path)

    onnx.checker.check_model(str(exported.model_path), full_check=True)
    assert [spec.name for spec in exported.inputs] == inputs
    assert [(spec.name, spec.shape) for spec in exported.outputs] == [
        ("last_hidden_state", ("batch_size", "seq_len", 32))
    ]
    for lengths in BATCHES:
        feeds = batch(exported, lengths)
        real = feeds["attention_mask"].astype(bool)
        result, expected = run(exported, feeds), reference(model, feeds).last_hidden_state.numpy()
        np.testing.assert_allclose(result[real], expected[real], rtol=1e-4, atol=2e-5)


def test_settings_of_the_form_of_a_forward_change_nothing(tmp_path):
    """Tuples in place of results with names, and a feed-forward in pieces, of which there are more in a longer text."""
    model = tiny_encoder("bert", num_hidden_layers=1, return_dict=False, chunk_size_feed_forward=2)

    exported = export_portable(model, task="encoder", output_dir=tmp_path)

    feeds = batch(exported, (6, 6))
    result, expected = run(exported, feeds), reference(model, feeds)[0].numpy()
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-5)


def test_types_that_attention_compares_are_an_input():
    """XLNet has no table of token types, so that its config has no number of them."""
    with torch.device("meta"):
        model = XLNetModel(XLNetConfig(vocab_size=VOCAB_SIZE, d_model=32, n_layer=1, n_head=4, d_inner=48))

    assert input_names(model) == ("input_ids", "attention_mask", "token_type_ids")


def test_attention_that_bypasses_the_interface_gets_masks_that_it_can_add(tmp_path, monkeypatch):
    """Code that adds its mask to the scores would take true and false for 1 and 0, without a word."""
    monkeypatch.setattr(type(ALL_ATTENTION_FUNCTIONS), "get_interface", lambda self, name, default: default)
    model = tiny_encoder("bert")

    exported = export_portable(model, task="encoder", output_dir=tmp_path)

    assert not [node for node in onnx_ir.load(exported.model_path).graph if node.domain == "qeff"]
    feeds = batch(exported, (7, 4, 1))
    real = feeds["attention_mask"].astype(bool)
    result, expected = run(exported, feeds), reference(model, feeds).last_hidden_state.numpy()
    np.testing.assert_allclose(result[real], expected[real], rtol=1e-4, atol=2e-5)


def test_a_model_without_a_mask_takes_every_token_for_text(tmp_path):
    model = tiny_encoder("fnet")

    exported = export_portable(model, task="encoder", output_dir=tmp_path, pooling="mean")

    assert [spec.name for spec in exported.inputs] == ["input_ids", "token_type_ids"]
    # Its Fourier transform is made of products, which every compiler knows.
    assert "DFT" not in {node.op_type for node in onnx_ir.load(exported.model_path).graph}
    for lengths in ((7, 7, 7), (1,), (64, 64)):
        feeds = batch(exported, lengths)
        expected = reference(model, feeds).last_hidden_state.numpy().mean(axis=1)
        np.testing.assert_allclose(run(exported, feeds), expected, rtol=1e-4, atol=5e-5)


def test_attention_is_a_dialect_op(tmp_path):
    exported = export_portable(tiny_encoder("bert"), task="encoder", output_dir=tmp_path)

    model = onnx_ir.load(exported.model_path)

    attentions = [node for node in model.graph if node.domain == "qeff"]
    assert [node.op_type for node in attentions] == ["Attention"] * 2
    # One layer was traced, and the other one is its copy.
    assert [str(node.name).partition("/")[0] for node in attentions] == ["encoder.layer.0", "encoder.layer.1"]


@pytest.mark.parametrize("poolings", [("mean", "max", "cls", "lasttoken"), ("callable",)], ids="+".join)
def test_pooling_ignores_padding(poolings, tmp_path):
    """Several names give their results side by side: one export for all of them."""
    model = tiny_encoder("distilbert")

    def halved_sum(hidden, mask):
        return (hidden * mask.unsqueeze(-1)).sum(dim=1) / 2

    exported = export_portable(
        model, task="encoder", output_dir=tmp_path, pooling=halved_sum if poolings == ("callable",) else poolings
    )

    assert [(spec.name, spec.shape) for spec in exported.outputs] == [("embedding", ("batch_size", 32 * len(poolings)))]
    for lengths in BATCHES:
        feeds = batch(exported, lengths)
        hidden = reference(model, feeds).last_hidden_state.numpy()
        expected = [
            np.concatenate([pooled(row[:length], pooling) for pooling in poolings])
            for row, length in zip(hidden, lengths, strict=True)
        ]
        np.testing.assert_allclose(run(exported, feeds), np.stack(expected), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_classifier_logits_equal_transformers(model_type, tmp_path):
    model = tiny_classifier(model_type)

    exported = export_portable(model, task="sequence-classification", output_dir=tmp_path)

    onnx.checker.check_model(str(exported.model_path), full_check=True)
    assert [(spec.name, spec.shape) for spec in exported.outputs] == [("logits", ("batch_size", 3))]
    for lengths in BATCHES:
        feeds = batch(exported, lengths)
        np.testing.assert_allclose(run(exported, feeds), reference(model, feeds).logits.numpy(), rtol=1e-4, atol=2e-5)


def pooled(tokens: np.ndarray, pooling: str) -> np.ndarray:
    return {
        "mean": lambda: tokens.mean(axis=0),
        "max": lambda: tokens.max(axis=0),
        "cls": lambda: tokens[0],
        "lasttoken": lambda: tokens[-1],
        "callable": lambda: tokens.sum(axis=0) / 2,
    }[pooling]()


def batch(exported: ExportedModel, lengths: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Random tokens, padded on the right; token types of both sorts where the model has them."""
    rng = np.random.default_rng(len(lengths))
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    tensors = {
        "input_ids": np.where(mask, rng.integers(3, VOCAB_SIZE, mask.shape), 0),
        "attention_mask": mask.astype(np.int64),
        "token_type_ids": rng.integers(0, 2, mask.shape),
    }
    return {spec.name: tensors[spec.name] for spec in exported.inputs}


def run(exported: ExportedModel, feeds: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(exported.model_path), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def reference(model: PreTrainedModel, feeds: dict[str, np.ndarray]):
    with torch.no_grad():
        return model(**{name: torch.from_numpy(value) for name, value in feeds.items()})
