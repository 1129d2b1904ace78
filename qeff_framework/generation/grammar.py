"""Grammars that an answer must follow: a JSON schema, or a regular expression.

The grammar runs on the host. Before each token, the scores of all tokens that would leave it are set to -inf. The library
llguidance (extra ``guided``) tells which those are. Where the next bytes are certain, it allows nothing but the tokens that the
tokenizer makes of them.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from qeff_framework.errors import ExecutionError, InputError, OptionError
from qeff_framework.generation.rows import Row
from qeff_framework.generation.settings import GenerationSettings
from qeff_framework.tokenization.tokenizer import SerializableTokenizer, TextTokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from numpy.typing import NDArray

    from qeff_framework.generation.scores.rule import Scores


#: White space of JSON answers: none, a space, or a new line with its indentation. With any white space, a small model may write
#: nothing else up to its limit. A schema overrides it with llguidance's own keyword ``x-guidance``.
_JSON_OPTIONS: Any = {"whitespace_flexible": True, "whitespace_pattern": r"( |\n {0,24})?"}


class Grammar:
    """A checked grammar over the tokens of one tokenizer. All rows of a request share it; each row has a `GrammarRule`."""

    def __init__(self, setting: str, text: str, tokens: LLTokenizer) -> None:
        from llguidance import LLMatcher

        # Level 0: the library prints nothing; its errors are read below.
        self._matcher = LLMatcher(tokens, text, log_level=0)
        _refuse_grammar(setting, self._matcher.get_error())
        self.setting = setting

    def rule(self) -> GrammarRule:
        """The rule for one row, at the beginning of its answer."""
        return GrammarRule(self.setting, self._matcher.deep_copy())


class GrammarRule:
    """Implements `ScoreRule`: leaves the tokens with which the answer can still be completed."""

    def __init__(self, setting: str, matcher: LLMatcher) -> None:
        self._setting = setting
        self._matcher = matcher
        self._read = 0

    def __call__(self, row: Row, scores: Scores) -> None:
        """See `ScoreRule`."""
        scores[~self.allowed(row, len(scores))] = -np.inf

    def allowed(self, row: Row, count: int) -> NDArray[np.bool_]:
        """Which of the first `count` tokens may follow the row's answer.

        Raises `ExecutionError` where the answer cannot be completed, for example by the library's limits.
        """
        new = row.generated[self._read :]
        self._read += len(new)
        if new and not self._matcher.consume_tokens(new):
            raise ExecutionError(
                f"the answer to prompt {row.index} has left {self._setting}: {self._matcher.get_error().strip()}"
            )
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little", count=count).view(np.bool_)


def grammar_of(settings: GenerationSettings, tokenizer: TextTokenizer | None, vocab_size: int | None) -> Grammar | None:
    """The grammar that the settings ask for; `None` where they ask for none.

    Raises:
        OptionError: the extra is not installed, or the schema or the expression is wrong or beyond what the library can do.
        InputError: nothing ends a text, or the tokenizer does not tell the bytes of its tokens.
    """
    described = _described(settings)
    if described is None:
        return None
    setting, text = described
    if not settings.eos_token_ids:
        raise InputError(
            f"{setting} needs an end of sequence, which ends a complete answer; give eos_token_id=..., and leave ignore_eos out"
        )
    try:
        tokens = _tokens(cast("Hashable", tokenizer), vocab_size or 0, settings.eos_token_ids)
    except ValueError as error:
        raise InputError(
            f"{setting} cannot be used with this tokenizer, whose tokens stand for no fixed bytes: {error}; use one that works "
            "on bytes (byte-level BPE, or pieces with byte fallback)"
        ) from error
    if tokens is None:
        raise InputError(
            f"{setting} needs a fast tokenizer, which tells the bytes of its tokens; pass one as tokenizer=..."
        )
    return Grammar(setting, text, tokens)


def check_grammar(settings: GenerationSettings) -> None:
    """Raises `OptionError` for a schema or an expression that no answer can follow: known before there is a tokenizer."""
    described = _described(settings)
    if described is not None:
        from llguidance import LLMatcher

        _refuse_grammar(described[0], LLMatcher.validate_grammar(described[1]))


def _described(settings: GenerationSettings) -> tuple[str, str] | None:
    """The setting that describes the answer, and the grammar in llguidance's notation; `None` where none does."""
    asked = [name for name in ("json_schema", "regex") if getattr(settings, name) is not None]
    if not asked:
        return None
    if len(asked) > 1:
        raise OptionError("json_schema and regex both describe the whole answer; give one of the two")
    (setting,) = asked
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise OptionError(
            f"{setting} needs llguidance, which is not installed; pip install 'qeff-framework[guided]'"
        ) from error
    if settings.regex is not None:
        return setting, LLMatcher.grammar_from_regex(settings.regex)
    try:
        return setting, LLMatcher.grammar_from_json_schema(schema_text(settings.json_schema), defaults=_JSON_OPTIONS)
    except ValueError as error:
        raise OptionError(f"json_schema cannot be followed: {error}; change it, or leave it out") from error


def _refuse_grammar(setting: str, problem: str) -> None:
    """Raises `OptionError` where llguidance has a `problem` with the grammar."""
    if problem:
        # The text goes on with the place in llguidance's own notation.
        raise OptionError(
            f"{setting} cannot be followed: {problem.strip().splitlines()[0]}; change it, or leave it out"
        )


def schema_text(schema: Any) -> str:
    """A JSON schema as JSON: the text itself, a mapping, a boolean, or a Pydantic model class. Raises `OptionError`."""
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise OptionError(f"json_schema is not JSON: {error}; give a schema, not the name of its file") from error
    if not isinstance(schema, Mapping | bool):
        raise OptionError(
            f"json_schema must be a JSON schema (a mapping or its text), got {type(schema).__name__}; "
            'for any object give {"type": "object"}'
        )
    try:
        return json.dumps(schema if isinstance(schema, bool) else dict(schema))
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"json_schema holds what JSON does not: {error}; give plain values") from error


# The tables of a tokenizer with 128 000 tokens take long to build, and all requests share them.
@lru_cache(maxsize=4)
def _tokens(tokenizer: object, vocab_size: int, ends: tuple[int, ...]) -> LLTokenizer | None:
    """`None` without a tokenizer that has the form of a ``tokenizer.json``. Raises `ValueError` for tokens without bytes."""
    from llguidance import LLTokenizer

    if not isinstance(tokenizer, SerializableTokenizer):
        return None
    serialized = tokenizer.to_json()
    if serialized is None:
        return None
    return LLTokenizer(serialized, n_vocab=max(vocab_size, len(tokenizer.vocabulary())), eos_token=list(ends))
