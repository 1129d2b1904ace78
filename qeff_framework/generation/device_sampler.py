"""Tokens that the program itself chooses: the host gives the settings of each row, random numbers for samples, and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.contracts import TOKEN_BITMASKS
from qeff_framework.errors import ExecutionError, InputError, QEFFError
from qeff_framework.generation.grammar import Grammar
from qeff_framework.generation.program_shape import ProgramShape
from qeff_framework.generation.randomness import generator_of, seed_of
from qeff_framework.generation.rows import Row
from qeff_framework.generation.scores import ScoreRule, build_rules
from qeff_framework.generation.settings import GenerationSettings
from qeff_framework.generation.step_inputs import StepInputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Settings that the program has inputs for.
_SUPPORTED = frozenset(
    {"do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty"}
)
#: Settings that forbid tokens, whatever the scores are: a program that takes masks can do them.
_MASKING = frozenset(
    {
        *("json_schema", "regex", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "no_repeat_ngram_size"),
        *("encoder_no_repeat_ngram_size", "min_length", "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id"),
    }
)
#: Settings that change scores and no choice.
_WITHOUT_EFFECT = frozenset({"renormalize_logits"})


class DeviceSampler:
    """Implements `TokenSelector` for a program that returns ``next_tokens``.

    Each row draws its random numbers from its own generator, derived from the seed and its index, one set for each token: what a
    row gets depends neither on the others nor on the chunks of its prompt. Raises `InputError` for settings that the program
    has no inputs for.
    """

    def __init__(
        self,
        settings: GenerationSettings,
        rows: Sequence[Row],
        shape: ProgramShape,
        logits_processor: Sequence[Any] | None = None,
        grammar: Grammar | None = None,
    ) -> None:
        self._vocab_size = shape.vocab_size
        takes_masks = shape.masked_tokens is not None
        supported = _SUPPORTED | _MASKING if takes_masks else _SUPPORTED
        refused = [name for name in settings.score_settings if name not in supported | _WITHOUT_EFFECT]
        refused += ["logits_processor"] if logits_processor else []
        if refused:
            masked = not takes_masks and set(refused) <= _MASKING
            raise InputError(
                f"{', '.join(refused)}: the program chooses tokens on the device, by {', '.join(sorted(supported))} only; leave "
                f"the rest out (what the checkpoint asks for, with {', '.join(f'{name}=None' for name in refused)}), or compile "
                f"{'with include_guided_decoding=True, or ' if masked else ''}without include_sampler"
            )
        #: The program's marks must be those of the prompt, which a cache slot that another prompt has left does not have.
        self.needs_own_marks = settings.repetition_penalty != 1.0 or settings.presence_penalty != 0.0
        self._values = {
            "repetition_penalties": settings.repetition_penalty,
            "presence_penalties": settings.presence_penalty,
            "temperatures": settings.temperature if settings.do_sample else 0.0,
            "top_ks": _top_k(settings, shape),
            "top_ps": settings.top_p,
            "min_ps": settings.min_p or 0.0,
        }
        self._generators: list[np.random.Generator] = []
        if settings.do_sample:
            seed = seed_of(settings)
            self._generators = [generator_of(seed, row.index) for row in rows]
        #: The settings that forbid tokens alone; `None` when none does.
        self._masking: GenerationSettings | None = None
        if _MASKING & {*settings.score_settings}:
            self._masking = replace(
                settings, do_sample=False, repetition_penalty=1.0, presence_penalty=0.0, renormalize_logits=False
            )
        self._grammar = grammar
        #: Rules of the rows that are at work.
        self._rules: dict[int, list[ScoreRule]] = {}
        #: ``[V]``, for one row after the other.
        self._scores = np.zeros(shape.masked_tokens or 0, dtype=np.float32)
        self._problem: QEFFError | None = None
        if self._masking is not None and rows:
            # Rules that cannot be applied are found before the first step.
            self._rules[rows[0].index] = self._build(rows[0], self._masking)

    def configure(self, inputs: StepInputs, place: int) -> None:
        """Writes the settings into the inputs of a kind of step, at the row's place; they stay there until another row's come."""
        for name, value in self._values.items():
            inputs.sampling[name][place, 0] = value
        if TOKEN_BITMASKS in inputs.sampling:
            inputs.sampling[TOKEN_BITMASKS][place] = True

    def draw(self, inputs: StepInputs, place: int, row: Row) -> None:
        """Random numbers for the row's next token, and the tokens that may be it, at its place among the rows of the step.

        A rule that fails is raised when the token is taken: the step serves the rows of other requests as well.
        """
        if self._generators:
            numbers = inputs.sampling["random_numbers"]
            self._generators[row.index].random(out=numbers[place], dtype=np.float32)
        if self._masking is not None:
            try:
                inputs.sampling[TOKEN_BITMASKS][place] = self._allowed(row, self._masking)
            except QEFFError as problem:
                self._problem = problem

    def __call__(self, tokens: NDArray[Any], rows: Sequence[Row], /) -> list[int]:
        """`tokens` is ``[B, 1]``."""
        if self._problem is not None:
            raise self._problem
        chosen = [int(tokens[row.lane, 0]) for row in rows]
        for row, token in zip(rows, chosen, strict=True):
            if token < 0 or (self._vocab_size is not None and token >= self._vocab_size):
                raise ExecutionError(
                    f"the program chose the token {token} for prompt {row.index}, which the model does not know: compile without "
                    "include_sampler, and compare the logits with PyTorch"
                )
        return chosen

    def forget(self, row: Row) -> None:
        """See `TokenSelector`."""
        self._rules.pop(row.index, None)

    def _build(self, row: Row, masking: GenerationSettings) -> list[ScoreRule]:
        return build_rules(masking, row, len(self._scores), grammar=self._grammar)

    def _allowed(self, row: Row, masking: GenerationSettings) -> NDArray[np.bool_]:
        """``[V]``: the rules set the scores of other tokens to -inf, whatever these are."""
        if row.index not in self._rules:
            self._rules[row.index] = self._build(row, masking)
        self._scores.fill(0.0)
        for rule in self._rules[row.index]:
            rule(row, self._scores)
        allowed: NDArray[np.bool_] = self._scores > -np.inf
        if not allowed.any():
            raise InputError(
                f"{', '.join(masking.score_settings)} left prompt {row.index} no token to choose from; leave one of them out"
            )
        return allowed


def _top_k(settings: GenerationSettings, shape: ProgramShape) -> int:
    """Top-k of samples. All tokens can be asked for only where all of them are candidates."""
    candidates = shape.candidates or 0
    asked = settings.top_k or shape.vocab_size or candidates + 1
    if settings.do_sample and asked > candidates and candidates != shape.vocab_size:
        raise InputError(
            f"top_k={settings.top_k}: the program chooses among the {candidates} most likely tokens; give top_k=1 to "
            f"{candidates}, or compile without include_sampler"
        )
    return min(asked, candidates)
