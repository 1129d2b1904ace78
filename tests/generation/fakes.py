"""Sessions without a backend, which check every step against the contract and compute from what was written to the cache."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qeff_framework.contracts import (
    SAMPLER_INPUTS,
    TOKEN_BITMASKS,
    CompiledModel,
    Specialization,
    StateSpec,
    TensorSpec,
)
from qeff_framework.shapes import CausalLMShapes

VOCAB = 17
_UNWRITTEN = -7
_CANDIDATES = 8
_SAMPLER_SHAPES = {"last_accepted_output_tokens": "seq_len", "random_numbers": _CANDIDATES}
_SAMPLER_DTYPES = {"last_accepted_output_tokens": "int64", "top_ks": "int32"}


def next_logits(history: Sequence[int], vocab: int = VOCAB) -> np.ndarray:
    """The "model": logits that depend on every token of the history and on their order."""
    seed = zlib.crc32(np.asarray(history, dtype=np.int64).tobytes())
    mixed = (np.arange(1, vocab + 1, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(seed)) * np.uint64(0x9E3779B1)
    return ((mixed >> np.uint64(7)) % np.uint64(100_003)).astype(np.float32) / 1000


def worse(share: int) -> Callable[[Sequence[int]], np.ndarray]:
    """`next_logits`, which gives another token for `share` of ten texts."""

    def model(history: Sequence[int]) -> np.ndarray:
        is_wrong = zlib.crc32(bytes(history)) % 10 < share
        return next_logits([*history, 1] if is_wrong else history)

    return model


def expected_tokens(prompt: Sequence[int], new_tokens: int, eos: Sequence[int] = (), vocab: int = VOCAB) -> list[int]:
    """What greedy decoding of one prompt gives, without chunks, batches or a cache."""
    history, generated = list(prompt), []
    while len(generated) < new_tokens:
        token = int(np.argmax(next_logits(history, vocab)))
        history.append(token)
        generated.append(token)
        if token in eos:
            break
    return generated


def causal_lm(
    batch_size: int, prefill: int | tuple[int, ...], ctx_len: int, vocab: int = VOCAB, directory: Path = Path()
) -> CompiledModel:
    sizes = {"batch_size": batch_size, "ctx_len": ctx_len}
    prefills = (prefill,) if isinstance(prefill, int) else prefill
    lengths = {**{f"prefill_{length}": length for length in prefills if length > 1}, "decode": 1}
    cache = TensorSpec(name="past_key.0", dtype="int64", shape=("batch_size", "ctx_len"))
    return CompiledModel(
        directory=directory,
        backend="fake",
        task="causal-lm",
        specializations=tuple(Specialization(name=n, dims={**sizes, "seq_len": s}) for n, s in lengths.items()),
        inputs=(
            TensorSpec(name="input_ids", dtype="int64", shape=("batch_size", "seq_len")),
            TensorSpec(name="position_ids", dtype="int64", shape=("batch_size", "seq_len")),
            cache,
        ),
        outputs=(
            TensorSpec(name="logits", dtype="float32", shape=("batch_size", 1, vocab)),
            TensorSpec(name="past_key.0_RetainedState", dtype="int64", shape=cache.shape),
        ),
        states=(StateSpec(input="past_key.0", output="past_key.0_RetainedState"),),
    )


class FakeCausalLM:
    """A program whose cache holds the token ids themselves."""

    def __init__(
        self, batch_size: int = 1, prefill: int | tuple[int, ...] = 4, ctx_len: int = 32, vocab: int = VOCAB
    ) -> None:
        self.compiled = causal_lm(batch_size, prefill, ctx_len, vocab)
        self.info: Mapping[str, str] = {"device": "none"}
        self.shapes = {(batch_size, entry.dims["seq_len"]) for entry in self.compiled.specializations}
        self.cache = np.zeros((batch_size, ctx_len), dtype=np.int64)
        # One array for all steps, as a device's output buffer: whoever keeps a reference sees it change.
        self.logits = np.zeros((batch_size, 1, vocab), dtype=np.float32)
        self.steps: list[dict[str, np.ndarray]] = []
        #: Raised at the step of this number, counted from 0.
        self.fail_at: tuple[int, BaseException] | None = None
        self.reset()

    def model(self, history: Sequence[int]) -> np.ndarray:
        return next_logits(history, self.logits.shape[-1])

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        ids, positions = inputs["input_ids"], inputs["position_ids"]
        assert set(inputs) == {"input_ids", "position_ids"}
        assert ids.shape == positions.shape
        assert ids.shape in self.shapes, f"{ids.shape} was not compiled"
        assert ids.dtype == positions.dtype == np.int64
        assert ids.min() >= 0
        assert ids.max() < self.logits.shape[-1]
        if self.fail_at is not None and len(self.steps) == self.fail_at[0]:
            raise self.fail_at[1]
        self.steps.append({"input_ids": ids.copy(), "position_ids": positions.copy()})
        for row in range(ids.shape[0]):
            self._run_row(row, ids[row], positions[row])
        return {"logits": self.logits}

    def _run_row(self, row: int, ids: np.ndarray, positions: np.ndarray, place: int | None = None) -> None:
        place = row if place is None else place
        valid = positions >= 0
        count = int(valid.sum())
        assert valid[:count].all(), "padding must be on the right"
        if count == 0:
            self.logits[place, 0] = np.nan  # whoever looks at the logits of padding gets what it deserves
            return
        if positions[0] == 0:
            self.cache[row] = _UNWRITTEN  # a row that begins anew takes the place of an old one
        written = int((self.cache[row] != _UNWRITTEN).sum())
        assert positions[:count].tolist() == list(range(written, written + count)), "positions must follow each other"
        assert positions.max() < self.cache.shape[1], "written beyond the context"
        self.cache[row, positions[:count]] = ids[:count]
        self.logits[place, 0] = self.model(self.cache[row, : written + count].tolist())

    def reset(self) -> None:
        self.cache.fill(_UNWRITTEN)

    def close(self) -> None:
        return


class FakeContinuous(FakeCausalLM):
    """The same with a cache of `slots` rows, `batch_size` of which decode together, and prefill of one row at a time.

    With `contexts` the program has compute contexts: lengths of prefill and decode programs; with `fewer` decode programs and with
    `more` prefill programs of so many rows.
    """

    def __init__(
        self,
        batch_size: int,
        slots: int,
        prefill: int | tuple[int, ...] = 4,
        ctx_len: int = 32,
        contexts: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
        fewer: Sequence[int] = (),
        more: Sequence[int] = (),
        **options: int,
    ) -> None:
        super().__init__(slots, prefill, ctx_len, **options)
        sizes = CausalLMShapes(
            prefill_seq_len=prefill,
            ctx_len=ctx_len,
            full_batch_size=batch_size,
            kv_cache_batch_size=slots,
            comp_ctx_lengths_prefill=contexts[0],
            comp_ctx_lengths_decode=contexts[1],
        )
        extra = {"batch_index": ("batch_size", 1), "comp_ctx_lengths": ("comp_ctx_lengths",)}
        tokens, positions, cache = self.compiled.inputs
        inputs = [TensorSpec(name=name, dtype="int64", shape=extra[name]) for name in sizes.extra_inputs()]
        *prefills, decode = sizes.specializations()
        others = [
            Specialization(name=f"{entry.name}_{rows}_rows", dims={**entry.dims, "batch_size": rows})
            for entry, numbers in (*((prefill, more) for prefill in prefills), (decode, fewer))
            for rows in numbers
        ]
        self.compiled = replace(
            self.compiled,
            specializations=(*sizes.specializations(), *others),
            inputs=(tokens, positions, *inputs, replace(cache, shape=("full_batch_size", "ctx_len"))),
        )
        #: Shapes of tokens with the number of cache positions that are read.
        self.allowed = {
            (dims["batch_size"], dims["seq_len"], dims.get("comp_ctx_lengths", ctx_len))
            for dims in (entry.dims for entry in self.compiled.specializations)
        }
        self.all_logits = np.zeros((slots, 1, self.logits.shape[-1]), dtype=np.float32)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        ids, positions, index = inputs["input_ids"], inputs["position_ids"], inputs["batch_index"]
        states = {state.input for state in self.compiled.states}
        assert set(inputs) == {spec.name for spec in self.compiled.inputs} - states
        context = len(inputs.get("comp_ctx_lengths", range(self.cache.shape[1])))
        assert (*ids.shape, context) in self.allowed, f"{ids.shape} with {context} positions was not compiled"
        assert positions.max() < context, "a position is not read"
        assert index.shape == (ids.shape[0], 1)
        slots = index[:, 0].tolist()
        assert len(set(slots)) == len(slots), "two rows of a step have one slot"
        self.steps.append({name: array.copy() for name, array in inputs.items()})
        self.all_logits.fill(np.nan)
        for row, slot in enumerate(slots):
            first = int(positions[row, 0])
            if first >= 0:
                # A slot is used again, from the start or behind what the two prompts have in common.
                self.cache[slot, first:] = _UNWRITTEN
            self.logits = self.all_logits[row : row + 1]
            self._run_row(slot, ids[row], positions[row], place=0)
        return {"logits": self.all_logits[: len(slots)]}


class FakeSpeculative:
    """A speculative target. What is behind a row's last position stays in the cache, as on a device, and is not looked at."""

    def __init__(
        self,
        drafts: int | tuple[int, ...],
        *,
        rows: int = 1,
        slots: int | None = None,
        prefill: int = 8,
        ctx_len: int = 32,
        model: Callable[[Sequence[int]], np.ndarray] = next_logits,
    ) -> None:
        sizes = CausalLMShapes(
            prefill_seq_len=prefill,
            ctx_len=ctx_len,
            batch_size=1 if slots else rows,
            full_batch_size=rows if slots else None,
            kv_cache_batch_size=slots,
            num_speculative_tokens=drafts,
        )
        program = causal_lm(rows, prefill, ctx_len)
        shapes = {"batch_index": ("batch_size", 1), "num_logits_to_keep": ("num_logits_to_keep", 1)}
        extra = [TensorSpec(name=name, dtype="int64", shape=shapes[name]) for name in sizes.extra_inputs()]
        self.compiled = replace(
            program, specializations=sizes.specializations(), inputs=(*program.inputs[:2], *extra, program.inputs[2])
        )
        self.info: Mapping[str, str] = {}
        self.allowed = {
            (dims["batch_size"], dims["seq_len"], dims["num_logits_to_keep"])
            for dims in (entry.dims for entry in self.compiled.specializations)
        }
        self.model = model
        self.cache = np.zeros((slots or rows, ctx_len), dtype=np.int64)
        self.steps: list[dict[str, np.ndarray]] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        ids, positions = inputs["input_ids"], inputs["position_ids"]
        kept = inputs["num_logits_to_keep"].shape[0]
        assert (*ids.shape, kept) in self.allowed, f"{ids.shape} with {kept} logits was not compiled"
        self.steps.append({name: array.copy() for name, array in inputs.items()})
        slots = inputs["batch_index"][:, 0] if "batch_index" in inputs else np.arange(len(ids))
        assert len(set(slots)) == len(slots), "two rows of a step have one slot"
        logits = np.full((len(ids), kept, VOCAB), np.nan, dtype=np.float32)
        for row, slot in enumerate(slots):
            (places,) = np.nonzero(positions[row] >= 0)
            if places.size == 0:
                continue
            assert places.tolist() == list(range(len(places))), "padding must be on the right"
            where = positions[row, places]
            assert np.array_equal(where, np.arange(where[0], where[0] + len(where))), "positions must follow each other"
            self.cache[slot, where] = ids[row, places]
            for column, position in zip(range(kept - 1, -1, -1), where[::-1], strict=False):
                logits[row, column] = self.model(self.cache[slot, : position + 1].tolist())
        return {"logits": logits}

    def reset(self) -> None:
        self.cache.fill(_UNWRITTEN)

    def close(self) -> None:
        return


