"""Calibration reads the prompts that `generate` would read. No SDK is needed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

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
