"""The way from an export to a session on the stand-in SDK, as the framework goes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qaic_backend import QaicOptions, QaicRuntimeOptions
from qaic_backend.hooks import QaicHooks
from qeff_framework.contracts import CompiledModel, ExecuteRequest, ExportedModel
from qeff_framework.shapes import CausalLMShapes, Seq2SeqLMShapes
from tests.plugins.programs import compile_with

HOOKS = QaicHooks()

#: The sizes of each task, and those that a test need not give.
_SIZES: dict[str, tuple[Any, dict[str, Any]]] = {
    "causal-lm": (CausalLMShapes, {"prefill_seq_len": 4, "ctx_len": 24}),
    "seq2seq-lm": (Seq2SeqLMShapes, {}),
}


def compile_program(
    exported: ExportedModel,
    directory: Path,
    *,
    dry_run: bool = False,
    **options: Any,
) -> CompiledModel:
    """Transforms and compiles, then reads the result back from disk. `options` are sizes of the task and of the backend.

    A causal LM has prefill steps of 4 tokens and a context of 24, unless others are given.
    """
    schema, defaults = _SIZES[exported.task]
    names = {field.name for field in dataclasses.fields(schema)}
    given = {name: options.pop(name) for name in list(options) if name in names}
    sizes = schema(**{**defaults, **given})
    chosen = QaicOptions(**{"num_cores": 2, **options})
    return compile_with(HOOKS, chosen, exported, directory, sizes.specializations(), dry_run=dry_run)


def open_session(compiled: CompiledModel, **options: Any) -> Any:
    return HOOKS.execute(ExecuteRequest(compiled=compiled, options=QaicRuntimeOptions(**options)))


def continuation(session: Any, prompts: Sequence[Sequence[int]], *, chunk: int, new_tokens: int) -> list[list[int]]:
    """Greedy continuation: prefill in chunks with padding on the right, then one token a step."""
    chosen = [0] * len(prompts)
    for start in range(0, max(map(len, prompts)), chunk):
        input_ids = np.zeros((len(prompts), chunk), np.int64)
        position_ids = np.full((len(prompts), chunk), -1)
        pieces = [prompt[start : start + chunk] for prompt in prompts]
        for row, piece in enumerate(pieces):
            input_ids[row, : len(piece)] = piece
            position_ids[row, : len(piece)] = range(start, start + len(piece))
        logits = session.run({"input_ids": input_ids, "position_ids": position_ids})["logits"]
        assert np.isfinite(logits).all()
        chosen = [int(logits[row, 0].argmax()) if piece else chosen[row] for row, piece in enumerate(pieces)]
    results = [[token] for token in chosen]
    for step in range(new_tokens - 1):
        feeds = {
            "input_ids": np.array([[row[-1]] for row in results]),
            "position_ids": np.array([[len(prompt) + step] for prompt in prompts]),
        }
        for row, token in zip(results, session.run(feeds)["logits"][:, 0].argmax(axis=1), strict=True):
            row.append(int(token))
    return results
