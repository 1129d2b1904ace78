"""Checkpoints on disk: tiny random models with a tokenizer, as Transformers would save them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.tiny_models import VOCAB_SIZE, tiny_causal_lm

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_tiny_checkpoint(
    directory: Path, model_type: str = "llama", seed: int = 0, *, module: PreTrainedModel | None = None
) -> Path:
    """Saves `module` or a causal LM: weights, config, generation config and a word-level tokenizer; returns the folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = module if module is not None else tiny_causal_lm(model_type, seed)[0]
    model.save_pretrained(directory)
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{index}" for index in range(VOCAB_SIZE - 4))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(directory)
    return directory
