"""Choosing the next token from the logits: NumPy alone when it is the most likely one, Transformers' processors otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from qeff_framework.errors import ExecutionError, InputError, OptionError
from qeff_framework.generation.history import TokenHistory
from qeff_framework.generation.rows import Row
from qeff_framework.generation.settings import GenerationSettings

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import LogitsProcessorList


class TokenSelector(Protocol):
    """Picks one token for each of the given rows."""

    def __call__(self, logits: NDArray[Any], rows: Sequence[Row], /) -> list[int]:
        """`logits` is ``[B, V]``; entry i of the result is the token of ``rows[i]``, from the logits row ``rows[i].lane``."""


def greedy(logits: NDArray[Any], rows: Sequence[Row]) -> list[int]:
    """The most likely token; of equal ones the first, as ``torch.argmax`` on the CPU."""
    tokens = []
    for row in rows:
        scores = logits[row.lane]
        token = int(np.argmax(scores))
        # argmax takes a NaN for the greatest number, so looking at the winner finds any NaN in the row.
        if np.isnan(scores[token]):
            raise _not_a_number(row)
        tokens.append(token)
    return tokens


def forcing(settings: GenerationSettings) -> TokenSelector:
    """`greedy`, where the settings name no first or last token of a sequence."""

    def select(logits: NDArray[Any], rows: Sequence[Row]) -> list[int]:
        chosen = zip(rows, greedy(logits, rows), strict=True)
        return [token if (forced := _forced_token(settings, row)) is None else forced for row, token in chosen]

    return select


def _forced_token(settings: GenerationSettings, row: Row) -> int | None:
    """As Transformers: the first token behind a start of one token, and the last one that the limit leaves."""
    if len(row.generated) == row.limit - 1 and settings.forced_eos_token_ids:
        return min(settings.forced_eos_token_ids)
    if len(row.prompt) == 1 and not row.generated:
        return settings.forced_bos_token_id
    return None


class ProcessedSelector:
    """Applies logits processors as Transformers' ``generate`` does, then takes the most likely token or draws one.

    Processors are called once for each row and step with the row's own ids ``[1, length]`` and scores ``[1, V]`` float32, so
    what a row generates does not depend on the others. The caller's processors are one set for all rows: with several prompts
    they must not keep state between calls. Each row draws from its own generator, derived from the seed and its index.
    """

    def __init__(
        self,
        settings: GenerationSettings,
        rows: Sequence[Row],
        history: TokenHistory,
        custom: Sequence[Any] | None = None,
    ) -> None:
        import torch

        self._history = history
        self._sampling = settings.do_sample
        try:
            self._processors = [build_processors(settings, len(row.prompt), row.limit, custom) for row in rows]
        except (ValueError, TypeError) as error:
            raise OptionError(f"generation settings: {error}") from error
        seed = settings.seed if settings.seed is not None else int(torch.randint(2**62, (1,)).item())
        self._generators = [_generator(seed, row.index) for row in rows] if settings.do_sample else []

    def __call__(self, logits: NDArray[Any], rows: Sequence[Row]) -> list[int]:
        """See `TokenSelector`."""
        return [self._select(logits, row) for row in rows]

    def _select(self, logits: NDArray[Any], row: Row) -> int:
        import torch

        # A copy: processors may write to it, and the session's array is its own.
        raw = np.array(logits[row.lane : row.lane + 1], dtype=np.float32)
        if np.isnan(raw).any():
            raise _not_a_number(row)
        scores = self._score(row, torch.from_numpy(raw))
        if not self._sampling:
            return int(torch.argmax(scores, dim=-1).item())
        probabilities = torch.nn.functional.softmax(scores, dim=-1)
        if not torch.isfinite(probabilities).all():
            raise InputError(
                f"the logits processors left prompt {row.index} no token to choose from: all scores are -inf"
            )
        return int(torch.multinomial(probabilities, num_samples=1, generator=self._generators[row.index]).item())

    def _score(self, row: Row, scores: Any) -> torch.Tensor:
        """`scores` is untyped: Transformers declares a class that no tensor of this dtype is an instance of."""
        return self._processors[row.index](self._history.ids(row.index), scores)


def build_processors(
    settings: GenerationSettings, prompt_length: int, limit: int, custom: Sequence[Any] | None = None
) -> LogitsProcessorList:
    """The processors for one row, in the order of Transformers' ``generate``: penalties, the caller's own, then the warpers.

    A processor of the caller replaces the one of the same class that the settings ask for.
    """
    from transformers import LogitNormalization, LogitsProcessorList

    own = list(custom or ())
    replaced = {type(processor): processor for processor in reversed(own)}
    processors = [replaced.get(type(p), p) for p in _score_processors(settings, prompt_length, limit)]
    processors += [processor for processor in own if not any(processor is used for used in processors)]
    if settings.do_sample:
        processors += _warpers(settings)
    if settings.renormalize_logits:
        processors.append(LogitNormalization())
    return LogitsProcessorList(processors)


def _score_processors(settings: GenerationSettings, prompt_length: int, limit: int) -> Iterator[Any]:
    import transformers as hf

    eos = list(settings.eos_token_ids)
    if settings.sequence_bias is not None:
        yield hf.SequenceBiasLogitsProcessor(sequence_bias=settings.sequence_bias)
    if settings.repetition_penalty != 1.0:
        yield hf.RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty))
    if settings.no_repeat_ngram_size > 0:
        yield hf.NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size)
    if settings.bad_words_ids is not None:
        yield hf.NoBadWordsLogitsProcessor([list(word) for word in settings.bad_words_ids], eos or None)
    if settings.min_length > 0 and eos:
        yield hf.MinLengthLogitsProcessor(settings.min_length, eos)
    if settings.min_new_tokens > 0 and eos:
        yield hf.MinNewTokensLengthLogitsProcessor(prompt_length, settings.min_new_tokens, eos)
    if settings.forced_bos_token_id is not None:
        yield hf.ForcedBOSTokenLogitsProcessor(settings.forced_bos_token_id)
    if settings.forced_eos_token_id is not None:
        forced = settings.forced_eos_token_id
        ids = forced if isinstance(forced, int) else list(forced)
        yield hf.ForcedEOSTokenLogitsProcessor(prompt_length + limit, ids)
    if settings.remove_invalid_values:
        yield hf.InfNanRemoveLogitsProcessor()
    if settings.exponential_decay_length_penalty is not None:
        start, factor = settings.exponential_decay_length_penalty
        yield hf.ExponentialDecayLengthPenalty((start, factor), eos, prompt_length)
    if settings.suppress_tokens is not None:
        yield hf.SuppressTokensLogitsProcessor(list(settings.suppress_tokens))
    if settings.begin_suppress_tokens is not None:
        # A forced first token takes the place that the suppression would act on.
        shift = 1 if prompt_length == 1 and settings.forced_bos_token_id is not None else 0
        yield hf.SuppressTokensAtBeginLogitsProcessor(list(settings.begin_suppress_tokens), prompt_length + shift)


def _warpers(settings: GenerationSettings) -> Iterator[Any]:
    import transformers as hf

    if settings.temperature != 1.0:
        yield hf.TemperatureLogitsWarper(float(settings.temperature))
    if settings.top_h is not None:
        yield hf.TopHLogitsWarper(top_h=settings.top_h)
    if settings.top_k:
        yield hf.TopKLogitsWarper(top_k=settings.top_k)
    if settings.top_p < 1.0:
        yield hf.TopPLogitsWarper(top_p=float(settings.top_p))
    if settings.min_p is not None:
        yield hf.MinPLogitsWarper(min_p=float(settings.min_p))
    if settings.typical_p < 1.0:
        yield hf.TypicalLogitsWarper(mass=float(settings.typical_p))
    if settings.epsilon_cutoff > 0.0:
        yield hf.EpsilonLogitsWarper(epsilon=float(settings.epsilon_cutoff))
    if settings.eta_cutoff > 0.0:
        yield hf.EtaLogitsWarper(epsilon=float(settings.eta_cutoff))


def _generator(seed: int, row: int) -> torch.Generator:
    import torch

    # Seeds that differ in the row only must not give related streams; 63 bits are what manual_seed takes.
    state = int(np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)[0]) >> 1
    return torch.Generator().manual_seed(state)


def _not_a_number(row: Row) -> ExecutionError:
    return ExecutionError(
        f"the logits of prompt {row.index} at position {len(row.prompt) + len(row.generated) - 1} contain NaN: the program "
        "overflowed or read a bad cache; compare it with PyTorch, or compile with a wider data type"
    )
