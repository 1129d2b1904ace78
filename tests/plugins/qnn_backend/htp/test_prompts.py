"""Calibration reads the prompts that `generate` would read. No SDK is needed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from qeff_framework.plugin_api import CompileError, ExportedModel
from qeff_framework.tokenization import load_tokenizer
from qnn_backend.htp.prompts import token_rows


def exported(directory: Path, tokenizer: Path | None = None) -> ExportedModel:
    if tokenizer is not None:
        shutil.copytree(tokenizer, directory / "tokenizer")
    return ExportedModel(
        directory=directory, task="causal-lm", model_file="m.onnx", inputs=(), outputs=(), metadata={"vocab_size": 40}
    )


def test_a_rendered_prompt_gets_no_second_start_token(tmp_path: Path, tokenizer_folders: dict[str, Path]) -> None:
    folder = tokenizer_folders["byte_level"]
    file = tmp_path / "prompts.txt"
    file.write_text("<bos>the fox\nthe fox\nnot read\n")
    rows = token_rows(exported(tmp_path, folder), file, 2)
    start = load_tokenizer(folder).bos_token_id
    assert rows[0] == rows[1]
    assert rows[0].count(start) == 1


def test_without_a_tokenizer_prompts_are_refused_and_random_tokens_taken(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("the fox\n")
    with pytest.raises(CompileError, match="needs a tokenizer"):
        token_rows(exported(tmp_path), file, 2)
    rows = token_rows(exported(tmp_path), None, 3)
    assert len(rows) == 3
    assert all(0 <= token < 40 for row in rows for token in row)


def test_a_tokenizer_that_makes_no_token_of_a_sentence(tmp_path: Path) -> None:
    """Such as one of amino acids without an unknown token."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"\u4e00": 0, "\u4e8c": 1}, [])))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    file = tmp_path / "prompts.txt"
    file.write_text("the fox\n")
    with pytest.raises(CompileError, match="makes no token of its prompts"):
        token_rows(exported(tmp_path), file, 2)
    rows = token_rows(exported(tmp_path), None, 3)
    assert rows == token_rows(exported(tmp_path / "other"), None, 3)
    assert [len(row) for row in rows] == [48, 48, 48]
