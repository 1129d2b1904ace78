"""Static shapes of the tensors of a program, and which of these tensors the caller sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qeff_framework.contracts import CompiledModel, ExportedModel, Specialization, TensorSpec

Shape = tuple[int, ...]


def resolve_shape(spec: TensorSpec, dims: Mapping[str, int]) -> Shape:
    """The shape of `spec` with the values of `dims` for its symbols.

    Raises:
        KeyError: a symbol has no value; the key is the symbol.
    """
    return tuple(dim if isinstance(dim, int) else dims[dim] for dim in spec.shape)


def host_inputs(model: CompiledModel | ExportedModel) -> tuple[TensorSpec, ...]:
    """Inputs that the caller feeds: all but the retained states."""
    states = {state.input for state in model.states}
    return tuple(spec for spec in model.inputs if spec.name not in states)


def host_outputs(model: CompiledModel | ExportedModel) -> tuple[TensorSpec, ...]:
    """Outputs that the caller reads: all but the retained states."""
    states = {state.output for state in model.states}
    return tuple(spec for spec in model.outputs if spec.name not in states)


def describe_shapes(specializations: Iterable[Specialization], specs: Iterable[TensorSpec]) -> str:
    """The shapes of `specs` in each specialization, for messages: ``prefill: input_ids [1, 32], ...; decode: ...``."""
    specs = tuple(specs)
    return "; ".join(
        f"{item.name}: " + ", ".join(f"{spec.name} {list(resolve_shape(spec, item.dims))}" for spec in specs)
        for item in specializations
    )
