"""Tiny random classifiers through `ort_sim`: the logits of Transformers, whatever the padding and the program's length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qeff_framework import QEFFAutoModel, QEFFAutoModelForFeatureExtraction, QEFFAutoModelForSequenceClassification
from qeff_framework import load_compiled as load_program
from qeff_framework.errors import InputError, UnsupportedModelError
from tests.checkpoints import save_tiny_checkpoint
from tests.tiny_models import tiny_classifier

pytestmark = pytest.mark.usefixtures("session_store")

#: One row for each compiled length, and one of a single token. No token is the padding token 0.
ROWS = [[5, 17, 99], [23, 42, 7, 64, 31, 88, 12, 54, 9], [71]]
LENGTHS = [4, 12]


def alone(module: Any, row: list[int]) -> np.ndarray[Any, Any]:
    """Transformers' logits for one text without padding."""
    ids = torch.tensor([row])
    with torch.no_grad():
        logits: np.ndarray[Any, Any] = module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].numpy()
    return logits


def left_padded(rows: list[list[int]]) -> dict[str, list[list[int]]]:
    width = max(map(len, rows))
    return {
        "input_ids": [[0] * (width - len(row)) + row for row in rows],
        "attention_mask": [[0] * (width - len(row)) + [1] * len(row) for row in rows],
    }


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "llama", "gpt2"])
def test_logits_equal_transformers_at_every_length(model_type: str) -> None:
    module = tiny_classifier(model_type)
    expected = np.stack([alone(module, row) for row in ROWS])
    assert np.abs(expected[0] - expected[1]).max() > 0.05, "the reference is degenerate"

    model = QEFFAutoModel(module)
    assert isinstance(model, QEFFAutoModelForSequenceClassification)
    model.compile(backend="ort_sim", seq_len=LENGTHS, batch_size=2, num_cores=2)

    # Three rows in a program for two: the second pass has a row to spare.
    np.testing.assert_allclose(model.generate({"input_ids": ROWS}), expected, rtol=1e-3, atol=1e-4)
    for row, want in zip(ROWS, expected, strict=True):
        np.testing.assert_allclose(model.generate({"input_ids": [row]})[0], want, rtol=1e-3, atol=1e-4)
    if model_type == "gpt2":
        # It looks types up among its tokens, which the graph does not.
        with pytest.raises(InputError, match="holds the token type 1, the model knows 0 to 0"):
            model.generate({"input_ids": ROWS[:1], "token_type_ids": [[0, 1, 1]]})


def test_a_decoder_finds_the_last_token_whatever_the_side_of_the_padding() -> None:
    module = tiny_classifier("llama")
    model = QEFFAutoModelForSequenceClassification(module)
    model.compile(backend="ort_sim", seq_len=LENGTHS, batch_size=2, num_cores=2)

    logits = model.generate(left_padded(ROWS))

    np.testing.assert_allclose(logits, np.stack([alone(module, row) for row in ROWS]), rtol=1e-3, atol=1e-4)


def test_a_decoder_without_a_padding_token_is_refused_before_the_trace() -> None:
    module = tiny_classifier("llama")
    module.config.pad_token_id = None

    with pytest.raises(UnsupportedModelError, match="names no pad_token_id; set config.pad_token_id"):
        QEFFAutoModelForSequenceClassification(module).export()


def test_the_artifact_of_a_checkpoint_knows_its_labels(tmp_path: Path) -> None:
    module = tiny_classifier("bert")
    module.config.id2label = {0: "bad", 1: "good", 2: "good"}
    checkpoint = save_tiny_checkpoint(tmp_path / "classifier", module=module)

    model = QEFFAutoModel.from_pretrained(checkpoint)
    compiled = model.compile(backend="ort_sim", seq_len=4, num_cores=2)

    assert compiled.task == "sequence-classification"
    with load_program(compiled.directory) as program:
        # Names are keys of results; the second would take the place of the first.
        assert program.labels == ("bad", "good (1)", "good (2)")
        logits = program.generate({"input_ids": ROWS[:1]})
    np.testing.assert_allclose(logits[0], alone(module, ROWS[0]), rtol=1e-3, atol=1e-4)
    with pytest.raises(UnsupportedModelError, match="use QEFFAutoModelForSequenceClassification"):
        QEFFAutoModelForFeatureExtraction.from_pretrained(checkpoint)
