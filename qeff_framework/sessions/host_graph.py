"""What the host computes for a step, in float32, because the device's numbers cannot hold it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qeff_framework.errors import ExecutionError

if TYPE_CHECKING:
    from qeff_framework.contracts import Array


class HostGraph:
    """A small graph of an artifact, such as `qeff_framework.lowering.take_out_angles` makes, evaluated in NumPy.

    Calling it with the inputs of a step gives its result. The last result is kept: many inputs are the same in every step.
    """

    def __init__(self, path: Path) -> None:
        """Raises `ExecutionError`: the file is missing or damaged."""
        from onnx.reference import ReferenceEvaluator

        try:
            self._evaluator = ReferenceEvaluator(str(path))
        except Exception as error:
            raise ExecutionError(f"the graph {path} cannot be read: {error}. Compile the model again") from error
        #: The inputs of a step that it reads.
        self.reads: tuple[str, ...] = tuple(self._evaluator.input_names)
        self._last: tuple[list[Array], Array] | None = None

    def __call__(self, feeds: Mapping[str, Array]) -> Array:
        """Returns the one output."""
        given = [np.asarray(feeds[name]) for name in self.reads]
        if self._last is None or not all(map(np.array_equal, given, self._last[0])):
            result: Array = self._evaluator.run(None, dict(zip(self.reads, given, strict=True)))[0]
            self._last = [each.copy() for each in given], result
        return self._last[1]
