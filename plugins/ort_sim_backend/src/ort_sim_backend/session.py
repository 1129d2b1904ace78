"""A session: a compiled model with its retained state, run under the rules of a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from ort_sim_backend import shapes
from ort_sim_backend.options import OrtSimRuntimeOptions
from ort_sim_backend.positions import check_positions, check_rows
from ort_sim_backend.runtime import available_cpus, open_session, reason, session_options
from qeff_framework.plugin_api import CompiledModel, ExecutionError, InputError, OptionError, Specialization

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

#: Inputs that hold positions, and the dimension that holds as many slots.
POSITIONS = {"position_ids": "ctx_len", "encoder_position_ids": "encoder_ctx_len"}
ROWS = "batch_index"


@dataclass(frozen=True, kw_only=True)
class _Step:
    """The buffers of one specialization, bound once. A step copies inputs in and runs: nothing is allocated or bound."""

    specialization: Specialization
    binding: Any
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


class OrtSession:
    """Implements `qeff_framework.plugin_api.ExecutionSession`."""

    def __init__(self, compiled: CompiledModel, options: OrtSimRuntimeOptions) -> None:
        _check_packing(compiled, options)
        self.compiled = compiled
        threads = options.num_threads or _default_threads(compiled)
        self._session = _load(compiled, threads, pack_weights=options.pack_weights)
        self._in_place = frozenset(compiled.program["in_place"])
        self._states = _state_buffers(compiled)
        #: Second buffers of the states that cannot be overwritten while they are read; the two change places after each step.
        self._next_states = {name: buffer.copy() for name, buffer in self._states.items() if name not in self._in_place}
        # Two specializations with the same input shapes are one to the caller; the first one counts, as a dict keeps the last.
        self._steps = {
            _shape_key(compiled, specialization.dims): self._prepare(specialization)
            for specialization in reversed(compiled.specializations)
        }
        self._input_names = tuple(spec.name for spec in shapes.host_inputs(compiled))
        self.info: Mapping[str, str] = {
            "device": "CPU",
            "simulator": "yes",
            "runtime": f"onnxruntime {ort.__version__}",
            "threads": str(threads),
        }

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Runs one step, see `ExecutionSession.run`.

        Raises `InputError` before anything is written when names, dtypes, shapes or positions do not fit the program, and
        `ExecutionError` when ONNX Runtime fails; the retained state is then undefined until `reset()`.
        """
        session = self._open_session()
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        step = self._choose(arrays)
        for name, dim in POSITIONS.items():
            if name in arrays and dim in step.specialization.dims:
                slots = step.specialization.dims[dim]
                check_positions(arrays[name].astype(np.int64, copy=False), dim=dim, slots=slots)
        if ROWS in arrays and "full_batch_size" in step.specialization.dims:
            check_rows(
                arrays[ROWS].astype(np.int64, copy=False), cache_rows=step.specialization.dims["full_batch_size"]
            )
        for name, buffer in step.inputs.items():
            np.copyto(buffer, arrays[name])
        self._bind_alternating_states(step)
        try:
            session.run_with_iobinding(step.binding)
        except Exception as error:
            raise ExecutionError(f"ONNX Runtime failed in a step: {reason(error)}") from error
        for name in self._next_states:
            self._states[name], self._next_states[name] = self._next_states[name], self._states[name]
        return step.outputs

    def reset(self) -> None:
        """Fills every retained state with zeros, as after loading."""
        self._open_session()
        for buffer in self._states.values():
            buffer.fill(0)

    def close(self) -> None:
        """Frees the weights and the retained state."""
        self._session = None
        self._steps = {}
        self._states, self._next_states = {}, {}

    def _open_session(self) -> ort.InferenceSession:
        if self._session is None:
            raise ExecutionError("the session is closed: make a new one from the compiled model")
        return self._session

    def _prepare(self, specialization: Specialization) -> _Step:
        compiled, dims = self.compiled, specialization.dims
        inputs = {spec.name: np.zeros(shapes.resolve(spec, dims), spec.dtype) for spec in shapes.host_inputs(compiled)}
        outputs = {
            spec.name: np.zeros(shapes.resolve(spec, dims), spec.dtype) for spec in shapes.host_outputs(compiled)
        }
        binding = self._open_session().io_binding()
        for name, buffer in inputs.items():
            _bind_input(binding, name, buffer)
        for name, buffer in outputs.items():
            _bind_output(binding, name, buffer)
        for state in compiled.states:
            if state.input in self._in_place:
                _bind_input(binding, state.input, self._states[state.input])
                _bind_output(binding, state.output, self._states[state.input])
        return _Step(specialization=specialization, binding=binding, inputs=inputs, outputs=outputs)

    def _bind_alternating_states(self, step: _Step) -> None:
        for state in self.compiled.states:
            if state.input in self._next_states:
                _bind_input(step.binding, state.input, self._states[state.input])
                _bind_output(step.binding, state.output, self._next_states[state.input])

    def _choose(self, inputs: Mapping[str, Array]) -> _Step:
        """The step whose buffers have the shapes and dtypes of `inputs`."""
        if inputs.keys() != set(self._input_names):
            raise InputError(
                f"the step got the inputs {', '.join(sorted(inputs)) or '(none)'}; "
                f"the model takes {', '.join(self._input_names)}"
            )
        step = self._steps.get(tuple(inputs[name].shape for name in self._input_names))
        if step is None:
            given = ", ".join(f"{name} {list(inputs[name].shape)}" for name in self._input_names)
            allowed = shapes.describe(self.compiled.specializations, shapes.host_inputs(self.compiled))
            raise InputError(
                f"no compiled specialization has the shapes {given}. Compiled are {allowed}. "
                "Pad the inputs to one of them or compile another specialization"
            )
        for name, buffer in step.inputs.items():
            if inputs[name].dtype != buffer.dtype:
                raise InputError(f"input {name} is {inputs[name].dtype}, the model takes {buffer.dtype}")
        return step


