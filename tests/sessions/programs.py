"""A compiled model in memory, and a session of it that adds numbers on the host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qeff_framework.contracts import CompiledModel, Specialization, StateSpec, TensorSpec
from qeff_framework.sessions import BaseSession

CTX_LEN, CACHE_ROWS = 8, 3


def program(*, states: bool = True) -> CompiledModel:
    """A step of 4 tokens and one of 1 token, two rows, over a cache of 8 slots and 3 rows."""
    dims = {"batch_size": 2, "ctx_len": CTX_LEN, "full_batch_size": CACHE_ROWS}
    sizes = (("prefill", 4), ("decode", 1), ("same as decode", 1))
    tokens = ("batch_size", "seq_len")
    cache = ("full_batch_size", "ctx_len")
    return CompiledModel(
        directory=Path("nowhere"),
        backend="adder",
        task="causal-lm",
        specializations=tuple(Specialization(name=name, dims={**dims, "seq_len": length}) for name, length in sizes),
        inputs=(
            TensorSpec(name="input_ids", dtype="int64", shape=tokens),
            TensorSpec(name="position_ids", dtype="int64", shape=tokens),
            TensorSpec(name="batch_index", dtype="int64", shape=("batch_size", 1)),
            *((TensorSpec(name="past", dtype="int64", shape=cache),) if states else ()),
        ),
        outputs=(TensorSpec(name="total", dtype="int64", shape=("batch_size",)),),
        states=(StateSpec(input="past", output="past_RetainedState"),) if states else (),
    )


def feeds(positions: Any, rows: Any = (0, 1)) -> dict[str, np.ndarray]:
    """Inputs of a step; each token is its position plus one."""
    position_ids = np.array(positions)
    return {"input_ids": position_ids + 1, "position_ids": position_ids, "batch_index": np.array(rows)[:, None]}


class Adder(BaseSession):
    """Keeps tokens in its cache and returns the sum of each row's."""

    def __init__(self, compiled: CompiledModel) -> None:
        super().__init__(compiled)
        self.info = {"device": "CPU"}
        self.steps: list[str] = []
        self.releases = 0
        #: Raised in the next step, after the cache was written.
        self.failure: BaseException | None = None

    def run_step(self, specialization: Specialization, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        self.steps.append(specialization.name)
        past, rows = self.states.get("past"), inputs["batch_index"].ravel()
        for row, ids, positions in zip(rows, inputs["input_ids"], inputs["position_ids"], strict=True):
            if past is not None:
                past[row, positions[positions >= 0]] = ids[positions >= 0]
        if self.failure is not None:
            raise self.failure
        return {"total": inputs["input_ids"].sum(axis=1) if past is None else past[rows].sum(axis=1)}

    def release(self) -> None:
        self.releases += 1
