"""What the compiler would refuse after minutes or hours of work, refused before it is started."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import onnx_ir as ir

from qeff_framework.plugin_api import CompileError, ExportedModel, Specialization
from qeff_framework.sessions import check_specializations, resolve_shape

RETAINED_SUFFIX = "_RetainedState"


def check_program(exported: ExportedModel, specializations: Sequence[Specialization]) -> None:
    """Raises `CompileError` with the first thing that cannot work."""
    check_specializations(exported, specializations, backend="qaic")
    _check_state_names(exported)
    for first, second in itertools.combinations(specializations, 2):
        _check_distinct(exported, first, second)
    if len(specializations) > 1 and not _telling_inputs(exported, specializations):
        names = ", ".join(item.name for item in specializations)
        raise CompileError(
            f"no single input has a different shape in each of the specializations {names}; the device tells them apart by one "
            "input. Choose other lengths"
        )


def check_operators(model: ir.Model) -> None:
    """Raises `CompileError` for loops, which are not among the operators that the compiler is known to take.

    Those of state-space and linear-attention models have been unrolled by the lowering.
    """
    loops = sorted({node.name or node.op_type for node in model.graph.all_nodes() if node.op_type in ("Scan", "Loop")})
    if loops:
        raise CompileError(
            f"the model has {len(loops)} loops that cannot be unrolled ({loops[0]} first), and the compiler has no operator for "
            "loops: it cannot be compiled for qaic; use ort_sim"
        )


def _check_state_names(exported: ExportedModel) -> None:
    for state in exported.states:
        if state.output != state.input + RETAINED_SUFFIX:
            raise CompileError(
                f"the retained state {state.input} has the output {state.output}; the compiler pairs it only with "
                f"{state.input}{RETAINED_SUFFIX}"
            )


def _check_distinct(exported: ExportedModel, first: Specialization, second: Specialization) -> None:
    if all(resolve_shape(spec, first.dims) == resolve_shape(spec, second.dims) for spec in exported.inputs):
        raise CompileError(
            f"the specializations '{first.name}' and '{second.name}' give every input the same shape, so the device could "
            "not tell them apart; leave one out"
        )


def _telling_inputs(exported: ExportedModel, specializations: Sequence[Specialization]) -> list[str]:
    return [
        spec.name
        for spec in exported.inputs
        if len({resolve_shape(spec, item.dims) for item in specializations}) == len(specializations)
    ]