class FakeSampler(FakeCausalLM):
    """Chooses the most likely token itself, and keeps what else it was fed. `masks`: among those of ``token_bitmasks``."""

    def __init__(
        self,
        batch_size: int = 1,
        prefill: int | tuple[int, ...] = 4,
        ctx_len: int = 32,
        *,
        vocab: int = VOCAB,
        masks: bool = False,
    ) -> None:
        super().__init__(batch_size, prefill, ctx_len, vocab=vocab)
        more = [
            TensorSpec(
                name=name,
                dtype=_SAMPLER_DTYPES.get(name, "float32"),
                shape=("batch_size", _SAMPLER_SHAPES.get(name, 1)),
            )
            for name in SAMPLER_INPUTS
        ]
        tokens, positions, cache = self.compiled.inputs
        self.compiled = replace(self.compiled, inputs=(tokens, positions, *more, cache), metadata={"vocab_size": vocab})
        if masks:
            mask = TensorSpec(name=TOKEN_BITMASKS, dtype="bool", shape=("batch_size", vocab))
            self.compiled = replace(self.compiled, inputs=(*self.compiled.inputs, mask))
        self.fed: list[dict[str, np.ndarray]] = []
        self.answer: int | None = None

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        assert all(inputs[name].dtype == _SAMPLER_DTYPES.get(name, "float32") for name in SAMPLER_INPUTS)
        self.fed.append({name: array.copy() for name, array in inputs.items()})
        logits = super().run({name: inputs[name] for name in ("input_ids", "position_ids")})["logits"]
        logits = np.nan_to_num(logits)
        if TOKEN_BITMASKS in inputs:
            logits = np.where(inputs[TOKEN_BITMASKS][:, None], logits, -np.inf)
        tokens = logits.argmax(axis=-1)[:, :, None]
        return {"next_tokens": tokens if self.answer is None else np.full_like(tokens, self.answer)}


