"""A session: a compiled program with its retained state, on the NPU or in the simulator."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.plugin_api import CompiledModel, ExecutionError, InputError, Specialization
from qnn_backend import targets
from qnn_backend.htp import provider, shapes
from qnn_backend.htp.host_tables import HostTables
from qnn_backend.htp.loading import check_program
from qnn_backend.htp.notes import SIMULATOR_NOTE
from qnn_backend.htp.options import HtpRuntimeOptions
from qnn_backend.htp.retained import check_positions, write_tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

POSITIONS = "position_ids"

_log = logging.getLogger(__name__)


def open_session(compiled: CompiledModel, options: Any) -> HtpSession:
    """Checks the program against this machine and loads it.

    Raises `ExecutionError` when it was made by another version, for another chip, or cannot be loaded.
    """
    return HtpSession(compiled, options)


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One graph with its buffers, bound once: a step copies inputs in and runs."""

    specialization: Specialization
    session: Any
    binding: Any
    #: What the caller gives.
    inputs: Mapping[str, Array]
    #: Rows of the host's tables.
    rows: Mapping[str, Array]
    #: All outputs, those of retained states as well.
    outputs: Mapping[str, Array]


class HtpSession:
    """Implements `qeff_framework.plugin_api.ExecutionSession`.

    A graph returns the new part of a cache, and the session writes it into its buffer, which the graph reads: nothing else of the
    cache is copied. A state that no such update makes comes back whole.
    """

    def __init__(self, compiled: CompiledModel, options: HtpRuntimeOptions) -> None:
        self.compiled = compiled
        device = provider.device()
        simulated = not provider.is_npu(device)
        soc = check_program(compiled, options, simulated=simulated)
        self._updated = frozenset(compiled.program["updated_states"])
        self._states = _state_buffers(compiled)
        self._tables = HostTables(compiled.directory, compiled.program["host_tables"])
        self._steps: dict[tuple[shapes.Shape, ...], _Step] = {}
        # Two specializations with the same input shapes are one to the caller; the first one counts, as a dict keeps the last.
        for specialization in reversed(compiled.specializations):
            loaded = _load(compiled, specialization, soc, options)
            self._steps[_shape_key(compiled, specialization.dims)] = self._prepare(loaded, specialization)
        self._input_names = tuple(spec.name for spec in shapes.host_inputs(compiled))
        self._closed = False
        self.info: Mapping[str, str] = {
            "device": f"{soc.name} ({soc.htp})" if not simulated else f"{soc.name} ({soc.htp}), simulated",
            "simulator": "yes" if simulated else "no",
            "runtime": f"onnxruntime-qnn {compiled.program['versions']['onnxruntime-qnn']}",
            **({"note": SIMULATOR_NOTE} if simulated else {}),
        }
        if simulated:
            _log.warning("%s runs in the %s", compiled.directory.name, SIMULATOR_NOTE)

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Runs one step, see `ExecutionSession.run`.

        Raises `InputError` before anything is written when names, dtypes, shapes or positions do not fit, and `ExecutionError`
        when the program fails; the retained state is then as before the step.
        """
        self._check_open()
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        step = self._choose(arrays)
        positions = arrays.get(POSITIONS)
        ctx_len = step.specialization.dims.get("ctx_len")
        if positions is not None and ctx_len is not None:
            check_positions(positions.astype(np.int64, copy=False), ctx_len=ctx_len)
        self._tables.lookup_into(step.rows, arrays)
        for name, buffer in step.inputs.items():
            np.copyto(buffer, arrays[name])
        try:
            step.session.run_with_iobinding(step.binding)
        except Exception as error:
            raise ExecutionError(f"the program failed in a step: {provider.reason(error)}") from error
        for state in self.compiled.states:
            new = step.outputs[state.output]
            if state.input in self._updated:
                write_tokens(self._states[state.input], new, arrays[POSITIONS].astype(np.int64, copy=False))
            else:
                np.copyto(self._states[state.input], new)
        return {spec.name: step.outputs[spec.name] for spec in shapes.host_outputs(self.compiled)}

    def reset(self) -> None:
        """Fills every retained state with zeros, as after loading."""
        self._check_open()
        for buffer in self._states.values():
            buffer.fill(0)

    def close(self) -> None:
        """Releases the device, the weights and the retained state."""
        self._closed = True
        self._steps = {}
        self._states = {}
        self._tables = HostTables(self.compiled.directory, ())

    def _check_open(self) -> None:
        if self._closed:
            raise ExecutionError("the session is closed: make a new one from the compiled model")

    def _prepare(self, session: Any, specialization: Specialization) -> _Step:
        dims, compiled = specialization.dims, self.compiled
        inputs = {spec.name: np.zeros(shapes.resolve(spec, dims), spec.dtype) for spec in shapes.host_inputs(compiled)}
        taken = {one.name: one for one in session.get_inputs()}
        rows = {
            name: np.zeros(one.shape, _dtype(one.type))
            for name, one in taken.items()
            if name not in inputs and name not in self._states
        }
        outputs = {one.name: np.zeros(one.shape, _dtype(one.type)) for one in session.get_outputs()}
        binding = session.io_binding()
        # The session owns the buffers and binds their addresses; the caches are read where they are.
        for name, buffer in (*inputs.items(), *rows.items(), *self._states.items()):
            if name not in taken:  # token ids whose only reader was a table
                continue
            binding.bind_input(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        for name, buffer in outputs.items():
            binding.bind_output(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        return _Step(
            specialization=specialization, session=session, binding=binding, inputs=inputs, rows=rows, outputs=outputs
        )

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


def _load(compiled: CompiledModel, specialization: Specialization, soc: targets.Soc, options: HtpRuntimeOptions) -> Any:
    import onnxruntime as ort

    program = compiled.program
    path = compiled.directory / program["graphs"][specialization.name]["file"]
    modes = {} if options.performance_mode == "default" else {"htp_performance_mode": options.performance_mode}
    try:
        chosen = provider.session_options(soc.id, modes, {}, allow_cpu=bool(program["partial"]))
        # ONNX Runtime would otherwise run a failed step again on the CPU, with a line on stderr as the only sign.
        return ort.InferenceSession(str(path), chosen, enable_fallback=0)
    except Exception as error:
        raise ExecutionError(f"the program {_short(path)} cannot be loaded: {provider.reason(error)}") from error


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _dtype(name: str) -> np.dtype[Any]:
    kinds = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(bool)": "bool"}
    return np.dtype(kinds.get(name) or name.removeprefix("tensor(").removesuffix(")"))


def _state_buffers(compiled: CompiledModel) -> dict[str, Array]:
    """Zeroed buffers; all specializations agree on their sizes."""
    names = {state.input for state in compiled.states}
    dims = compiled.specializations[0].dims
    return {
        spec.name: np.zeros(shapes.resolve(spec, dims), spec.dtype) for spec in compiled.inputs if spec.name in names
    }


def _shape_key(compiled: CompiledModel, dims: Mapping[str, int]) -> tuple[shapes.Shape, ...]:
    return tuple(shapes.resolve(spec, dims) for spec in shapes.host_inputs(compiled))
