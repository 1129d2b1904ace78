"""The host side of the graph contract in its plainest form: drives an ONNX Runtime session of a portable causal LM.

Every step copies the caches out and in. It is the reference for what a session must compute, not for how fast.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from qeff_framework.contracts import ExportedModel

Tokens = Sequence[Sequence[int]]


class PortableLoop:
    """A portable causal LM with its caches, for a fixed batch."""

    def __init__(self, exported: ExportedModel, *, batch_size: int, ctx_len: int, left_over: float = 0.0) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(str(exported.model_path), options, providers=["CPUExecutionProvider"])
        self.exported = exported
        dims = {"batch_size": batch_size, "ctx_len": ctx_len}
        names = {state.input for state in exported.states}
        self.states = {
            spec.name: np.full([dims.get(str(dim), dim) for dim in spec.shape], left_over, dtype=spec.dtype)
            for spec in exported.inputs
            if spec.name in names
        }

    def step(self, input_ids: NDArray[np.int64], position_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Runs one step and keeps the new caches; returns the logits ``[B, V]`` of each row's last token."""
        outputs = self.session.run(
            ["logits", *(state.output for state in self.exported.states)],
            {"input_ids": input_ids, "position_ids": position_ids, **self.states},
        )
        for state, value in zip(self.exported.states, outputs[1:], strict=True):
            self.states[state.input] = value
        logits: NDArray[np.float32] = outputs[0][:, 0, :]
        return logits


def greedy(
    exported: ExportedModel, prompts: Tokens, *, new_tokens: int, chunk: int, ctx_len: int, left_over: float = 0.0
) -> list[list[int]]:
    """Greedy continuation of `prompts`: prefill in chunks of `chunk` tokens, padded with position -1, then one token a step.

    `left_over` is what every state holds before the first step.
    """
    batch = len(prompts)
    loop = PortableLoop(exported, batch_size=batch, ctx_len=ctx_len, left_over=left_over)
    chosen = np.zeros(batch, dtype=np.int64)
    for start in range(0, max(len(prompt) for prompt in prompts), chunk):
        input_ids = np.zeros((batch, chunk), dtype=np.int64)
        position_ids = np.full((batch, chunk), -1, dtype=np.int64)
        for row, prompt in enumerate(prompts):
            piece = prompt[start : start + chunk]
            input_ids[row, : len(piece)] = piece
            position_ids[row, : len(piece)] = np.arange(start, start + len(piece))
        logits = loop.step(input_ids, position_ids)
        for row, prompt in enumerate(prompts):
            if start < len(prompt):
                chosen[row] = logits[row].argmax()
    results = [[int(token)] for token in chosen]
    lengths = np.array([len(prompt) for prompt in prompts])
    for step in range(new_tokens - 1):
        position_ids = (lengths + step)[:, None].astype(np.int64)
        chosen = loop.step(chosen[:, None], position_ids).argmax(axis=1)
        for row, token in enumerate(chosen):
            results[row].append(int(token))
    return results
