"""What the compiler would refuse after minutes or hours of work, refused before it is started."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qaic_backend.options import QaicCompileOptions
from qeff_framework.lowering import check_operator_types, nodes_named
from qeff_framework.plugin_api import CompileError, ExportedModel, Specialization
from qeff_framework.sessions import check_distinct_shapes, check_specializations

RETAINED_SUFFIX = "_RetainedState"


def check_program(exported: ExportedModel, specializations: Sequence[Specialization]) -> None:
    """Raises `CompileError` with the first thing that cannot work."""
    check_specializations(exported, specializations, backend="qaic")
    _check_state_names(exported)
    check_distinct_shapes(exported, specializations)


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


def check_names(model: ir.Model, options: QaicCompileOptions) -> None:
    """Raises `CompileError` for nodes and operator types of the options that do not exist: the compiler ignores them."""
    nodes_named(model, options.fp32_nodes, option="fp32_nodes")
    for name in ("execute_nodes_in_fp16", "keep_original_precision_for_nodes"):
        check_operator_types(model, getattr(options, name), option=name)


def _check_state_names(exported: ExportedModel) -> None:
    for state in exported.states:
        if state.output != state.input + RETAINED_SUFFIX:
            raise CompileError(
                f"the retained state {state.input} has the output {state.output}; the compiler pairs it only with "
                f"{state.input}{RETAINED_SUFFIX}"
            )
