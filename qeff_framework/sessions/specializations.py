"""Checks of the specializations that a program is compiled for, before a compiler is started."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from qeff_framework.contracts import ExportedModel, Specialization
from qeff_framework.errors import CompileError
from qeff_framework.sessions.shapes import resolve_shape


def check_specializations(exported: ExportedModel, specializations: Sequence[Specialization], *, backend: str) -> None:
    """Checks that every tensor has a static shape and that all specializations can share the retained states.

    Args:
        exported: the model that is compiled.
        specializations: what it is compiled for.
        backend: name for the messages.

    Raises:
        CompileError: there is no specialization, two have one name, a dimension has no value, a step is longer than the context,
            or a retained state would have two sizes.
    """
    if not specializations:
        raise CompileError(f"no specialization was given: {backend} compiles for static shapes only")
    names = [item.name for item in specializations]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise CompileError(f"several specializations have the name {', '.join(repeated)}; give each its own name")
    for specialization in specializations:
        _check_dims(exported, specialization, backend)
    states = {state.input for state in exported.states}
    for spec in exported.inputs:
        sizes = {resolve_shape(spec, specialization.dims) for specialization in specializations}
        if spec.name in states and len(sizes) > 1:
            raise CompileError(
                f"the specializations give the retained state {spec.name} different sizes: "
                f"{' and '.join(map(str, sorted(sizes)))}"
            )


def check_distinct_shapes(exported: ExportedModel, specializations: Sequence[Specialization]) -> None:
    """Checks that a device that knows a step by the shape of an input can tell all specializations apart.

    Raises:
        CompileError: two specializations give every input the same shape, or no single input has another shape in each of them.
    """
    for first, second in itertools.combinations(specializations, 2):
        if all(resolve_shape(spec, first.dims) == resolve_shape(spec, second.dims) for spec in exported.inputs):
            raise CompileError(
                f"the specializations '{first.name}' and '{second.name}' give every input the same shape, so the device could "
                "not tell them apart; leave one out"
            )
    if not any(
        len({resolve_shape(spec, item.dims) for item in specializations}) == len(specializations)
        for spec in exported.inputs
    ):
        names = ", ".join(item.name for item in specializations)
        raise CompileError(
            f"no single input has a different shape in each of the specializations {names}; the device tells them apart by one "
            "input. Choose other lengths"
        )


def _check_dims(exported: ExportedModel, specialization: Specialization, backend: str) -> None:
    dims = specialization.dims
    symbols = {dim for spec in (*exported.inputs, *exported.outputs) for dim in spec.shape if isinstance(dim, str)}
    unbound = symbols - dims.keys()
    if unbound:
        raise CompileError(
            f"specialization '{specialization.name}' has no value for {', '.join(sorted(unbound))}: "
            f"{backend} compiles for static shapes only"
        )
    if not exported.states:
        return
    for length, context, remedy in (
        ("seq_len", "ctx_len", "a smaller prefill_seq_len or a larger ctx_len"),
        ("seq_len", "comp_ctx_lengths", "a smaller prefill_seq_len or a longer compute context"),
        ("encoder_seq_len", "encoder_ctx_len", "a smaller encoder_seq_len"),
    ):
        if context in dims and dims.get(length, 1) > dims[context]:
            raise CompileError(
                f"specialization '{specialization.name}' has {length} {dims[length]} and {context} {dims[context]}: a step "
                f"must fit into the context, choose {remedy}"
            )
