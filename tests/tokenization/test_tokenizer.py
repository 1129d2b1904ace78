from __future__ import annotations

import json
import logging
import shutil
import warnings
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from qeff_framework.errors import CheckpointError, InputError
from qeff_framework.tokenization.tokenizer import (
    ByteTokenizer,
    FastTokenizer,
    TransformersTokenizer,
    as_text_tokenizer,
    load_tokenizer,
)

KINDS = ["byte_level", "byte_fallback", "word_piece", "minilm"]
TEXTS = [
    "",
    "Hello, world! It's fine , isn't it ?",
    "  two leading spaces, and trailing  ",
    "Größe, naïve café, 北京 🦊 e\u0301",
    "<bos>special<eos> [CLS] text <tool> <turn> <|end|>\n\n",
    "word " * 300,
]


def reference(folder: Path) -> PreTrainedTokenizerFast:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_encodes_and_decodes_as_transformers(kind: str, tokenizer_folders: dict[str, Path]) -> None:
    ours, theirs = load_tokenizer(tokenizer_folders[kind]), reference(tokenizer_folders[kind])
    assert isinstance(ours, FastTokenizer)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"]
        bare = ours.encode(text, add_special_tokens=False)
        assert bare == theirs(text, add_special_tokens=False)["input_ids"]
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_tokens_have_the_bytes_of_their_text(kind: str, tokenizer_folders: dict[str, Path]) -> None:
    """Also those that are a part of a character, and with the space in front, which decoding one token drops or replaces."""
    folder = tokenizer_folders[kind]
    for tokenizer in (load_tokenizer(folder), TransformersTokenizer(reference(folder))):
        assert isinstance(tokenizer, ByteTokenizer)
        for text in ("Größe, 北京 🦊 e\u0301", " word  word", "a<eos>b"):
            ids = tokenizer.encode(text, add_special_tokens=False)
            joined = b"".join(tokenizer.token_bytes(token) or b"?" for token in ids)
            assert joined.decode().strip() == tokenizer.decode(ids, skip_special_tokens=False).strip()
    words = load_tokenizer(tokenizer_folders["word_piece"])
    assert isinstance(words, ByteTokenizer)
    assert words.token_bytes(words.encode("word", add_special_tokens=False)[0]) is None


@pytest.mark.parametrize("kind", KINDS)
def test_knows_the_special_ids_and_the_vocabulary(kind: str, tokenizer_folders: dict[str, Path]) -> None:
    ours, theirs = load_tokenizer(tokenizer_folders[kind]), reference(tokenizer_folders[kind])
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )
    assert ours.vocabulary() == theirs.get_vocab()
    assert ours.chat_template == theirs.chat_template


def test_word_piece_text_is_cleaned_up_and_bpe_text_is_not(tokenizer_folders: dict[str, Path]) -> None:
    cleaned = load_tokenizer(tokenizer_folders["word_piece"])
    assert cleaned.decode(cleaned.encode("what , it ' s .")) == "what, it's."
    plain = load_tokenizer(tokenizer_folders["byte_level"])
    assert plain.decode(plain.encode("what , it ' s .")) == "what , it ' s ."


def test_reads_special_tokens_of_folders_that_older_versions_wrote(
    tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(tokenizer_folders["byte_level"], folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "<late>", "lstrip": False, "rstrip": True}, "pad_token": "<pad>"})
    )
    ours, theirs = load_tokenizer(folder), reference(folder)
    assert ours.eos_token_id == theirs.eos_token_id is not None
    assert ours.encode("a<late> b") == theirs("a<late> b")["input_ids"]
    assert ours.decode(ours.encode("a<late> b")) == theirs.decode(
        theirs("a<late> b")["input_ids"], skip_special_tokens=True
    )


def test_a_python_tokenizer_is_loaded_by_transformers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    with caplog.at_level(logging.DEBUG, logger="qeff_framework"):
        tokenizer = load_tokenizer(tmp_path)
    assert "no tokenizer.json" in caplog.text
    assert isinstance(tokenizer, TransformersTokenizer)
    assert tokenizer.encode("hé") == ByT5Tokenizer()("hé")["input_ids"]
    assert tokenizer.decode(tokenizer.encode("hé")) == "hé"


def test_a_transformers_object_works_like_its_folder(tokenizer_folders: dict[str, Path]) -> None:
    ours, adapted = (
        load_tokenizer(tokenizer_folders["byte_level"]),
        as_text_tokenizer(reference(tokenizer_folders["byte_level"])),
    )
    for text in TEXTS:
        assert adapted.encode(text) == ours.encode(text)
        assert adapted.decode(ours.encode(text)) == ours.decode(ours.encode(text))
    assert adapted.vocabulary() == ours.vocabulary()
    assert adapted.eos_token_id == ours.eos_token_id
    assert as_text_tokenizer(ours) is ours
    for either in (adapted, ours):
        for read in (either.encode, lambda text, it=either: it.encode_within(text, 5), either.encodings):
            with pytest.raises(InputError, match="half of a surrogate pair"):
                read("hi \ud83d")


def test_a_text_that_the_library_cannot_read_is_told_in_words() -> None:
    """A class of Transformers may ask for a token that the vocabulary lacks; the library in Rust raises a bare Exception."""
    library = Tokenizer(models.WordPiece({"a": 0}, unk_token="[UNK]"))
    for tokenizer in (FastTokenizer(library), as_text_tokenizer(PreTrainedTokenizerFast(tokenizer_object=library))):
        with pytest.raises(InputError, match=r"cannot read 'b': .*Missing \[UNK\].*give the tokenizer that the model"):
            tokenizer.encode("b")


def test_folders_and_objects_that_are_no_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="int is not a tokenizer"):
        as_text_tokenizer(3)
