"""Running models that read sound or images in one pass: any number of clips of any length over programs of fixed shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import ExecutionError, InputError
from qeff_framework.session_use import use_of
from qeff_framework.single_pass.numbers import refuse_broken

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MASK = "attention_mask"


class SignalRunner:
    """Feeds what a processor returns to a program and returns its outputs without padding."""

    def __init__(self, session: ExecutionSession) -> None:
        compiled = session.compiled
        self.session = session
        self._use = use_of(session)
        self._main = compiled.inputs[0]
        self._has_mask = any(spec.name == _MASK for spec in compiled.inputs)
        self._outputs = tuple(spec.name for spec in compiled.outputs)
        #: How many ids a model of text has rows for, as far as it is known.
        self._ids: int | None = compiled.metadata.get("vocab_size")
        self._frames: Mapping[str, int] | None = compiled.metadata.get("frames")
        #: Compiled sizes as (seq_len, batch_size), smallest first; a length of 0 for a program of one length.
        self._sizes = sorted(
            (item.dims.get("seq_len", 0), item.dims["batch_size"]) for item in compiled.specializations
        )

    def __call__(self, inputs: Mapping[str, Any]) -> tuple[Mapping[str, NDArray[Any]], NDArray[np.int64]]:
        """The program's outputs by name ``[N, ...]``, and the real frames of each row ``[N]`` (0 for outputs without frames).

        `inputs` has the main input, ``[N, ...]`` or rows of unequal lengths, and may have an ``attention_mask [N, S]``, by which
        rows end in padding. Frames behind the last real one of a row are 0. Raises `InputError` for what the program cannot take,
        and `ExecutionError` where the result of a row holds NaN.
        """
        rows = self._read(inputs)
        lengths = [len(row) for row in rows] if self._has_mask else [0] * len(rows)
        seq_len, batch_size = self._choose(len(rows), max(lengths))
        frames = np.array([self._frames_of(length, number) for number, length in enumerate(lengths)], dtype=np.int64)
        results: dict[str, NDArray[Any]] = {}
        for start in range(0, len(rows), batch_size):
            group = rows[start : start + batch_size]
            with self._use.turn:
                for name, output in self._run(group, seq_len, batch_size).items():
                    if name not in results:
                        inner = (int(frames.max()), *output.shape[2:]) if self._frames else output.shape[1:]
                        results[name] = np.zeros((len(rows), *inner), dtype=output.dtype)
                    for number in range(len(group)):
                        count = int(frames[start + number]) if self._frames else len(output[number])
                        results[name][start + number, :count] = output[number, :count]
        # Frames of padding are 0.
        refuse_broken(results, {})
        return results, frames

    def _run(self, group: list[NDArray[Any]], seq_len: int, batch_size: int) -> dict[str, NDArray[Any]]:
        # Unused rows repeat a real one: a row that is hidden as a whole makes attention divide by zero.
        filled = [*group, *([group[0]] * (batch_size - len(group)))]
        inner = (seq_len, *filled[0].shape[1:]) if self._has_mask else filled[0].shape
        main = np.zeros((batch_size, *inner), dtype=self._main.dtype)
        feed = {self._main.name: main}
        if self._has_mask:
            feed[_MASK] = np.zeros((batch_size, seq_len), dtype=np.int64)
        for number, row in enumerate(filled):
            main[number, : len(row)] = row
            if self._has_mask:
                feed[_MASK][number, : len(row)] = 1
        outputs = self.session.run(feed)
        missing = [name for name in self._outputs if name not in outputs]
        if missing:
            raise ExecutionError(f"the program returned {', '.join(sorted(outputs))}, but no {', '.join(missing)}")
        return {name: np.asarray(outputs[name]) for name in self._outputs}

    def _frames_of(self, length: int, row: int) -> int:
        if self._frames is None:
            return 0
        count = (length + self._frames["offset"]) // self._frames["stride"]
        if count < 1:
            raise InputError(
                f"row {row} of the inputs has a length of {length}, too little for a single frame; give more"
            )
        return count

    def _choose(self, rows: int, length: int) -> tuple[int, int]:
        """The smallest compiled length that fits; for that length the smallest batch that fits, else the largest."""
        lengths = sorted({seq_len for seq_len, _ in self._sizes})
        fitting = [seq_len for seq_len in lengths if seq_len >= length]
        if not fitting:
            raise InputError(
                f"the longest input has a length of {length}, the program was compiled for seq_len "
                f"{', '.join(map(str, lengths))}; cut it, or compile with seq_len={length}"
            )
        batches = [batch for seq_len, batch in self._sizes if seq_len == fitting[0]]
        return fitting[0], next((batch for batch in batches if batch >= rows), batches[-1])

    # --- reading ------------------------------------------------------------------------------------------------------

    def _read(self, inputs: Mapping[str, Any]) -> list[NDArray[Any]]:
        """Each row without its padding."""
        name = self._main.name
        if not isinstance(inputs, Mapping) or inputs.get(name) is None:
            raise InputError(f"the program takes what the model's processor returns: a mapping with {name}")
        unknown = sorted(key for key, value in inputs.items() if value is not None and key not in (name, _MASK))
        if unknown:
            raise InputError(f"the program does not take {', '.join(unknown)}, only {name}; leave the others out")
        rows = [self._row(row, number) for number, row in enumerate(inputs[name])]
        if not rows:
            raise InputError(f"no inputs were given; give at least one row of {name}")
        mask = inputs.get(_MASK) if self._has_mask else None
        if mask is not None:
            if len(mask) != len(rows):
                raise InputError(f"{_MASK} has {len(mask)} rows, and {name} has {len(rows)}")
            rows = [
                _without_padding(row, np.asarray(of_row), number)
                for number, (row, of_row) in enumerate(zip(rows, mask, strict=True))
            ]
        for number, row in enumerate(rows):
            self._check(row, number)
        return rows

    def _row(self, given: Any, number: int) -> NDArray[Any]:
        """One row of the main input in the program's type; `InputError` for ids that are none."""
        row = np.asarray(given)
        if np.issubdtype(self._main.dtype, np.integer):
            if row.size and not np.issubdtype(row.dtype, np.integer):
                raise InputError(
                    f"row {number} of {self._main.name} must hold whole numbers, and is of type {row.dtype}"
                )
            odd = row[(row < 0) | (row >= self._ids)] if self._ids is not None else row[row < 0]
            if odd.size:
                known = f", the model knows 0 to {self._ids - 1}" if self._ids is not None else ""
                raise InputError(
                    f"row {number} of {self._main.name} holds the id {odd[0]}{known}: is this the tokenizer of this model?"
                )
        if row.dtype.kind == "c":  # a cast would leave the imaginary parts out
            raise InputError(f"row {number} of {self._main.name} must hold real numbers, and is of type {row.dtype}")
        try:
            return row.astype(self._main.dtype, copy=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"row {number} of {self._main.name} must hold numbers: {error}") from error

    def _check(self, row: NDArray[Any], number: int) -> None:
        wanted = self._main.shape[1:]
        fits = row.ndim == len(wanted) and all(
            isinstance(size, str) or size == given for size, given in zip(wanted, row.shape, strict=True)
        )
        if not fits:
            raise InputError(
                f"row {number} of {self._main.name} has the shape {list(row.shape)}, the program takes "
                f"[{', '.join(map(str, wanted))}]; give what the model's own processor returns"
            )
        if not np.isfinite(row).all():
            raise InputError(f"row {number} of {self._main.name} holds numbers that are not finite")


def _without_padding(row: NDArray[Any], mask: NDArray[Any], number: int) -> NDArray[Any]:
    if mask.ndim != 1 or len(mask) != len(row) or not np.isin(mask, (0, 1)).all():
        raise InputError(f"{_MASK}, row {number}, must hold 1 or 0 for each of the {len(row)} places of its row")
    count = int(mask.sum())
    if not count or not mask[:count].all():
        raise InputError(f"{_MASK}, row {number}, must be 1 from the start and 0 behind the end, and not 0 as a whole")
    return row[:count]
