"""The way from an export to a program for target aic, as the framework goes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qeff_framework.contracts import (
    CompiledModel,
    ExecuteRequest,
    ExportedModel,
    Specialization,
)
from qeff_framework.shapes import CausalLMShapes
from qnn_backend import QnnOptions, QnnRuntimeOptions
from qnn_backend.hooks import QnnHooks
from tests.plugins.programs import compile_with

HOOKS = QnnHooks()
SIZES = {"batch_size": 1, "prefill_seq_len": 4, "ctx_len": 24}


def compile_program(
    exported: ExportedModel,
    directory: Path,
    *,
    shapes: Sequence[Specialization] | None = None,
    dry_run: bool = False,
    **options: Any,
) -> CompiledModel:
    """Transforms and compiles, then reads the result back from disk."""
    chosen = QnnOptions(**{"target": "aic", "num_cores": 2, **options})
    specializations = shapes or CausalLMShapes(**SIZES).specializations()
    return compile_with(HOOKS, chosen, exported, directory, specializations, dry_run=dry_run)


def open_session(compiled: CompiledModel, **options: Any) -> Any:
    return HOOKS.execute(ExecuteRequest(compiled=compiled, options=QnnRuntimeOptions(**options)))
