"""One activation of a program on its devices: the allocation and the retained state (rows R4 and R10)."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..program_description import Entry, ProgramDescription
from . import io_codec
from .executor import Executor
from .shape_match import HostBuffer, NoMatchingSpecializationError, select_entry
from .status import QStatus

Array = NDArray[np.generic]


class Activation:
    """Retained state of one activation. State lives here, so that all its ExecObj share it; a new one starts at zero."""

    def __init__(self, program: ProgramDescription, executor: Executor, handle: str, qids: Sequence[int]) -> None:
        self.handle = handle
        self.qids = tuple(qids)
        self._program = program
        self._executor = executor
        self._state: dict[str, Array] = {}
        self._lock = threading.Lock()

    def execute(self, buffers: Sequence[HostBuffer]) -> tuple[QStatus, list[bytes]]:
        """Run once and update the state.

        Returns:
            The status, and on success one block of bytes per binding; empty for inputs and skipped outputs.
        """
        with self._lock:
            try:
                entry = select_entry(self._program, buffers)
            except NoMatchingSpecializationError as error:
                sys.stderr.write(f"[standin][error] No matching specialization found: {error}\n")
                return QStatus.QS_DEV_ERROR, []
            try:
                return QStatus.QS_SUCCESS, self._run(entry, buffers)
            except Exception as error:  # noqa: BLE001 -- a device reports a fault of the program as a status
                sys.stderr.write(f"[standin][error] Execution failed: {error}\n")
                return QStatus.QS_DEV_ERROR, []

    def write_slice(self, name: str, start: Sequence[int], values: Array) -> None:
        """Overwrite a part of a retained input; zeros surround what was never written."""
        index = next(i for i, binding in enumerate(self._program.bindings) if binding.name == name)
        binding = self._program.bindings[index]
        with self._lock:
            state = self._state.get(name)
            if state is None:
                state = io_codec.zeros(binding, self._program.largest_dims(index))
            region = tuple(slice(at, at + size) for at, size in zip(start, values.shape, strict=True))
            if state[region].shape != values.shape:
                raise ValueError(f"{name}: slice at {list(start)} of shape {values.shape} does not fit {state.shape}")
            updated = state.copy()
            updated[region] = values
            self._state[name] = io_codec.device_values(binding, updated, to_float16=self._program.convert_to_fp16)

    def _run(self, entry: Entry, buffers: Sequence[HostBuffer]) -> list[bytes]:
        program = self._program
        to_float16 = program.convert_to_fp16
        inputs = {}
        for binding, buffer, dims in zip(program.bindings, buffers, entry.dims, strict=True):
            if not binding.is_input:
                continue
            if not buffer.is_skipped:
                inputs[binding.name] = io_codec.to_device(binding, buffer.data, buffer.dims, to_float16=to_float16)
            elif binding.name in self._state:
                inputs[binding.name] = self._state[binding.name]
            else:
                inputs[binding.name] = io_codec.zeros(binding, dims)
        outputs = [binding for binding in program.bindings if not binding.is_input]
        results = self._executor.run(inputs, [binding.name for binding in outputs])
        for binding in outputs:
            results[binding.name] = io_codec.device_values(binding, results[binding.name], to_float16=to_float16)
            if binding.is_retained:
                self._state[binding.retained_with] = results[binding.name]
        return [
            io_codec.from_device(binding, results[binding.name])
            if not binding.is_input and not buffer.is_skipped
            else b""
            for binding, buffer in zip(program.bindings, buffers, strict=True)
        ]
