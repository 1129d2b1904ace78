"""How tokens are chosen and when a row ends: the settings of one generation, complete and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from qeff_framework.errors import InputError, OptionError


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Settings of one generation. Names and meanings are those of ``transformers.GenerationConfig``, except for `seed`.

    The defaults are greedy decoding: the most likely token, nothing else. Raises `InputError` or `OptionError` for values that
    have no meaning.
    """

    # --- when a row ends ---
    #: `None`: what fits into the context after the longest prompt.
    max_new_tokens: int | None = None
    #: Prompt and new tokens together; `max_new_tokens` wins.
    max_length: int | None = None
    #: The limit is the checkpoint's: where the context leaves less, that counts. A caller's limit must fit.
    limit_is_advice: bool = field(default=False, compare=False)
    #: Any of these ends a row. Empty: only the limits do.
    eos_token_ids: tuple[int, ...] = ()
    #: What would end a row if the caller had not asked to pass it over: not padding either.
    ignored_eos_token_ids: tuple[int, ...] = field(default=(), compare=False)
    stop_strings: tuple[str, ...] = ()
    #: Seconds.
    max_time: float | None = None
    #: Fills unused places of a batch, without influence on the results; and see `padding_token_id`.
    pad_token_id: int | None = None
    #: What the decoder of an encoder-decoder starts with.
    decoder_start_token_id: int | None = None

    # --- speculation: the same tokens in fewer steps ---
    #: Draft tokens per step that are looked up in the text itself; `None`: none. See `prompt_lookup`.
    prompt_lookup_num_tokens: int | None = None
    #: Longest n-gram that is looked up.
    max_matching_ngram_size: int = 2

    # --- beam search, see `beams` ---
    #: Texts that a prompt is continued by at the same time; 1: one token is chosen at each step.
    num_beams: int = 1
    #: Answers to each prompt, the best one first.
    num_return_sequences: int = 1
    #: A text's score is divided by its length to this power.
    length_penalty: float = 1.0
    #: Whether the search ends with as many complete texts as beams; ``"never"``: only when none can become better.
    early_stopping: bool | str = False

    # --- sampling ---
    do_sample: bool = False
    #: `None`: drawn from torch's global generator, so that ``torch.manual_seed`` governs it as in Transformers.
    seed: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0

    # --- changes to the scores, with and without sampling ---
    sequence_bias: Mapping[tuple[int, ...], float] | Sequence[Sequence[Any]] | None = None
    encoder_repetition_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] | None = None
    min_length: int = 0
    min_new_tokens: int = 0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: Sequence[float] | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    #: A watermarking config of Transformers, or its content.
    watermarking_config: Any = None
    renormalize_logits: bool = False

    # --- not in Transformers ---
    #: Is subtracted from the scores of tokens that the answer holds, as in OpenAI's interface.
    presence_penalty: float = 0.0
    #: Is subtracted from the score of a token as often as the answer holds it.
    frequency_penalty: float = 0.0
    #: A JSON schema that the answer follows: a mapping, its JSON text, or a Pydantic model class. See `grammar`.
    json_schema: Any = None
    #: A regular expression that the whole answer matches.
    regex: str | None = None
    #: The output has the probability of every token, for each new token: of a program that returns them.
    return_pdfs: bool = False

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_length"):
            value = getattr(self, name)
            if value is not None and (not _is_int(value) or value < 1):
                raise InputError(f"{name}={value!r} must be a whole number of at least 1 (new tokens to generate)")
        problems = [text for text in map(self._problem, _RANGES) if text]
        if not problems and self.num_return_sequences > self.num_beams:
            raise InputError(
                f"num_return_sequences={self.num_return_sequences} is more than num_beams={self.num_beams}: give the prompt "
                "several times instead, or num_beams=..."
            )
        problems += [
            f"{name}={getattr(self, name)!r} must be {rule}"
            for name, (valid, rule) in _FORMS.items()
            if getattr(self, name) is not None and not valid(getattr(self, name))
        ]
        if self.exponential_decay_length_penalty is not None and not self.eos_token_ids:
            problems.append(
                "exponential_decay_length_penalty needs an end of sequence; give eos_token_id=..., or "
                "exponential_decay_length_penalty=None"
            )
        if problems:
            raise OptionError("generation settings: " + "; ".join(problems))

    def _problem(self, name: str) -> str | None:
        value = getattr(self, name)
        kinds, valid, rule = _RANGES[name]
        if value is None or (isinstance(value, kinds) and not isinstance(value, bool) and valid(value)):
            return None
        hint = "; for greedy decoding leave do_sample out" if name == "temperature" else ""
        return f"{name}={value!r} must be {rule}{hint}"

    @property
    def forced_bos_token_ids(self) -> tuple[int, ...]:
        """`forced_bos_token_id` as a tuple."""
        return token_ids(self.forced_bos_token_id, "forced_bos_token_id")

    @property
    def forced_eos_token_ids(self) -> tuple[int, ...]:
        """`forced_eos_token_id` as a tuple."""
        return token_ids(self.forced_eos_token_id, "forced_eos_token_id")

    @property
    def biases(self) -> dict[tuple[int, ...], float]:
        """`sequence_bias` as a mapping; Transformers takes a list of pairs as well."""
        given = self.sequence_bias or {}
        pairs = given.items() if isinstance(given, Mapping) else given
        return {tuple(map(int, sequence)): float(bias) for sequence, bias in pairs}

    @property
    def bans(self) -> dict[tuple[int, ...], float]:
        """`bad_words_ids` as biases. An end of sequence alone cannot be banned, as in Transformers."""
        sequences = [tuple(map(int, sequence)) for sequence in self.bad_words_ids or ()]
        ends = {(token,) for token in self.eos_token_ids}
        return {sequence: -math.inf for sequence in sequences if sequence and sequence not in ends}

    @property
    def length_decay(self) -> tuple[int, float]:
        """Start and factor of `exponential_decay_length_penalty`."""
        start, factor = self.exponential_decay_length_penalty or (0, 1.0)
        return int(start), float(factor)

    @property
    def padding_token_id(self) -> int | None:
        """The id that is padding in rows of ids without an attention mask, by the rule of Transformers.

        `None` where there is none, or where it ends a sequence too: then it may be text.
        """
        ends = {*self.eos_token_ids, *self.ignored_eos_token_ids}
        return None if self.pad_token_id in ends else self.pad_token_id

    @property
    def score_settings(self) -> tuple[str, ...]:
        """The names of the settings by which the scores change before a token is chosen; empty for plain decoding."""
        return tuple(self._score_settings())

    def _score_settings(self) -> Iterator[str]:
        for name in _SCORES:
            value = getattr(self, name)
            if name in _NEED_END and not self.eos_token_ids:
                continue
            # An empty list asks for nothing.
            if value != DEFAULTS[name] and (not isinstance(value, Sequence) or len(value)):
                yield name
        if self.do_sample:
            yield from (name for name in WARPERS if getattr(self, name) != DEFAULTS[name])


