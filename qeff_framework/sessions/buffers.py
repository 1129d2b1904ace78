"""Arrays that a session allocates once, when it is opened, and uses in every step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from qeff_framework.contracts import CompiledModel, TensorSpec
from qeff_framework.sessions.shapes import resolve_shape

if TYPE_CHECKING:
    from qeff_framework.contracts import Array


def allocate(specs: Iterable[TensorSpec], dims: Mapping[str, int]) -> dict[str, Array]:
    """Zeros for each of `specs` by name, in its dtype and with the sizes of `dims`."""
    return {spec.name: np.zeros(resolve_shape(spec, dims), spec.dtype) for spec in specs}


def state_buffers(compiled: CompiledModel) -> dict[str, Array]:
    """Zeros for each retained state, by input name. All specializations agree on the sizes of the states."""
    names = {state.input for state in compiled.states}
    return allocate((spec for spec in compiled.inputs if spec.name in names), compiled.specializations[0].dims)
