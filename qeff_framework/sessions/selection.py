"""From the caller's inputs to the specialization that they are for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from qeff_framework.contracts import CompiledModel, Specialization
from qeff_framework.errors import InputError
from qeff_framework.sessions.checks import check_step
from qeff_framework.sessions.shapes import Shape, describe_shapes, host_inputs, resolve_shape

if TYPE_CHECKING:
    from qeff_framework.contracts import Array


class StepSelector:
    """Finds the specialization of a step and checks the step's inputs."""

    def __init__(self, compiled: CompiledModel) -> None:
        self._specs = host_inputs(compiled)
        self._names = tuple(spec.name for spec in self._specs)
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in self._specs}
        self._states = {state.input for state in compiled.states}
        self._by_shapes: dict[tuple[Shape, ...], Specialization] = {}
        for specialization in compiled.specializations:
            shapes = tuple(resolve_shape(spec, specialization.dims) for spec in self._specs)
            self._by_shapes.setdefault(shapes, specialization)

    @property
    def specializations(self) -> tuple[Specialization, ...]:
        """Those that inputs can choose: of several with the same input shapes the first."""
        return tuple(self._by_shapes.values())

    def select(self, inputs: Mapping[str, Array]) -> tuple[Specialization, dict[str, Array]]:
        """The specialization whose shapes `inputs` have, and the inputs as arrays, in the order of the program.

        Raises:
            InputError: names, dtypes, shapes, positions or cache rows do not fit the program.
        """
        if inputs.keys() != self._dtypes.keys():
            raise InputError(self._wrong_names(inputs))
        arrays = {name: np.asarray(inputs[name]) for name in self._names}
        for name, dtype in self._dtypes.items():
            if arrays[name].dtype != dtype:
                raise InputError(f"input {name} is {arrays[name].dtype}, the model takes {dtype}")
        specialization = self._by_shapes.get(tuple(array.shape for array in arrays.values()))
        if specialization is None:
            given = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise InputError(
                f"no compiled specialization has the shapes {given}. Compiled are "
                f"{describe_shapes(self.specializations, self._specs)}. Pad the inputs to one of them or compile another "
                "specialization"
            )
        check_step(arrays, specialization.dims)
        return specialization, arrays

    def _wrong_names(self, inputs: Mapping[str, Array]) -> str:
        problems = {
            "missing": [name for name in self._names if name not in inputs],
            "unknown": [name for name in inputs if name not in self._dtypes and name not in self._states],
            "retained states, which stay with the session": [name for name in inputs if name in self._states],
        }
        told = "; ".join(f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names)
        return f"the inputs of the step do not fit the model ({told}). It takes {', '.join(self._names)}"