#: Only sampling uses them.
WARPERS = ("temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_SCORES = (
    *("sequence_bias", "encoder_repetition_penalty", "repetition_penalty", "no_repeat_ngram_size"),
    *("encoder_no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens", "forced_bos_token_id"),
    *("forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens"),
    *("begin_suppress_tokens", "watermarking_config", "renormalize_logits"),
    *("presence_penalty", "frequency_penalty", "json_schema", "regex"),
)
#: Settings that change scores; `None` for one of them as a keyword switches off what the checkpoint says.
SCORE_SETTINGS = (*_SCORES, *WARPERS)
#: They keep an end of sequence back, and do nothing where nothing ends a sequence.
_NEED_END = ("min_length", "min_new_tokens")

DEFAULTS: Mapping[str, Any] = {
    entry.name: entry.default for entry in fields(GenerationSettings) if entry.default is not MISSING
}


def token_ids(value: int | Sequence[int] | None, setting: str = "token_ids") -> tuple[int, ...]:
    """One id, several, or none, as a tuple.

    Raises `OptionError` for anything else: of a text, each character would be an id.
    """
    if value is None:
        return ()
    plain: Any = value.tolist() if hasattr(value, "tolist") else value
    ids = (plain,) if _is_int(plain) else plain
    if not _is_sequence(ids) or not all(_is_int(token) for token in ids):
        raise OptionError(f"generation settings: {setting}={value!r} must be a token id or a list of them")
    return tuple(ids)


# --- valid values ---------------------------------------------------------------------------------------------------


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _are_ids(value: Any) -> bool:
    return _is_sequence(value) and all(_is_int(item) for item in value)


def _are_token_ids(value: Any) -> bool:
    return _are_ids(value) and all(item >= 0 for item in value)


def _is_token_id(value: Any) -> bool:
    return _is_int(value) and value >= 0


def _is_bias(value: Any) -> bool:
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    return (
        _is_sequence(pairs)
        and len(pairs) > 0
        and all(_is_sequence(pair) and len(pair) == 2 for pair in pairs)
        and all(_are_token_ids(ids) and len(ids) and _is_summand(bias) for ids, bias in pairs)
    )


