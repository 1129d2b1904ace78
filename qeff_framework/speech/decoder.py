"""A decoder, step by step, over what an encoder in another program has made of sound, or of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import ExecutionError, InputError
from qeff_framework.generation.moved_states import move_states
from qeff_framework.generation.randomness import generator_of
from qeff_framework.generation.rows import Row
from qeff_framework.generation.sampling import RuledSelector
from qeff_framework.generation.scores import ScoreRule
from qeff_framework.generation.settings import GenerationSettings
from qeff_framework.session_use import use_of
from qeff_framework.speech.beams import SpeechBeams, log_probability

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: Settings that are for models of texts.
_NOT_HONOURED = ("stop_strings", "max_time", "json_schema", "regex", "return_pdfs", "prompt_lookup_num_tokens")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of the decoder about one row of sound."""

    #: Start tokens, and what stands before them.
    prompt: Sequence[int]
    #: New tokens at most.
    limit: int
    #: Number of the clip.
    clip: int = 0
    #: Of the tokens that are drawn.
    seed: int = 0
    #: Position of the token behind which silence is told, and the token that tells it.
    silence: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the decoder made of one row of sound."""

    #: The end of the text is among them if it was reached.
    tokens: list[int]
    #: Mean log-probability of the tokens, by the scores after all rules.
    avg_logprob: float
    #: Probability that nobody speaks, by the model's own scores; 0 where it was not asked for.
    no_speech_prob: float


class SpeechDecoder:
    """Feeds a decoder program. Calls of several threads take turns."""

    def __init__(self, session: ExecutionSession) -> None:
        self._session = session
        self._use = use_of(session)
        entries = [item.dims for item in session.compiled.specializations]
        self.batch_size = entries[0]["batch_size"]
        self.ctx_len = entries[0]["ctx_len"]
        self._source_lengths = sorted({dims["encoder_seq_len"] for dims in entries} - {1})
        (tokens,) = (spec for spec in session.compiled.inputs if spec.name == "input_ids")
        self._dtype = tokens.dtype
        (hidden,) = (spec for spec in session.compiled.inputs if spec.name == "encoder_hidden_states")
        self._hidden_size, self._hidden_dtype = int(hidden.shape[2]), hidden.dtype

    def check(self, settings: GenerationSettings) -> None:
        """Raises `InputError` for settings that no step of this decoder honours, before anything runs."""
        ignored = [name for name in _NOT_HONOURED if getattr(settings, name)]
        if settings.num_beams > 1 and settings.num_return_sequences > 1:
            ignored.append("num_return_sequences")
        if ignored:
            raise InputError(
                f"{', '.join(ignored)} cannot be honoured by a decoder of sound or of an image: an answer is the best text "
                "alone, and ends with its end token or its limit; leave it out"
            )
        beams, rows = settings.num_beams, self.batch_size
        if beams > rows:
            raise InputError(
                f"num_beams={beams}: each answer takes {beams} rows, and the program computes {rows} at once; compile with "
                f"batch_size={beams}; num_beams=1 takes the most likely token at each step"
            )

    def first_logits(self, hidden: NDArray[Any], lengths: Sequence[int], start: int) -> NDArray[np.float32]:
        """Logits ``[N, V]`` behind the token `start`, which says which language is spoken."""
        with self._use.turn:
            self._reset()
            return self._step([start] * len(lengths), 0, hidden, lengths)[: len(lengths)]

    def decode(
        self,
        hidden: NDArray[Any],
        lengths: Sequence[int],
        questions: Sequence[Question],
        settings: GenerationSettings,
        further: Callable[[], Sequence[ScoreRule]] = tuple,
        on_step: Callable[[Sequence[Row]], None] = lambda rows: None,
    ) -> list[Answer]:
        """The tokens of each row: the most likely ones, or drawn ones, as `settings` say.

        Args:
            hidden: output of the encoder, ``[N, T, D]``, N at most `batch_size`.
            lengths: frames of each row.
            questions: of each row.
            settings: rules for the scores, and what ends a text.
            further: makes the rules for one row that come behind those, before temperature and the like.
            on_step: called behind each step, with the rows that it gave a token; beams have theirs at the end alone.
        """
        with self._use.turn:
            return self._decode(hidden, lengths, questions, settings, further, on_step)

    def _decode(
        self,
        hidden: NDArray[Any],
        lengths: Sequence[int],
        questions: Sequence[Question],
        settings: GenerationSettings,
        further: Callable[[], Sequence[ScoreRule]],
        on_step: Callable[[Sequence[Row]], None],
    ) -> list[Answer]:
        beams = settings.num_beams
        # Beams stand one behind the other, as many for each question.
        of_rows = [question for question in questions for _ in range(beams)]
        hidden, lengths = np.repeat(hidden, beams, axis=0), [length for length in lengths for _ in range(beams)]
        rows = [
            Row(index=question.clip if beams == 1 else lane, lane=lane, prompt=question.prompt, limit=question.limit)
            for lane, question in enumerate(of_rows)
        ]
        texts = (
            _Selector(settings, rows, further, [question.seed for question in questions])
            if beams == 1
            else SpeechBeams(settings, rows, further)
        )
        silences = [question.silence or (-1, 0) for question in of_rows]
        no_speech = [0.0] * len(rows)
        self._reset()
        position = 0
        while any(not row.finished for row in rows):
            tokens = [self._token(row, position) for row in rows]
            logits = self._step(tokens, position, hidden if position == 0 else None, lengths)
            for row, (place, token) in zip(rows, silences, strict=True):
                if place == position:
                    no_speech[row.lane] = float(np.exp(log_probability(logits[row.lane], token)))
            deciding = [row for row in rows if not row.finished and position >= len(row.prompt) - 1]
            if deciding:
                texts.take(logits, deciding)
                move_states(self._session, texts.moves)
            position += 1
            on_step(deciding if beams == 1 else ())
        return [
            Answer(tokens=tokens, avg_logprob=logprob, no_speech_prob=no_speech[number * beams])
            for number, (tokens, logprob) in enumerate(texts.best_texts())
        ]

    def _reset(self) -> None:
        self._use.take(self)
        self._session.reset()

    def _token(self, row: Row, position: int) -> int | None:
        """The token at a position, `None` behind the end of a row that has finished."""
        if position < len(row.prompt):
            return row.prompt[position]
        return None if row.finished else row.generated[position - len(row.prompt)]

    def _step(
        self, tokens: Sequence[int | None], position: int, hidden: NDArray[Any] | None, lengths: Sequence[int]
    ) -> NDArray[np.float32]:
        rows = self.batch_size
        ids = np.zeros((rows, 1), dtype=self._dtype)
        positions = np.full((rows, 1), -1, dtype=np.int64)
        counts = np.ones((rows, 1), dtype=np.int64)
        for number, token in enumerate(tokens):
            counts[number, 0] = lengths[number]
            if token is not None:
                ids[number, 0], positions[number, 0] = token, position
        width = 1 if hidden is None else next(size for size in self._source_lengths if size >= max(lengths))
        states = np.zeros((rows, width, self._hidden_size), dtype=self._hidden_dtype)
        places = np.full((rows, width), -1, dtype=np.int64)
        if hidden is not None:
            for number, length in enumerate(lengths):
                states[number, :length] = hidden[number, :length]
                places[number, :length] = np.arange(length)
        self._use.check(self)
        outputs = self._session.run(
            {
                "input_ids": ids,
                "position_ids": positions,
                "encoder_hidden_states": states,
                "encoder_position_ids": places,
                "encoder_lengths": counts,
            }
        )
        logits = outputs.get("logits")
        if logits is None or logits.ndim != 3:
            raise ExecutionError(f"the program returned {', '.join(sorted(outputs))}, but no logits [B, 1, V]")
        return np.asarray(logits[:, -1], dtype=np.float32)


class _Selector(RuledSelector):
    """With rules that no setting asks for; sums up how likely the tokens are."""

    def __init__(
        self,
        settings: GenerationSettings,
        rows: Sequence[Row],
        further: Callable[[], Sequence[ScoreRule]],
        seeds: Sequence[int],
    ) -> None:
        self._make_further = further
        super().__init__(settings, rows)
        #: Each row continues its own text.
        self.moves: Mapping[int, int] = {}
        self._rows = rows
        self._ends = {*settings.eos_token_ids}
        #: Sums of the log-probabilities of each row.
        self._logprobs = [0.0] * len(rows)
        if settings.do_sample:
            pairs = zip(rows, seeds, strict=True)
            self._generators = {row.index: generator_of(seed, row.index) for row, seed in pairs}
        self._temperature = np.float32(settings.temperature if settings.do_sample else 1)

    def take(self, logits: NDArray[Any], rows: Sequence[Row]) -> None:
        """Gives each row its next token."""
        for row, token in zip(rows, self(logits, rows), strict=True):
            row.generated.append(token)
            if token in self._ends:
                row.finish_reason = "eos"
            elif len(row.generated) >= row.limit:
                row.finish_reason = "length"

    def best_texts(self) -> list[tuple[list[int], float]]:
        """Of each row: its tokens, and their mean log-probability."""
        return [(row.generated, self._logprobs[row.lane] / max(len(row.generated), 1)) for row in self._rows]

    def _further(self) -> Sequence[ScoreRule]:
        return self._make_further()

    def _select(self, logits: NDArray[Any], row: Row) -> int:
        token = super()._select(logits, row)
        # The model's own certainty, whatever the temperature is.
        self._logprobs[row.lane] += log_probability(self._scores * self._temperature, token)
        return token
