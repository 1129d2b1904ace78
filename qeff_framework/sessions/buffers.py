"""Arrays that a session allocates once, when it is opened, and uses in every step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.contracts import CompiledModel, TensorSpec
from qeff_framework.sessions.checks import POSITIONS, ROWS
from qeff_framework.sessions.shapes import host_inputs, resolve_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qeff_framework.contracts import Array


#: The input of a sampler with tokens that belong to the answer; -1 is none.
ACCEPTED = "last_accepted_output_tokens"


def allocate(specs: Iterable[TensorSpec], dims: Mapping[str, int]) -> dict[str, Array]:
    """Zeros for each of `specs` by name, in its dtype and with the sizes of `dims`."""
    return {spec.name: np.zeros(resolve_shape(spec, dims), spec.dtype) for spec in specs}


def write_tokens(cache: Array, new: Array, position_ids: NDArray[Any]) -> None:
    """Does on the host what ``KVUpdate`` does in a graph: a negative position writes nothing.

    Args:
        cache: ``[B, H, C, D]``, changed in place.
        new: ``[B, H, S, D]``, the part that a step has computed.
        position_ids: ``[B, S]``, the slots.
    """
    for row, positions in enumerate(position_ids):
        valid = positions >= 0
        cache[row][:, positions[valid]] = new[row][:, valid]


def state_buffers(compiled: CompiledModel) -> dict[str, Array]:
    """Zeros for each retained state, by input name. All specializations agree on the sizes of the states."""
    return allocate(state_specs(compiled).values(), compiled.specializations[0].dims)


def state_specs(compiled: CompiledModel) -> dict[str, TensorSpec]:
    """The inputs that are retained states, by name."""
    names = {state.input for state in compiled.states}
    return {spec.name: spec for spec in compiled.inputs if spec.name in names}


def padding_inputs(compiled: CompiledModel, dims: Mapping[str, int]) -> dict[str, Array]:
    """The inputs of a step whose tokens are all padding, with the sizes of `dims`: it leaves every state as it was."""
    inputs = allocate(host_inputs(compiled), dims)
    for name in {*POSITIONS, ACCEPTED} & inputs.keys():
        inputs[name][...] = -1
    if ROWS in inputs:
        inputs[ROWS][:, 0] = np.arange(len(inputs[ROWS]))
    return inputs
