"""The decoder of a speech model, step by step, over what its encoder has made of sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import ExecutionError
from qeff_framework.generation.rows import Row
from qeff_framework.generation.sampling import RuledSelector
from qeff_framework.generation.scores import ScoreRule
from qeff_framework.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SpeechDecoder:
    """Feeds a decoder program. For one thread."""

    def __init__(self, session: ExecutionSession) -> None:
        self._session = session
        entries = [item.dims for item in session.compiled.specializations]
        self.batch_size = entries[0]["batch_size"]
        self.ctx_len = entries[0]["ctx_len"]
        self._source_lengths = sorted({dims["encoder_seq_len"] for dims in entries} - {1})
        (tokens,) = (spec for spec in session.compiled.inputs if spec.name == "input_ids")
        self._dtype = tokens.dtype
        (hidden,) = (spec for spec in session.compiled.inputs if spec.name == "encoder_hidden_states")
        self._hidden_size, self._hidden_dtype = int(hidden.shape[2]), hidden.dtype

    def first_logits(self, hidden: NDArray[Any], lengths: Sequence[int], start: int) -> NDArray[np.float32]:
        """Logits ``[N, V]`` behind the token `start`, which says which language is spoken."""
        self._session.reset()
        return self._step([start] * len(lengths), 0, hidden, lengths)[: len(lengths)]

    def decode(
        self,
        hidden: NDArray[Any],
        lengths: Sequence[int],
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        settings: GenerationSettings,
        further: Callable[[], Sequence[ScoreRule]] = tuple,
    ) -> list[list[int]]:
        """The most likely tokens of each row, the end of the text among them if it was reached.

        Args:
            hidden: output of the encoder, ``[N, T, D]``, N at most `batch_size`.
            lengths: frames of each row.
            prompts: start tokens of each row.
            limits: new tokens of each row at most.
            settings: rules for the scores, and what ends a text.
            further: makes the rules for one row that come behind those.
        """
        rows = [
            Row(index=index, prompt=list(prompt), limit=limit)
            for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
        ]
        selector = _Selector(settings, rows, further)
        ends = {*settings.eos_token_ids}
        self._session.reset()
        position = 0
        while any(not row.finished for row in rows):
            tokens = [self._token(row, position) for row in rows]
            logits = self._step(tokens, position, hidden if position == 0 else None, lengths)
            deciding = [row for row in rows if not row.finished and position >= len(row.prompt) - 1]
            for row, token in zip(deciding, selector(logits, deciding), strict=True):
                row.generated.append(token)
                if token in ends:
                    row.finish_reason = "eos"
                elif len(row.generated) >= row.limit:
                    row.finish_reason = "length"
            position += 1
        return [row.generated for row in rows]

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
    """With rules that no setting asks for, behind all others."""

    def __init__(
        self, settings: GenerationSettings, rows: Sequence[Row], further: Callable[[], Sequence[ScoreRule]]
    ) -> None:
        self._further = further
        super().__init__(settings, rows)

    def _build(self, row: Row, vocab_size: int) -> list[ScoreRule]:
        return [*super()._build(row, vocab_size), *self._further()]
