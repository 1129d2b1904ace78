"""Which rules the settings ask for, in the order of Transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qeff_framework.generation.grammar import Grammar
from qeff_framework.generation.history import TokenHistory
from qeff_framework.generation.rows import Row
from qeff_framework.generation.scores import ngrams, normalizing, placement, repetition, sequences, warpers
from qeff_framework.generation.scores.rule import ScoreRule
from qeff_framework.generation.scores.transformers_rules import TransformersRule, watermark
from qeff_framework.generation.settings import GenerationSettings

#: The setting, the class of Transformers that stands for it (`None`: Transformers has none), and how the rule is made.
_Entry = tuple[str, str | None, Callable[[GenerationSettings, Row, int], ScoreRule]]

_RULES: Sequence[_Entry] = (
    (
        "sequence_bias",
        "SequenceBiasLogitsProcessor",
        lambda settings, row, vocab: sequences.SequenceBias(settings.biases, vocab, setting="sequence_bias"),
    ),
    (
        "encoder_repetition_penalty",
        "EncoderRepetitionPenaltyLogitsProcessor",
        lambda settings, row, vocab: repetition.SourcePenalty(settings.encoder_repetition_penalty, row.given, vocab),
    ),
    (
        "repetition_penalty",
        "RepetitionPenaltyLogitsProcessor",
        lambda settings, row, vocab: repetition.RepetitionPenalty(settings.repetition_penalty, vocab),
    ),
    (
        "presence_penalty",
        None,
        lambda settings, row, vocab: repetition.AnswerPenalty(settings.presence_penalty, vocab, per_occurrence=False),
    ),
    (
        "frequency_penalty",
        None,
        lambda settings, row, vocab: repetition.AnswerPenalty(settings.frequency_penalty, vocab, per_occurrence=True),
    ),
    (
        "no_repeat_ngram_size",
        "NoRepeatNGramLogitsProcessor",
        lambda settings, row, vocab: ngrams.NoRepeatedNgrams(settings.no_repeat_ngram_size),
    ),
    (
        "encoder_no_repeat_ngram_size",
        "EncoderNoRepeatNGramLogitsProcessor",
        lambda settings, row, vocab: ngrams.NoSourceNgrams(settings.encoder_no_repeat_ngram_size, row.given),
    ),
    (
        "bad_words_ids",
        "NoBadWordsLogitsProcessor",
        lambda settings, row, vocab: sequences.SequenceBias(settings.bans, vocab, setting="bad_words_ids"),
    ),
    (
        "min_length",
        "MinLengthLogitsProcessor",
        lambda settings, row, vocab: placement.MinimumLength(settings.min_length, settings.eos_token_ids, vocab),
    ),
    (
        "min_new_tokens",
        "MinNewTokensLengthLogitsProcessor",
        lambda settings, row, vocab: placement.MinimumLength(
            len(row.prompt) + settings.min_new_tokens, settings.eos_token_ids, vocab
        ),
    ),
    (
        "forced_bos_token_id",
        "ForcedBOSTokenLogitsProcessor",
        lambda settings, row, vocab: placement.ForcedFirstToken(settings.forced_bos_token_ids[0], vocab),
    ),
    (
        "forced_eos_token_id",
        "ForcedEOSTokenLogitsProcessor",
        lambda settings, row, vocab: placement.ForcedLastToken(settings.forced_eos_token_ids, vocab),
    ),
    ("remove_invalid_values", "InfNanRemoveLogitsProcessor", lambda settings, row, vocab: normalizing.FiniteScores()),
    (
        "exponential_decay_length_penalty",
        "ExponentialDecayLengthPenalty",
        lambda settings, row, vocab: placement.LengthDecay(*settings.length_decay, settings.eos_token_ids, vocab),
    ),
    (
        "suppress_tokens",
        "SuppressTokensLogitsProcessor",
        lambda settings, row, vocab: placement.Suppress(settings.suppress_tokens or (), vocab),
    ),
    (
        "begin_suppress_tokens",
        "SuppressTokensAtBeginLogitsProcessor",
        lambda settings, row, vocab: placement.SuppressAtBegin(
            settings.begin_suppress_tokens or (), vocab, behind_forced=bool(settings.forced_bos_token_ids)
        ),
    ),
)

#: Behind the caller's own processors, and only when tokens are drawn.
_WARPERS: Sequence[tuple[str, Callable[[GenerationSettings], ScoreRule]]] = (
    ("temperature", lambda settings: warpers.Temperature(settings.temperature)),
    ("top_h", lambda settings: warpers.TopH(settings.top_h or 1.0)),
    ("top_k", lambda settings: warpers.TopK(settings.top_k)),
    ("top_p", lambda settings: warpers.TopP(settings.top_p)),
    ("min_p", lambda settings: warpers.MinP(settings.min_p or 0.0)),
    ("typical_p", lambda settings: warpers.TypicalMass(settings.typical_p)),
    ("epsilon_cutoff", lambda settings: warpers.EpsilonCutoff(settings.epsilon_cutoff)),
    ("eta_cutoff", lambda settings: warpers.EtaCutoff(settings.eta_cutoff)),
)


def build_rules(
    settings: GenerationSettings,
    row: Row,
    vocab_size: int,
    *,
    custom: Sequence[Any] = (),
    history: TokenHistory | None = None,
    grammar: Grammar | None = None,
    further: Sequence[ScoreRule] = (),
) -> list[ScoreRule]:
    """The rules for one row, in the order of Transformers' ``generate``.

    The caller's processors, `custom`, come behind the penalties and before temperature and top-k. One whose class is that of a
    rule which the settings ask for replaces it, in its place. `history` gives the processors of Transformers their ids. `grammar`
    comes before temperature and top-k, which so choose among the tokens that it leaves; so do `further` rules.

    Raises:
        InputError: a setting names a token that the model cannot generate.
        OptionError: a setting that Transformers does not understand.
    """
    known = history if history is not None else TokenHistory()
    return list(_rules(settings, row, vocab_size, custom, known, grammar, further))


def _rules(
    settings: GenerationSettings,
    row: Row,
    vocab_size: int,
    custom: Sequence[Any],
    history: TokenHistory,
    grammar: Grammar | None,
    further: Sequence[ScoreRule],
) -> Iterator[ScoreRule]:
    asked = frozenset(settings.score_settings)
    used: set[int] = set()
    for name, replaced, make in _RULES:
        if name not in asked:
            continue
        own = (
            next((processor for processor in custom if _class_name(processor) == replaced), None) if replaced else None
        )
        if own is None:
            yield make(settings, row, vocab_size)
        else:
            used.add(id(own))
            yield TransformersRule(own, history)
    for processor in custom:
        if id(processor) not in used:
            used.add(id(processor))
            yield TransformersRule(processor, history)
    yield from further
    if grammar is not None:
        yield grammar.rule()
    for name, make_warper in _WARPERS:
        if name in asked:
            yield make_warper(settings)
    if "watermarking_config" in asked:
        yield watermark(settings.watermarking_config, history, vocab_size)
    if "renormalize_logits" in asked:
        yield normalizing.LogProbabilities()


def _class_name(processor: object) -> str:
    """The name of a class of Transformers itself; a subclass does not replace anything there either."""
    kind = type(processor)
    return kind.__name__ if kind.__module__.startswith("transformers.") else ""
