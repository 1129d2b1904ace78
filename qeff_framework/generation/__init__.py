"""Running loaded programs: text generation with causal language models, and encoders.

Decoding, its rules, sampling, chat templates and fast tokenizers need NumPy, `tokenizers` and Jinja only; what belongs to
Transformers (generation configs, the caller's logits processors, stopping criteria, streamers, watermarks, Python tokenizers)
imports it when it is used.
"""

from __future__ import annotations

from qeff_framework.generation.chat import ChatOptions, is_conversation
from qeff_framework.generation.classification import class_scores
from qeff_framework.generation.embedding_texts import check_tokens, tokenise_texts
from qeff_framework.generation.encoder import EncoderRunner
from qeff_framework.generation.generation_config import load_generation_defaults, resolve_settings
from qeff_framework.generation.inputs import normalize_inputs
from qeff_framework.generation.loop import TextGenerator
from qeff_framework.generation.offsets import align, as_rows
from qeff_framework.generation.output import GenerationOutput, PerfMetrics
from qeff_framework.generation.program_shape import ProgramShape
from qeff_framework.generation.question_answering import Answer, SpanLogits, find_answer
from qeff_framework.generation.settings import SCORE_SETTINGS, GenerationSettings
from qeff_framework.generation.streaming import Detokenizer, TextStream
from qeff_framework.generation.tokenizer import TextTokenizer, as_text_tokenizer, encode_prompt, load_tokenizer

__all__ = [
    "SCORE_SETTINGS",
    "Answer",
    "ChatOptions",
    "Detokenizer",
    "EncoderRunner",
    "GenerationOutput",
    "GenerationSettings",
    "PerfMetrics",
    "ProgramShape",
    "SpanLogits",
    "TextGenerator",
    "TextStream",
    "TextTokenizer",
    "align",
    "as_rows",
    "as_text_tokenizer",
    "check_tokens",
    "class_scores",
    "encode_prompt",
    "find_answer",
    "is_conversation",
    "load_generation_defaults",
    "load_tokenizer",
    "normalize_inputs",
    "resolve_settings",
    "tokenise_texts",
]
