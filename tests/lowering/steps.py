"""Random sequences of steps over one cache: chunks, padding anywhere, idle rows, rows at different positions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.lowering.graphs import HEAD_DIM, KEY_HEADS, QUERY_HEADS, Arrays


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """`steps` holds ``position_ids [B, S]`` of each step; S may differ from step to step."""

    capacity: int
    steps: tuple[NDArray[np.int64], ...]
    seed: int

    @property
    def batch(self) -> int:
        """Rows of every step."""
        return int(self.steps[0].shape[0])

    def with_padding_behind(self) -> Sequence:
        """The same tokens, in front of the padding of their row."""
        orders = [np.argsort(step < 0, axis=1, kind="stable") for step in self.steps]
        steps = [np.take_along_axis(step, order, axis=1) for step, order in zip(self.steps, orders, strict=True)]
        return replace(self, steps=tuple(steps))

    def states(self) -> Arrays:
        """Caches full of old content, so that a slot that changes by mistake is seen. Slots that no step sees are NaN."""
        random = np.random.default_rng(self.seed)
        shape = (self.batch, KEY_HEADS, self.capacity, HEAD_DIM)
        last = np.max([step.max(axis=1) for step in self.steps], axis=0)
        unseen = np.arange(self.capacity) > np.maximum(last, 0)[:, None]
        poison = unseen[:, None, :, None]
        return {name: np.where(poison, np.float32(np.nan), _draw(random, shape)) for name in ("past_key", "past_value")}

    def feeds(self, number: int) -> Arrays:
        """Inputs of one step. Keys and values of padding are infinite."""
        random = np.random.default_rng((self.seed, number))
        batch, seq = self.steps[number].shape
        heads = {"query": QUERY_HEADS, "key": KEY_HEADS, "value": KEY_HEADS}
        states = {name: _draw(random, (batch, count, seq, HEAD_DIM)) for name, count in heads.items()}
        is_padding = (self.steps[number] < 0)[:, None, :, None]
        for name in ("key", "value"):
            states[name] = np.where(is_padding, np.float32(np.inf), states[name])
        return {"position_ids": self.steps[number], **states}


def _draw(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return random.standard_normal(shape).astype(np.float32)


@st.composite
def sequences(draw: st.DrawFn) -> Sequence:
    """Every row goes on where it stopped, or starts again somewhere; any tokens of a chunk are padding."""
    capacity = draw(st.integers(1, 9))
    batch = draw(st.integers(1, 3))
    next_position = [draw(st.integers(0, capacity)) for _ in range(batch)]
    steps = []
    for _ in range(draw(st.integers(1, 5))):
        seq = draw(st.one_of(st.just(1), st.integers(1, capacity)))
        position_ids = np.full((batch, seq), -1, dtype=np.int64)
        for row in range(batch):
            if draw(st.integers(0, 5)) == 0:
                next_position[row] = draw(st.integers(0, capacity))
            most = min(seq, capacity - next_position[row])
            tokens = sorted(draw(st.sets(st.integers(0, seq - 1), max_size=most)))
            position_ids[row, tokens] = np.arange(next_position[row], next_position[row] + len(tokens))
            next_position[row] += len(tokens)
        steps.append(position_ids)
    return Sequence(capacity=capacity, steps=tuple(steps), seed=draw(st.integers(0, 2**16)))


@st.composite
def appended_texts(draw: st.DrawFn) -> Sequence:
    """Every row begins at 0 and goes on where it stopped, or begins anew; padding stands behind its tokens."""
    capacity, batch = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    lengths, steps = [0] * batch, []
    for _ in range(draw(st.integers(1, 6))):
        seq = draw(st.one_of(st.just(1), st.integers(1, capacity)))
        position_ids = np.full((batch, seq), -1, dtype=np.int64)
        for row in range(batch):
            if draw(st.integers(0, 5)) == 0:
                lengths[row] = 0
            count = draw(st.integers(0, min(seq, capacity - lengths[row])))
            position_ids[row, :count] = np.arange(lengths[row], lengths[row] + count)
            lengths[row] += count
        steps.append(position_ids)
    return Sequence(capacity=capacity, steps=tuple(steps), seed=draw(st.integers(0, 2**16)))
