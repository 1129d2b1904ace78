"""Tiny random token classifiers and question-answering models through `ort_sim`: the logits of Transformers for each text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from qeff_framework import (
    QEFFAutoModel,
    QEFFAutoModelForQuestionAnswering,
    QEFFAutoModelForSequenceClassification,
    QEFFAutoModelForTokenClassification,
    load_compiled,
)
from qeff_framework.errors import InputError, UnsupportedModelError
from tests.checkpoints import save_tiny_checkpoint
from tests.tiny_models import tiny_question_answering, tiny_token_classifier

pytestmark = pytest.mark.usefixtures("session_store")

#: One row for each compiled length, and one of a single token. No token is the padding token 0.
ROWS = [[5, 17, 99], [23, 42, 7, 64, 31, 88, 12, 54, 9], [71]]
LENGTHS = [4, 12]
# Every kind of encoder is compared by tests/end_to_end/test_classifiers.py; here those whose heads differ.


def alone(module: PreTrainedModel, row: list[int], **inputs: Any) -> Any:
    """What Transformers computes for one text without padding."""
    ids = torch.tensor([row])
    with torch.no_grad():
        return module(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs)


@pytest.mark.parametrize("model_type", ["bert", "deberta-v2", "modernbert", "llama"])
def test_logits_of_tokens_equal_transformers_at_every_length(model_type: str) -> None:
    module = tiny_token_classifier(model_type)
    expected = [alone(module, row).logits[0].numpy() for row in ROWS]
    assert np.abs(expected[1][0] - expected[1][1:]).max() > 0.05, "the reference is degenerate"

    model = QEFFAutoModel(module)
    assert isinstance(model, QEFFAutoModelForTokenClassification)
    model.compile(backend="ort_sim", seq_len=LENGTHS, batch_size=2, num_cores=2)

    together = model.generate({"input_ids": ROWS})
    assert together.shape == (len(ROWS), 9, 3)
    for got, row, want in zip(together, ROWS, expected, strict=True):
        np.testing.assert_allclose(got[: len(row)], want, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(model.generate({"input_ids": [row]})[0], want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model_type", ["distilbert", "modernbert"])
def test_logits_of_answers_equal_transformers_at_every_length(model_type: str) -> None:
    module = tiny_question_answering(model_type)
    expected = [alone(module, row) for row in ROWS]

    model = QEFFAutoModel(module)
    assert isinstance(model, QEFFAutoModelForQuestionAnswering)
    model.compile(backend="ort_sim", seq_len=LENGTHS, batch_size=2, num_cores=2)

    together = model.generate({"input_ids": ROWS})
    for name in ("start_logits", "end_logits"):
        assert getattr(together, name).shape == (len(ROWS), 9)
        for place, (row, outputs) in enumerate(zip(ROWS, expected, strict=True)):
            want = outputs[name][0].numpy()
            single = getattr(model.generate({"input_ids": [row]}), name)[0]
            np.testing.assert_allclose(getattr(together, name)[place, : len(row)], want, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(single, want, rtol=1e-3, atol=1e-4)


def test_an_artifact_knows_the_labels_of_its_tokens(tmp_path: Path) -> None:
    module = tiny_token_classifier("distilbert")
    module.config.id2label = {0: "O", 1: "B-PER", 2: "I-PER"}
    checkpoint = save_tiny_checkpoint(tmp_path / "tagger", module=module)

    model = QEFFAutoModel.from_pretrained(checkpoint)
    compiled = model.compile(backend="ort_sim", seq_len=4, num_cores=2)

    assert compiled.task == "token-classification"
    with load_compiled(compiled.directory) as program:
        assert program.labels == ("O", "B-PER", "I-PER")
        logits = program.generate({"input_ids": ROWS[:1]})
    np.testing.assert_allclose(logits[0], alone(module, ROWS[0]).logits[0].numpy(), rtol=1e-3, atol=1e-4)
    with pytest.raises(UnsupportedModelError, match="use QEFFAutoModelForTokenClassification"):
        QEFFAutoModelForSequenceClassification.from_pretrained(checkpoint)


def test_an_artifact_answers_a_question_about_a_text(tmp_path: Path) -> None:
    module = tiny_question_answering("bert")
    checkpoint = save_tiny_checkpoint(tmp_path / "answers", module=module)
    question, context = "w4 w5", "w20 w31 w40 w57 w66 w72"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer(question, context)["input_ids"]
    outputs = alone(module, ids)
    words, (start, end) = context.split(), (outputs[name][0, 2:].softmax(0) for name in ("start_logits", "end_logits"))
    scores = {
        (first, last): float(start[first] * end[last]) for first in range(6) for last in range(first, min(first + 2, 6))
    }
    first, last = max(scores, key=lambda span: scores[span])

    model = QEFFAutoModel.from_pretrained(checkpoint)
    compiled = model.compile(backend="ort_sim", seq_len=[4, 12], num_cores=2)

    assert compiled.task == "question-answering"
    with load_compiled(compiled.directory) as program:
        answer = program.answer(question, context, max_answer_len=2)
        again = program.answer(question, context, max_answer_len=2, tokenizer=tokenizer)
        with pytest.raises(InputError, match="the context is empty"):
            program.answer(question, " ")
    assert answer.text == " ".join(words[first : last + 1]) == context[answer.start : answer.end]
    assert answer.score == pytest.approx(scores[first, last], rel=1e-3)
    assert again == answer
    assert model.answer(question, context, max_answer_len=2) == answer