def _check_packing(compiled: CompiledModel, options: OrtSimRuntimeOptions) -> None:
    """Unpacked, the kernels for compressed weights first write every weight as float32, in each step."""
    precision = compiled.options.get("precision", "fp32")
    if precision != "fp32" and not options.pack_weights:
        raise OptionError(
            f"pack_weights=False does not go with a program of precision '{precision}': compressed weights are multiplied fast "
            "only when they are packed; leave pack_weights at True, or compile with precision='fp32'"
        )


def _load(compiled: CompiledModel, threads: int, *, pack_weights: bool) -> ort.InferenceSession | None:
    model = compiled.directory / compiled.program["model"]
    options = session_options(optimization_level="none", threads=threads, pack_weights=pack_weights)
    try:
        return open_session(model, options)
    except Exception as error:
        raise ExecutionError(f"ONNX Runtime cannot load {model}: {reason(error)}") from error


def _default_threads(compiled: CompiledModel) -> int:
    return min(int(compiled.options["num_cores"]), available_cpus())


def _state_buffers(compiled: CompiledModel) -> dict[str, Array]:
    """Zeroed buffers; all specializations agree on their sizes."""
    names = {state.input for state in compiled.states}
    dims = compiled.specializations[0].dims
    return {
        spec.name: np.zeros(shapes.resolve(spec, dims), spec.dtype) for spec in compiled.inputs if spec.name in names
    }


def _shape_key(compiled: CompiledModel, dims: Mapping[str, int]) -> tuple[shapes.Shape, ...]:
    return tuple(shapes.resolve(spec, dims) for spec in shapes.host_inputs(compiled))


# The session owns the buffers and binds their addresses. An OrtValue made from an array would share its memory without keeping it
# alive.
def _bind_input(binding: Any, name: str, buffer: Array) -> None:
    binding.bind_input(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)


def _bind_output(binding: Any, name: str, buffer: Array) -> None:
    binding.bind_output(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
