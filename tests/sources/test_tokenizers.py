"""Which tokenizers count as a checkpoint's own; one that cannot be written is no tokenizer that cannot be loaded."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers

from qeff_framework.sources.quiet import first_line
from qeff_framework.sources.tokenizers import CheckpointTokenizer, made_up, save_tokenizer, unfit_class
from tests.tokenizer_folders import byte_level_tokenizer


class OnFullDisk:
    model_input_names = ("input_ids",)

    def __init__(self) -> None:
        self.init_kwargs: dict[str, Any] = {}

    def save_pretrained(self, directory: Path) -> None:
        raise Exception("No space left on device (os error 28)")


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        save_tokenizer(OnFullDisk(), tmp_path)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("model_type", "files"), [("bert", "vocab.txt"), ("gpt2", "merges.txt, .*vocab.json"), ("t5", "")]
)
def test_a_vocabulary_that_transformers_makes_up_is_none_of_the_checkpoint(
    model_type: str, files: str, tmp_path: Path, session_store: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 512, "extra_special_tokens": ["<x>"]})
    )
    assert "<x>" in transformers.AutoTokenizer.from_pretrained(tmp_path).get_vocab()

    tokenizer = CheckpointTokenizer(lambda: transformers.AutoTokenizer.from_pretrained(tmp_path), lambda: str(tmp_path))
    for _ in range(2):  # what is wrong is not remembered as right
        assert re.search(f"none of the files of its vocabulary is there .*{files}", tokenizer.problem() or "")


def test_a_vocabulary_that_was_read_is_the_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    byte_level_tokenizer().model.save(str(tmp_path))
    assert made_up(transformers.AutoTokenizer.from_pretrained(tmp_path)) is None
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword")
    assert made_up(transformers.BertTokenizer.from_pretrained(tmp_path / "bert")) is None
    # Bytes are its vocabulary.
    assert made_up(transformers.ByT5Tokenizer()) is None
    assert made_up(transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level_tokenizer())) is None
    # A file may say what the class says.
    transformers.BertTokenizer().save_pretrained(tmp_path / "saved")
    assert made_up(transformers.BertTokenizer.from_pretrained(tmp_path / "saved")) is None


def test_why_a_file_and_a_class_do_not_fit(tmp_path: Path) -> None:
    """Transformers' own errors name neither: those of its code, or of the library's parser."""
    file = tmp_path / "tokenizer.json"
    byte_level_tokenizer().save(str(file))
    assert re.search(
        "states tokenizer_class='T5Tokenizer', which does not read the BPE", unfit_class(file, "T5Tokenizer")
    )
    assert unfit_class(file, None) == ""
    file.write_text(file.read_text().replace('"BPE"', '"Newer"'))
    assert re.search("cannot be read by the installed tokenizers .*a newer release", unfit_class(file, None))


def test_a_reason_is_told_to_the_end_of_its_sentence() -> None:
    told = "made from one of: \n(1) a file, \n(2) a tokenizer or \n(3) a class. \nYou need to have it."
    assert first_line(ValueError(told)) == "ValueError: made from one of: (1) a file, (2) a tokenizer or (3) a class."
    assert first_line(OSError("no file\nof this name")) == "OSError: no file"
