"""A folder that sentence-transformers has saved gives the library's own embeddings, from texts to numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules

from qeff_framework import (
    QEFFAutoModel,
    QEFFAutoModelForCausalLM,
    QEFFAutoModelForFeatureExtraction,
    load_compiled,
)
from qeff_framework.errors import InputError
from tests.checkpoints import save_tiny_checkpoint
from tests.tiny_models import tiny_encoder, tiny_seq2seq_lm

pytestmark = pytest.mark.usefixtures("session_store")

#: Upper case, a text that is cut, one that is short.
TEXTS = ["W7 w8 W9", "w3 w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14", "w5"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SentenceTransformer]:
    """The folder and the library's model: two poolings, a dense layer, normalised, cut; texts get a prompt, are lower-cased and cut."""
    bert = save_tiny_checkpoint(tmp_path_factory.mktemp("bert"), module=tiny_encoder("bert", num_hidden_layers=1))
    torch.manual_seed(0)
    model = SentenceTransformer(
        modules=[
            modules.Transformer(str(bert)),
            modules.Pooling(32, pooling_mode=("mean", "cls")),
            modules.Dense(64, 12),
            modules.Normalize(),
        ],
        device="cpu",
        prompts={"query": "w20 ", "passage": "w21 "},
        default_prompt_name="query",
        truncate_dim=8,
    )
    folder = tmp_path_factory.mktemp("sentences") / "model"
    model.save(str(folder))
    # As versions before the sixth have written it: the settings of the text lie here.
    config = json.loads((folder / "sentence_bert_config.json").read_text())
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({**config, "do_lower_case": True, "max_seq_length": 9})
    )
    return folder, SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def model(library: tuple[Path, SentenceTransformer]) -> Any:
    model = QEFFAutoModel.from_pretrained(library[0])
    model.compile(backend="ort_sim", seq_len=16, batch_size=2, num_cores=2)
    return model


def test_texts_give_what_encode_gives(model: Any, library: tuple[Path, SentenceTransformer]) -> None:
    theirs = library[1]
    assert model.pooling == "mean + cls > dense 64 to 12 > normalize > first 8"
    np.testing.assert_allclose(model.generate(TEXTS), theirs.encode(TEXTS), atol=2e-6)
    np.testing.assert_allclose(model.generate("w5"), theirs.encode(["w5"]), atol=2e-6)
    np.testing.assert_allclose(
        model.generate(TEXTS, prompt_name="passage"), theirs.encode(TEXTS, prompt_name="passage"), atol=2e-6
    )
    np.testing.assert_allclose(model.generate(TEXTS, prompt=""), theirs.encode(TEXTS, prompt=""), atol=2e-6)
    with pytest.raises(InputError, match="no prompt named 'question', only document, passage, query"):
        model.generate(TEXTS, prompt_name="question")
    with pytest.raises(InputError, match="normalize cannot be given beside texts"):
        model.generate(TEXTS, normalize=True)
    with pytest.raises(InputError, match="no texts were given; give at least one"):
        model.generate([])


def test_tokens_of_texts_that_were_not_prepared_are_refused(
    model: Any, library: tuple[Path, SentenceTransformer]
) -> None:
    tokens = library[1].tokenizer(["w7"], return_tensors="np")
    with pytest.raises(InputError, match="prompt 'w20 ' in front of them and lower-cases them"):
        model.generate(tokens)
    prepared = library[1].tokenizer(["w20 w7"], return_tensors="np")
    np.testing.assert_allclose(model.generate(prepared, prepared=True), library[1].encode(["w7"]), atol=2e-6)


def test_the_artifact_needs_nothing_else(model: Any, library: tuple[Path, SentenceTransformer]) -> None:
    with load_compiled(model.compiled.directory) as program:
        np.testing.assert_allclose(program.generate(TEXTS), library[1].encode(TEXTS), atol=2e-6)


def test_a_pooling_that_is_given_replaces_the_modules_and_not_the_texts(
    library: tuple[Path, SentenceTransformer],
) -> None:
    auto, given = (
        QEFFAutoModelForFeatureExtraction.from_pretrained(library[0], **arguments)
        for arguments in ({}, {"pooling": "mean"})
    )
    assert given.pooling == "mean"
    keys = [model._export_key() for model in (auto, given)]
    assert keys[0]["texts"] == keys[1]["texts"]
    assert keys[0]["pooling"] != keys[1]["pooling"] == "mean"


def list_modules(folder: Path, *, transformer: str) -> None:
    """Makes `folder` one of sentence-transformers: a Transformer and a pooling of the last token."""
    kinds = ("Transformer", transformer), ("Pooling", "1_Pooling")
    content = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds]
    (folder / "modules.json").write_text(json.dumps(content))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))


def test_the_transformer_of_an_older_folder_is_found_below_it(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path / "0_Transformer", module=tiny_encoder("bert"))
    list_modules(tmp_path, transformer="0_Transformer")
    for arguments in ({}, {"subfolder": "0_Transformer"}):
        model = QEFFAutoModel.from_pretrained(tmp_path, **arguments)
        assert model.pooling == "lasttoken"
        assert model.config["model_type"] == "bert"


def test_the_encoder_of_an_encoder_decoder_is_an_embedding_model(tmp_path: Path) -> None:
    """As sentence-t5 and gtr; the files may be those of the whole model."""
    whole = tiny_seq2seq_lm("t5", num_layers=1, num_decoder_layers=1)
    save_tiny_checkpoint(tmp_path / "t5", module=whole)
    parts = [modules.Transformer(str(tmp_path / "t5")), modules.Pooling(32, pooling_mode="mean")]
    library = SentenceTransformer(modules=parts, device="cpu")
    library.save(str(tmp_path / "encoder"))
    assert QEFFAutoModel.from_pretrained(tmp_path / "t5").task == "seq2seq-lm"
    assert QEFFAutoModel.from_pretrained(tmp_path / "encoder").config["architectures"] == ["T5EncoderModel"]
    whole.save_pretrained(tmp_path / "encoder")
    model = QEFFAutoModel.from_pretrained(tmp_path / "encoder")
    model.compile(backend="ort_sim", seq_len=16, batch_size=3)
    np.testing.assert_allclose(model.generate(TEXTS), library.encode(TEXTS), rtol=1e-4, atol=1e-5)


def test_a_decoder_in_such_a_folder_is_an_embedding_model(tmp_path: Path) -> None:
    """As embedding models of the larger sort are saved: the head in its config is that of a causal language model."""
    folder = save_tiny_checkpoint(tmp_path)
    assert isinstance(QEFFAutoModel.from_pretrained(folder), QEFFAutoModelForCausalLM)
    list_modules(folder, transformer="")
    for model in (QEFFAutoModel.from_pretrained(folder), QEFFAutoModelForFeatureExtraction.from_pretrained(folder)):
        assert isinstance(model, QEFFAutoModelForFeatureExtraction)
        assert model.pooling == "lasttoken"
