"""The way from a graph or an export to a session, as the framework goes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir

from ort_sim_backend import OrtSimOptions, OrtSimRuntimeOptions
from ort_sim_backend.hooks import OrtSimHooks
from ort_sim_backend.session import OrtSession
from qeff_framework.plugin_api import (
    CompiledModel,
    ExecuteRequest,
    ExportedModel,
    Specialization,
    StateSpec,
    TensorSpec,
)
from tests.lowering.graphs import STATES
from tests.plugins.programs import compile_with

HOOKS = OrtSimHooks()
CACHES = tuple(StateSpec(input=name, output=output) for name, output in STATES.items())


def specializations(*, batch: int, ctx_len: int, chunks: Sequence[int]) -> tuple[Specialization, ...]:
    """One specialization for each chunk length."""
    return tuple(
        Specialization(name=f"s{chunk}", dims={"batch_size": batch, "seq_len": chunk, "ctx_len": ctx_len})
        for chunk in chunks
    )


def export(
    model: onnx_ir.Model, directory: Path, *, task: str = "causal-lm", states: Sequence[StateSpec] = CACHES
) -> ExportedModel:
    """Writes `model` as an export."""
    directory.mkdir(parents=True)
    onnx_ir.save(model, directory / "model.onnx", external_data="model.onnx.data")
    return ExportedModel(
        directory=directory,
        task=task,
        model_file="model.onnx",
        inputs=tuple(_spec(value) for value in model.graph.inputs),
        outputs=tuple(_spec(value) for value in model.graph.outputs),
        states=tuple(states),
    )


def _spec(value: onnx_ir.Value) -> TensorSpec:
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(name=value.name, dtype=str(value.dtype.numpy()), shape=shape)


def compile_program(
    exported: ExportedModel,
    directory: Path,
    shapes: tuple[Specialization, ...],
    *,
    lower: bool = True,
    **options: object,
) -> CompiledModel:
    """Transforms and compiles, then reads the result back from disk. Without `lower` the dialect's bodies do the work."""
    return compile_with(HOOKS, OrtSimOptions(**options), exported, directory, shapes, lower=lower)


def execute(compiled: CompiledModel, **options: object) -> OrtSession:
    """Opens a session."""
    session = HOOKS.execute(ExecuteRequest(compiled=compiled, options=OrtSimRuntimeOptions(**options)))
    assert isinstance(session, OrtSession)
    return session
