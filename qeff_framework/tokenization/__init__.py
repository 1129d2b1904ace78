"""From texts and conversations to token ids and back: fast tokenizers, chat templates, tokenizer output in every form.

Needs `tokenizers` and Jinja only; a tokenizer that only Transformers has imports it when it is used.
"""

from __future__ import annotations

from qeff_framework.tokenization.chat import ChatOptions, is_conversation
from qeff_framework.tokenization.inputs import normalize_inputs
from qeff_framework.tokenization.offsets import align, as_rows
from qeff_framework.tokenization.tokenizer import TextTokenizer, as_text_tokenizer, encode_prompt, load_tokenizer

__all__ = [
    "ChatOptions",
    "TextTokenizer",
    "align",
    "as_rows",
    "as_text_tokenizer",
    "encode_prompt",
    "is_conversation",
    "load_tokenizer",
    "normalize_inputs",
]
