"""From an export to a program, as the framework goes it, for any backend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir

from qeff_framework.contracts import CompiledModel, CompileRequest, ExportedModel, Specialization, TransformRequest


def compile_with(
    hooks: Any,
    options: Any,
    exported: ExportedModel,
    directory: Path,
    specializations: Sequence[Specialization],
    *,
    lower: bool = True,
    dry_run: bool = False,
) -> CompiledModel:
    """Transforms and compiles, then reads the result back from disk. Without `lower` no transform is applied."""
    directory.mkdir(parents=True)
    model, shapes = onnx_ir.load(exported.model_path), tuple(specializations)
    asked = TransformRequest(stage="onnx", task=exported.task, options=options, specializations=shapes)
    applied = [f"{one.name}@{one.version}" for one in hooks.transform(asked) if one(model)] if lower else []
    hooks.compile(
        CompileRequest(
            exported=exported,
            model=model,
            transforms=tuple(applied),
            specializations=shapes,
            options=options,
            output_dir=directory,
            dry_run=dry_run,
        )
    ).save()
    return CompiledModel.load(directory)
