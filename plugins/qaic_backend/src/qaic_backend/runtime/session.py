"""A session: a program on the card with its retained state."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qaic_backend.runtime.bindings import Binding, Dims
from qaic_backend.runtime.modules import RuntimeModules
from qaic_backend.runtime.program import DeviceProgram
from qeff_framework.plugin_api import CompiledModel, ExecutionError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

#: Inputs that hold positions, and the dimension that holds as many slots.
POSITIONS = {"position_ids": "ctx_len", "encoder_position_ids": "encoder_ctx_len"}
ROWS = "batch_index"


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One specialization: the dims of every binding, and empty space for the outputs that the host reads."""

    shape: tuple[Dims, ...]
    placeholders: Mapping[int, bytes]


class QaicSession:
    """Implements `qeff_framework.plugin_api.ExecutionSession`."""

    def __init__(
        self,
        compiled: CompiledModel,
        modules: RuntimeModules,
        folder: Path,
        *,
        device_ids: tuple[int, ...],
        timeout_ms: int,
    ) -> None:
        self.compiled = compiled
        self._program: DeviceProgram | None = DeviceProgram(
            modules,
            folder,
            device_ids=device_ids,
            cores=int(compiled.options["num_cores"]),
            timeout_ms=timeout_ms,
        )
        description = self._program.description
        state_inputs = {state.input for state in compiled.states}
        retained = state_inputs | {state.output for state in compiled.states}
        self._inputs = {b.name: b for b in description.bindings if b.is_input and b.name not in retained}
        self._outputs = {b.name: b for b in description.bindings if not b.is_input and b.name not in retained}
        self._states = [b for b in description.bindings if b.name in state_inputs]
        self._steps = {
            tuple(shape[binding.index] for binding in self._inputs.values()): _Step(
                shape=shape,
                placeholders={b.index: bytes(description.bytes_of(b.index, shape)) for b in self._outputs.values()},
            )
            for shape in description.shapes
        }
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in (*compiled.inputs, *compiled.outputs)}
        dims = {name: size for item in compiled.specializations for name, size in item.dims.items()}
        #: All specializations agree on the sizes of the states.
        self._slots = {name: (dim, dims[dim]) for name, dim in POSITIONS.items() if dim in dims}
        self._cache_rows = dims.get("full_batch_size")
        #: A fresh activation has zeros; later the state of the last generation has to be overwritten first.
        self._state_is_fresh, self._clear_state = True, False
        self._broken = False
        # The buffers of one execution object must not be filled anew before the device has done with them.
        self._lock = threading.RLock()
        self.info: Mapping[str, str] = {
            "device": "Cloud AI " + (", ".join(f"QID {qid}" for qid in device_ids) or "chosen by the runtime"),
            "simulator": "no",
            "runtime": "qaicrt",
            "cores": str(compiled.options["num_cores"]),
        }

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Runs one step, see `ExecutionSession.run`.

        Steps of several threads run one after the other. Raises `InputError`, before anything reaches the device, when names,
        dtypes, shapes or positions do not fit the program, and `ExecutionError` when the device fails; the retained state is
        then undefined until `reset()`.
        """
        with self._lock:
            return self._run(inputs)

    def _run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        program = self._open_program()
        if self._broken:
            raise ExecutionError(
                "qaic: an earlier step failed and left the retained state undefined; call reset() first"
            )
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        step = self._choose(arrays)
        contents = dict(step.placeholders)
        for name, array in arrays.items():
            binding = self._inputs[name]
            contents[binding.index] = np.ascontiguousarray(array, dtype=binding.dtype).tobytes()
        if self._clear_state:
            contents.update({b.index: bytes(program.description.bytes_of(b.index, step.shape)) for b in self._states})
        self._state_is_fresh, self._broken = False, True
        results = program.step(step.shape, contents)
        self._clear_state = self._broken = False
        return {name: self._result(binding, results[binding.index]) for name, binding in self._outputs.items()}

    def reset(self) -> None:
        """Makes every retained state zero, as after loading: the next step writes zeros over it before it runs."""
        with self._lock:
            self._open_program()
            self._clear_state = not self._state_is_fresh
            self._broken = False

    def close(self) -> None:
        """Gives the device back."""
        with self._lock:
            program, self._program = self._program, None
            if program is not None:
                program.close()

    def _open_program(self) -> DeviceProgram:
        if self._program is None:
            raise ExecutionError("the session is closed: make a new one from the compiled model")
        return self._program

    def _result(self, binding: Binding, result: Array) -> Array:
        """In the dtype that the model declares: a program may store its outputs in FP16."""
        return result.astype(self._dtypes.get(binding.name, binding.dtype), copy=False)

    def _choose(self, inputs: Mapping[str, Array]) -> _Step:
        """The specialization with the shapes of `inputs`. The device says no more than that none fits, and says it late."""
        if inputs.keys() != self._inputs.keys():
            raise InputError(
                f"the step got the inputs {', '.join(sorted(inputs)) or '(none)'}; the model takes {', '.join(self._inputs)}"
            )
        step = self._steps.get(tuple(inputs[name].shape or (1,) for name in self._inputs))
        if step is None:
            given = ", ".join(f"{name} {list(inputs[name].shape)}" for name in self._inputs)
            raise InputError(
                f"no compiled specialization has the shapes {given}. Compiled are {self._allowed()}. "
                "Pad the inputs to one of them or compile another specialization"
            )
        for name, array in inputs.items():
            if array.dtype != self._dtypes[name]:
                raise InputError(f"input {name} is {array.dtype}, the model takes {self._dtypes[name]}")
        for name, (dim, slots) in self._slots.items():
            if name in inputs:
                _check_positions(inputs[name], dim, slots)
        if ROWS in inputs and self._cache_rows is not None:
            _check_rows(inputs[ROWS], self._cache_rows)
        return step

    def _allowed(self) -> str:
        return "; ".join(
            ", ".join(f"{name} {list(dims)}" for name, dims in zip(self._inputs, shapes, strict=True))
            for shapes in self._steps
        )


def _check_positions(position_ids: Array, dim: str, slots: int) -> None:
    """The device drops what is written behind the context without a word; the answer would be wrong."""
    beyond = np.argwhere(position_ids >= slots)  # type: ignore[operator]
    if beyond.size:
        row, token = beyond[0][:2]
        raise InputError(
            f"position {position_ids[row, token]} of row {row} does not fit into the context: {dim} is {slots}, the last "
            f"position is {slots - 1}. Stop earlier or compile with a larger {dim}"
        )


def _check_rows(batch_index: Array, cache_rows: int) -> None:
    """Two rows of a step that write to one cache row would leave it in any state."""
    rows = batch_index.ravel().tolist()
    if len(set(rows)) != len(rows) or min(rows) < 0 or max(rows) >= cache_rows:
        raise InputError(
            f"batch_index is {rows}; each row of a step, padding included, needs a cache row of its own, from 0 to "
            f"{cache_rows - 1}"
        )
