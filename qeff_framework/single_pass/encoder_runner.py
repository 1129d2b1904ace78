"""Running encoders: any number of inputs of any length over programs of fixed shapes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.contracts import ExecutionSession
from qeff_framework.errors import ExecutionError, InputError
from qeff_framework.session_use import use_of
from qeff_framework.single_pass.numbers import refuse_broken
from qeff_framework.tasks import task_spec
from qeff_framework.tokenization.inputs import (
    check_mask,
    check_same_shape,
    integer_rows,
    right_padded,
    warn_about_padding,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

#: May be given although the graph does not take it: tokenizers return it for models that have no use for it.
_OPTIONAL = "token_type_ids"


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """All inputs right-padded to the longest row, ``[N, S]`` each; `mask` is 1 where there is a token."""

    arrays: Mapping[str, NDArray[np.int64]]
    mask: NDArray[np.int64]
    #: Columns up to the last one that holds a token in any row.
    used: int


class EncoderRunner:
    """Feeds tokenizer output to an encoder and returns its outputs without padding.

    `pad_token_id` fills places that the attention mask hides; by default the one in the program's metadata, else 0.
    """

    def __init__(self, session: ExecutionSession, *, pad_token_id: int | None = None) -> None:
        compiled = session.compiled
        if task_spec(compiled.task).generates_text:
            raise InputError(f"the program was compiled for {compiled.task}; use TextGenerator")
        self.session = session
        self._use = use_of(session)
        self._specs = {spec.name: spec for spec in compiled.inputs}
        #: By name: whether the output has a value for each token.
        self._per_token = {spec.name: spec.shape[1:2] == ("seq_len",) for spec in compiled.outputs}
        #: Compiled sizes as (seq_len, batch_size), smallest first.
        self._sizes = sorted((entry.dims["seq_len"], entry.dims["batch_size"]) for entry in compiled.specializations)
        stated = pad_token_id if pad_token_id is not None else compiled.metadata.get("pad_token_id")
        self._stated_pad = None if stated is None else int(stated)
        self._pad = self._stated_pad or 0
        #: By input: how many ids the model has rows for, as far as it is known.
        self._counts = {
            name: compiled.metadata.get(count)
            for name, count in (("input_ids", "vocab_size"), (_OPTIONAL, "type_vocab_size"))
        }
        self._warned = False

    def __call__(self, inputs: Mapping[str, Any]) -> NDArray[Any]:
        """The program's first output; see `outputs`."""
        return next(iter(self.outputs(inputs).values()))

    def outputs(self, inputs: Mapping[str, Any]) -> Mapping[str, NDArray[Any]]:
        """The program's outputs by name for ``input_ids``, optional ``attention_mask`` and ``token_type_ids``.

        Lists (also of unequal lengths), arrays or tensors ``[N, S]`` or ``[S]`` are taken. A result is ``[N, H]`` for
        pooled outputs and class scores, ``[N, S, H]`` or ``[N, S]`` for outputs per token, with S as given (the longest row of
        lists); places behind the last token of the whole batch are 0 there. Without a mask every id is text, as in Transformers,
        and padding ids at an end of a row are worth a warning. Raises `InputError` for what the program cannot take, and
        `ExecutionError` where the result of a token holds NaN.
        """
        batch = self._read(inputs)
        rows, width = batch.mask.shape
        seq_len, batch_size = self._choose(rows, batch.used)
        if "attention_mask" not in self._specs and (seq_len > batch.used or not batch.mask.all()):
            raise InputError(
                f"the program takes no attention_mask, so padding would change its result; give rows of {seq_len} tokens, "
                "padding tokens among them only if the model was trained with such"
            )
        feed = {name: np.zeros((batch_size, seq_len), dtype=self._specs[name].dtype) for name in batch.arrays}
        results: dict[str, NDArray[Any]] = {}
        for start in range(0, rows, batch_size):
            count = min(batch_size, rows - start)
            with self._use.turn:
                for name, output in self._run(feed, batch, start, count).items():
                    if name not in results:
                        inner = (width, *output.shape[2:]) if self._per_token[name] else output.shape[1:]
                        results[name] = np.zeros((rows, *inner), dtype=output.dtype)
                    if self._per_token[name]:
                        results[name][start : start + count, : batch.used] = output[:count, : batch.used]
                    else:
                        results[name][start : start + count] = output[:count]
        visible = batch.mask == 1
        refuse_broken(results, {name: visible for name in results if self._per_token[name]})
        return results

    def _run(self, feed: Mapping[str, NDArray[Any]], batch: _Batch, start: int, count: int) -> dict[str, NDArray[Any]]:
        """Runs rows `start` and following; the arrays are the session's, valid until its next call."""
        for name, array in feed.items():
            array.fill(self._pad if name == "input_ids" else 0)
            array[:count, : batch.used] = batch.arrays[name][start : start + count, : batch.used]
            # Unused rows repeat a real one: a row that is hidden as a whole makes attention divide by zero.
            array[count:] = array[0]
        outputs = self.session.run(feed)
        missing = [name for name in self._per_token if name not in outputs]
        if missing:
            raise ExecutionError(f"the program returned {', '.join(sorted(outputs))}, but no {', '.join(missing)}")
        return {name: np.asarray(outputs[name]) for name in self._per_token}

    def _choose(self, rows: int, used: int) -> tuple[int, int]:
        """The smallest compiled length that fits; for that length the smallest batch that fits, else the largest."""
        lengths = sorted({seq_len for seq_len, _ in self._sizes})
        fitting = [seq_len for seq_len in lengths if seq_len >= used]
        if not fitting:
            raise InputError(
                f"the longest input has {used} tokens, the program was compiled for seq_len "
                f"{', '.join(map(str, lengths))}; truncate it (truncation=True, max_length={lengths[-1]} in the tokenizer) "
                f"or compile with seq_len={used}"
            )
        batches = [batch for seq_len, batch in self._sizes if seq_len == fitting[0]]
        return fitting[0], next((batch for batch in batches if batch >= rows), batches[-1])

    def _read(self, inputs: Mapping[str, Any]) -> _Batch:
        if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
            given = (
                f"a mapping with {', '.join(map(str, inputs))}"
                if isinstance(inputs, Mapping)
                else type(inputs).__name__
            )
            raise InputError(
                f"an encoder takes what a tokenizer returns: a mapping with input_ids and attention_mask; got {given}"
            )
        self._check_names(inputs)
        rows = {name: integer_rows(value, name) for name, value in inputs.items() if value is not None}
        ids = rows["input_ids"]
        if not ids:
            raise InputError("no inputs were given; give at least one row of input_ids")
        for name, values in rows.items():
            check_same_shape(name, values, ids)
        if "attention_mask" in rows:
            check_mask(rows["attention_mask"], ids)
        else:
            warn_about_padding(ids, self._stated_pad, self._warn)
        width = max(map(len, ids))
        mask = right_padded(rows.get("attention_mask", [[1] * len(row) for row in ids]), width, 0)
        empty = np.flatnonzero(mask.sum(axis=1) == 0)
        if empty.size:
            raise InputError(f"row {empty[0]} of the inputs has no tokens; give it some text")
        arrays = {
            name: right_padded(rows[name], width, self._pad if name == "input_ids" else 0)
            for name in self._specs
            if name in rows
        }
        if _OPTIONAL in rows and _OPTIONAL not in arrays and self._counts[_OPTIONAL]:
            # A model with one type has no input for it; another type is no less unknown to it.
            self._known(_OPTIONAL, right_padded(rows[_OPTIONAL], width, 0), mask)
        for name in arrays.keys() & self._counts.keys():
            arrays[name] = self._known(name, arrays[name], mask)
        if "attention_mask" in self._specs:
            arrays["attention_mask"] = mask
        if _OPTIONAL in self._specs and _OPTIONAL not in arrays:
            arrays[_OPTIONAL] = np.zeros_like(mask)
        return _Batch(arrays=arrays, mask=mask, used=int(np.flatnonzero(mask.any(axis=0))[-1]) + 1)

    def _known(self, name: str, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.int64]:
        """The ids, with padding for those without a row that the mask hides.

        Raises `InputError` for one in a text: a device reads another row in its place, an id of -1 the last one.
        """
        count = self._counts[name]
        odd = (ids < 0) | (ids >= count if isinstance(count, int) else False)
        visible = np.argwhere(odd & (mask == 1))
        if visible.size:
            row, place = visible[0]
            known = f", the model knows 0 to {count - 1}" if isinstance(count, int) else ""
            what = "token id" if name == "input_ids" else "token type"
            raise InputError(
                f"row {row} of the inputs holds the {what} {ids[row, place]}{known}: is this the tokenizer of this model?"
            )
        return np.where(odd, self._pad if name == "input_ids" else 0, ids)

    def _warn(self, message: str) -> None:
        """Logs a warning, the first time only."""
        if not self._warned:
            self._warned = True
            logger.warning("%s", message)

    def _check_names(self, inputs: Mapping[str, Any]) -> None:
        given = {name for name, value in inputs.items() if value is not None}
        known = {*self._specs, "input_ids", "attention_mask", _OPTIONAL}
        unknown, missing = sorted(given - known), sorted(set(self._specs) - given - {"attention_mask", _OPTIONAL})
        if unknown:
            raise InputError(
                f"the program does not take {', '.join(unknown)}, only {', '.join(sorted(self._specs))}; leave the others out"
            )
        if missing:
            raise InputError(f"the program also needs {', '.join(missing)}")
