"""The way from an export to a program for target aic, as the framework goes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir

from qeff_framework.contracts import (
    CompiledModel,
    CompileRequest,
    ExecuteRequest,
    ExportedModel,
    Specialization,
    TransformRequest,
)
from qeff_framework.shapes import CausalLMShapes
from qnn_backend import QnnOptions, QnnRuntimeOptions
from qnn_backend.hooks import QnnHooks

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
    directory.mkdir(parents=True)
    chosen = QnnOptions(**{"target": "aic", "num_cores": 2, **options})
    specializations = tuple(shapes or CausalLMShapes(**SIZES).specializations())
    model = onnx_ir.load(exported.model_path)
    asked = TransformRequest(stage="onnx", task=exported.task, options=chosen, specializations=specializations)
    applied = tuple(f"{one.name}@{one.version}" for one in HOOKS.transform(asked) if one(model))
    HOOKS.compile(
        CompileRequest(
            exported=exported,
            model=model,
            transforms=applied,
            specializations=specializations,
            options=chosen,
            output_dir=directory,
            dry_run=dry_run,
        )
    ).save()
    return CompiledModel.load(directory)


def open_session(compiled: CompiledModel, **options: Any) -> Any:
    return HOOKS.execute(ExecuteRequest(compiled=compiled, options=QnnRuntimeOptions(**options)))