class FakeEncoder:
    """An encoder whose output of a place tells its token, its type and how many places the mask shows."""

    def __init__(
        self,
        seq_lens: Sequence[int] = (4, 8),
        batch_sizes: Sequence[int] = (2,),
        *,
        pooled: bool = False,
        inputs: Sequence[str] = ("input_ids", "attention_mask"),
        vocab_size: int = 100,
    ) -> None:
        output_shape = ("batch_size", 3) if pooled else ("batch_size", "seq_len", 3)
        self.compiled = CompiledModel(
            directory=Path(),
            backend="fake",
            task="encoder",
            specializations=tuple(
                Specialization(name=f"s{s}b{b}", dims={"batch_size": b, "seq_len": s})
                for s in seq_lens
                for b in batch_sizes
            ),
            inputs=tuple(TensorSpec(name=name, dtype="int32", shape=("batch_size", "seq_len")) for name in inputs),
            outputs=(TensorSpec(name="out", dtype="float32", shape=output_shape),),
            metadata={"pad_token_id": 9, "vocab_size": vocab_size, "type_vocab_size": 2},
        )
        self.info: Mapping[str, str] = {}
        self.pooled = pooled
        self.calls: list[dict[str, np.ndarray]] = []
        self.shapes = {(b, s) for s in seq_lens for b in batch_sizes}

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        assert set(inputs) == {spec.name for spec in self.compiled.inputs}
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", np.ones_like(ids))
        assert ids.shape in self.shapes, f"{ids.shape} was not compiled"
        assert all(array.shape == ids.shape and array.dtype == np.int32 for array in inputs.values())
        assert mask.any(axis=1).all(), "a row without any token"
        self.calls.append({name: array.copy() for name, array in inputs.items()})
        return {"out": encode(ids, mask, inputs.get("token_type_ids", np.zeros_like(ids)), pooled=self.pooled)}

    def reset(self) -> None:
        return

    def close(self) -> None:
        return


def encode(ids: np.ndarray, mask: np.ndarray, types: np.ndarray, *, pooled: bool) -> np.ndarray:
    """The numbers of `FakeEncoder` for ids, mask and types ``[N, S]``: sums over the visible places, or one per place."""
    visible = np.broadcast_to(mask.sum(axis=1, keepdims=True), ids.shape)
    places = np.stack([ids, types, visible], axis=-1).astype(np.float32)
    return (places * mask[..., None]).sum(axis=1) if pooled else places
