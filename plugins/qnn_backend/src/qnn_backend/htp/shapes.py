"""Symbolic dimensions with the values of a specialization put in, and which tensors the caller sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qeff_framework.plugin_api import CompiledModel, Specialization, TensorSpec

Shape = tuple[int, ...]


def resolve(spec: TensorSpec, dims: Mapping[str, int]) -> Shape:
    """The static shape of `spec`. Raises `KeyError` with the symbol that has no value."""
    return tuple(dim if isinstance(dim, int) else dims[dim] for dim in spec.shape)


def host_inputs(compiled: CompiledModel) -> tuple[TensorSpec, ...]:
    """Inputs that the caller feeds: all but the retained states."""
    states = {state.input for state in compiled.states}
    return tuple(spec for spec in compiled.inputs if spec.name not in states)


def host_outputs(compiled: CompiledModel) -> tuple[TensorSpec, ...]:
    """Outputs that the caller reads: all but the retained states."""
    states = {state.output for state in compiled.states}
    return tuple(spec for spec in compiled.outputs if spec.name not in states)


def describe(specializations: Iterable[Specialization], specs: Iterable[TensorSpec]) -> str:
    """The allowed input shapes, one specialization after the other, for messages."""
    specs = tuple(specs)
    return "; ".join(
        f"{item.name}: " + ", ".join(f"{spec.name} {list(resolve(spec, item.dims))}" for spec in specs)
        for item in specializations
    )
