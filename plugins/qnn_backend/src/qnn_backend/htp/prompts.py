"""Token ids for calibration and verification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from qeff_framework.plugin_api import CompileError, ExportedModel, prompt_ids

_RANDOM_PROMPTS, _RANDOM_LENGTH = 16, 48

#: Plain sentences of several sorts, for those who bring no prompts of their own.
_TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Water boils at one hundred degrees Celsius at sea level, and at less in the mountains.",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)",
    "Dear Sir or Madam, I am writing to ask whether the position that you advertised last week is still open.",
    "Q: What is 17 plus 25?\nA: 42",
    "Once upon a time there was a small village by the sea where nobody ever locked a door.",
    "The committee will meet on Tuesday, 4 March, at 10:30 in room B-117.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    '{"name": "sensor-3", "unit": "kPa", "values": [101.3, 101.2, 99.8]}',
    "Der schnelle braune Fuchs springt ueber den faulen Hund.",
    "El tren de las ocho llega con veinte minutos de retraso.",
    "She opened the letter, read the first line twice, and put it back into its envelope.",
    "Stocks fell sharply on Friday after the central bank raised its key rate by half a point.",
    "To make the dough, mix flour, yeast, salt and lukewarm water, and let it rest for two hours.",
    "The patient reports mild headaches in the morning, but no fever and no loss of appetite.",
    "In 1969 two people walked on the Moon while a third one stayed in orbit above them.",
)


def token_rows(exported: ExportedModel, file: Path | None, limit: int) -> list[list[int]]:
    """The token ids of at most `limit` prompts, as `generate` reads them.

    Args:
        exported: with ``tokenizer/`` if the checkpoint has one.
        file: one prompt a line; without it plain sentences are taken, or, where no tokenizer reads them, random tokens.
        limit: how many.

    Raises:
        CompileError: `file` cannot be used.
    """
    has_tokenizer = (exported.directory / "tokenizer").is_dir()
    if file is not None:
        texts = _lines(file)
        if not has_tokenizer:
            raise CompileError("calibration_prompts needs a tokenizer, and the checkpoint has none")
    elif has_tokenizer:
        texts = list(_TEXTS)
    else:
        return _random_rows(exported)[:limit]
    rows = [row for row in prompt_ids(exported, texts[:limit]) if row]
    if not rows and file is not None:
        raise CompileError(f"calibration_prompts={file}: the tokenizer of the checkpoint makes no token of its prompts")
    # A vocabulary of something else than texts makes no token of a sentence.
    return rows or _random_rows(exported)[:limit]


def _lines(file: Path) -> list[str]:
    try:
        # Without a byte order mark; a line ends at \n or \r\n and at no other character of a text.
        text = file.read_bytes().decode("utf-8-sig")
        lines = [line.strip() for line in text.split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise CompileError(f"calibration_prompts={file} cannot be read: {error}") from error
    if not lines:
        raise CompileError(f"calibration_prompts={file} holds no prompt; write one a line")
    return lines


def _random_rows(exported: ExportedModel) -> list[list[int]]:
    """Random tokens behind the first token of a text: some models have their largest numbers there."""
    path = exported.directory / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    size = int(exported.metadata.get("vocab_size") or config.get("vocab_size") or 2)
    first = config.get("bos_token_id")
    rng = np.random.default_rng(0)
    rows = rng.integers(0, size, (_RANDOM_PROMPTS, _RANDOM_LENGTH)).tolist()
    return [[first, *row] if isinstance(first, int) and 0 <= first < size else row for row in rows]
