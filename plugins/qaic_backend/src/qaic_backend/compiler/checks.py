"""What the compiler would refuse after minutes or hours of work, refused before it is started."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from qeff_framework.plugin_api import CompileError, ExportedModel, Specialization, TensorSpec

RETAINED_SUFFIX = "_RetainedState"


def check_program(exported: ExportedModel, specializations: Sequence[Specialization]) -> None:
    """Raises `CompileError` with the first thing that cannot work."""
    if not specializations:
        raise CompileError("no specialization was given: qaic compiles for static shapes only")
    for specialization in specializations:
        _check_dims(exported, specialization)
    _check_states(exported, specializations)
    for first, second in itertools.combinations(specializations, 2):
        _check_distinct(exported, first, second)
    if len(specializations) > 1 and not _telling_inputs(exported, specializations):
        names = ", ".join(item.name for item in specializations)
        raise CompileError(
            f"no single input has a different shape in each of the specializations {names}; the device tells them apart by one "
            "input. Choose other lengths"
        )


def check_operators(model: ir.Model) -> None:
    """Raises `CompileError` for loops, which are not among the operators that the compiler is known to take."""
    loops = sorted({node.name or node.op_type for node in model.graph.all_nodes() if node.op_type in ("Scan", "Loop")})
    if loops:
        raise CompileError(
            f"the model runs {len(loops)} of its modules token by token ({loops[0]} first), which the compiler has no operator "
            "for: state-space and linear-attention models with a recurrent state cannot be compiled for qaic; use ort_sim"
        )


def _check_dims(exported: ExportedModel, specialization: Specialization) -> None:
    unbound = {
        dim for spec in exported.inputs for dim in spec.shape if isinstance(dim, str) and dim not in specialization.dims
    }
    if unbound:
        raise CompileError(
            f"specialization '{specialization.name}' has no value for {', '.join(sorted(unbound))}: "
            "qaic compiles for static shapes only"
        )
    seq_len, ctx_len = specialization.dims.get("seq_len", 1), specialization.dims.get("ctx_len")
    if exported.states and ctx_len is not None and seq_len > ctx_len:
        raise CompileError(
            f"specialization '{specialization.name}' has seq_len {seq_len} and ctx_len {ctx_len}: a chunk must fit into the "
            "context, choose a smaller prefill_seq_len or a larger ctx_len"
        )


def _check_states(exported: ExportedModel, specializations: Sequence[Specialization]) -> None:
    inputs = {spec.name: spec for spec in exported.inputs}
    for state in exported.states:
        if state.output != state.input + RETAINED_SUFFIX:
            raise CompileError(
                f"the retained state {state.input} has the output {state.output}; the compiler pairs it only with "
                f"{state.input}{RETAINED_SUFFIX}"
            )
        sizes = {shape_of(inputs[state.input], specialization.dims) for specialization in specializations}
        if len(sizes) > 1:
            raise CompileError(
                f"the specializations give the retained state {state.input} different sizes: "
                f"{' and '.join(map(str, sorted(sizes)))}"
            )


def _check_distinct(exported: ExportedModel, first: Specialization, second: Specialization) -> None:
    if all(shape_of(spec, first.dims) == shape_of(spec, second.dims) for spec in exported.inputs):
        raise CompileError(
            f"the specializations '{first.name}' and '{second.name}' give every input the same shape, so the device could "
            "not tell them apart; leave one out"
        )


def _telling_inputs(exported: ExportedModel, specializations: Sequence[Specialization]) -> list[str]:
    return [
        spec.name
        for spec in exported.inputs
        if len({shape_of(spec, item.dims) for item in specializations}) == len(specializations)
    ]


def shape_of(spec: TensorSpec, dims: Mapping[str, int]) -> tuple[int, ...]:
    """The static shape. Raises `KeyError` with the symbol that has no value."""
    return tuple(dim if isinstance(dim, int) else dims[dim] for dim in spec.shape)