def _is_factor(value: float) -> bool:
    """Scores stay in the range of float32 when they are divided or multiplied by it."""
    return 1e-30 <= value <= 1e30


def _is_summand(value: Any) -> bool:
    """The same for what is added. Minus infinity forbids a token."""
    return isinstance(value, (int, float)) and (-1e30 <= value <= 1e30 or value == -math.inf)


def _is_decay(value: Any) -> bool:
    return _is_sequence(value) and len(value) == 2 and _is_int(value[0]) and isinstance(value[1], (int, float))


#: Field -> accepted types, predicate, rule in words. The limits are those of Transformers' own classes.
_RANGES: Mapping[str, tuple[Any, Callable[[Any], bool], str]] = {
    "temperature": ((int, float), _is_factor, "a number above 0, from 1e-30 to 1e30"),
    "top_k": (int, lambda v: v >= 0, "a whole number of at least 0 (0: off)"),
    "top_p": ((int, float), lambda v: 0 < v <= 1, "a number above 0 and at most 1"),
    "min_p": ((int, float), lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "top_h": ((int, float), lambda v: 0 < v <= 1, "a number above 0 and at most 1"),
    "typical_p": ((int, float), lambda v: 0 < v <= 1, "a number above 0 and at most 1"),
    "epsilon_cutoff": ((int, float), lambda v: 0 <= v < 1, "a number from 0 to below 1"),
    "eta_cutoff": ((int, float), lambda v: 0 <= v < 1, "a number from 0 to below 1"),
    "encoder_repetition_penalty": ((int, float), _is_factor, "a number above 0, from 1e-30 to 1e30"),
    "repetition_penalty": ((int, float), _is_factor, "a number above 0, from 1e-30 to 1e30"),
    "presence_penalty": ((int, float), math.isfinite, "a number"),
    "frequency_penalty": ((int, float), math.isfinite, "a number"),
    "no_repeat_ngram_size": (int, lambda v: v >= 0, "a whole number of at least 0 (0: off)"),
    "encoder_no_repeat_ngram_size": (int, lambda v: v >= 0, "a whole number of at least 0 (0: off)"),
    "min_length": (int, lambda v: v >= 0, "a whole number of at least 0"),
    "min_new_tokens": (int, lambda v: v >= 0, "a whole number of at least 0"),
    "max_time": ((int, float), lambda v: v > 0, "a number of seconds above 0"),
    "seed": (int, lambda v: v >= 0, "a whole number of at least 0"),
    "num_beams": (int, lambda v: v >= 1, "a whole number of at least 1"),
    "num_return_sequences": (int, lambda v: v >= 1, "a whole number of at least 1"),
    "length_penalty": ((int, float), math.isfinite, "a number"),
    "prompt_lookup_num_tokens": (int, lambda v: v >= 1, "a whole number of at least 1"),
    "max_matching_ngram_size": (int, lambda v: v >= 1, "a whole number of at least 1"),
}

#: The same for fields that are no numbers.
_FORMS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "stop_strings": (lambda v: all(isinstance(text, str) for text in v), "a text or a list of them"),
    "pad_token_id": (_is_int, "a token id"),
    "decoder_start_token_id": (_is_int, "a token id"),
    "forced_bos_token_id": (_is_token_id, "a token id"),
    "forced_eos_token_id": (lambda v: _is_token_id(v) or _are_token_ids(v), "a token id or a list of them"),
    "suppress_tokens": (_are_ids, "a list of token ids"),
    "begin_suppress_tokens": (_are_ids, "a list of token ids"),
    "bad_words_ids": (
        lambda v: _is_sequence(v) and len(v) > 0 and all(_are_token_ids(ids) and len(ids) for ids in v),
        "a list of lists of token ids, [[5], [7, 8]]",
    ),
    "sequence_bias": (
        _is_bias,
        "a list of token ids with their biases, [[[5, 8], -2.0]], from -1e30 to 1e30 or minus infinity",
    ),
    "exponential_decay_length_penalty": (_is_decay, "a pair of a number of tokens and a factor, (20, 1.1)"),
    "json_schema": (lambda v: not isinstance(v, str) or bool(v.strip()), "a JSON schema: a mapping, or its JSON text"),
    "regex": (lambda v: isinstance(v, str) and bool(v), "a regular expression"),
    "early_stopping": (lambda v: isinstance(v, bool) or v == "never", 'True, False or "never"'),
    "do_sample": (lambda v: isinstance(v, bool), "True or False"),
    "remove_invalid_values": (lambda v: isinstance(v, bool), "True or False"),
    "return_pdfs": (lambda v: isinstance(v, bool), "True or False"),
    "renormalize_logits": (lambda v: isinstance(v, bool), "True or False"),
}
