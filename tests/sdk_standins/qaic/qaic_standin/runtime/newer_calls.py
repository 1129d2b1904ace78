"""Calls that only newer SDK generations have (row R15)."""

from __future__ import annotations

import numpy as np

from .buffers import BufferDimensionsVecRef, QBuffer
from .exec_object import ExecObj
from .program import Program
from .shape_match import HostBuffer
from .slicing import SliceHandle, parse_slicing_spec, slice_starts
from .status import QStatus
from .strict_types import require

_SKIPPED = HostBuffer(data=b"", element_size=1, dims=(0,))


class NewerProgram(Program):
    """A program that can make slice handles."""

    def createSlicingSpecHandle(self, spec: str) -> tuple[QStatus, SliceHandle | None]:
        """Parse a buffer specification; QS_INVAL when it is malformed."""
        try:
            return QStatus.QS_SUCCESS, parse_slicing_spec(require(spec, str, "createSlicingSpecHandle"))
        except ValueError:
            return QStatus.QS_INVAL, None


class NewerExecObj(ExecObj):
    """An ExecObj that takes numpy arrays and slices of state."""

    def setData(
        self, buffers: list[QBuffer] | list[tuple[int, np.ndarray]], dims: BufferDimensionsVecRef | None = None
    ) -> QStatus:
        """As the older form; without `dims`, (binding index, array) pairs, and every other binding is skipped."""
        if dims is not None:
            return super().setData(buffers, dims)  # type: ignore[arg-type]  # checked at run time by the older form
        given = [_SKIPPED] * len(self._bindings)
        for index, array in require(buffers, list, "setData"):
            require(array, np.ndarray, "array")
            if not 0 <= require(index, int, "binding index") < len(given):
                return self._arm(None)
            given[index] = HostBuffer(data=array.tobytes(), element_size=array.itemsize, dims=array.shape or (1,))
        return self._arm(given)

    def setDataWithSlices(
        self, buffers: list[tuple[int, np.ndarray]], handle: SliceHandle, values: list[tuple[str, int]]
    ) -> tuple[QStatus, SliceHandle]:
        """Write arrays into parts of the retained state, where the handle's specification and `values` say.

        The write takes effect at once. QS_INVAL when a binding is not retained, matches no specification, or the array does not
        fit.
        """
        require(handle, SliceHandle, "setDataWithSlices")
        activation = self._program._running()
        if activation is None:
            return QStatus.QS_INVAL, handle
        if self._flight is not None:
            return QStatus.QS_BUSY, handle
        for index, array in require(buffers, list, "setDataWithSlices"):
            binding = self._bindings[index]
            start = slice_starts(handle, binding.name, array, dict(values))
            if start is None or not (binding.is_retained and binding.is_input):
                return QStatus.QS_INVAL, handle
            try:
                activation.write_slice(binding.name, start, array.astype(binding.graph_type))
            except ValueError:
                return QStatus.QS_INVAL, handle
        return QStatus.QS_SUCCESS, handle
