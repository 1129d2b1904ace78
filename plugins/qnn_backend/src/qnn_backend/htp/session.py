"""A session: a compiled program with its retained state, on the NPU or in the simulator."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.plugin_api import CompiledModel, ExecutionError, Specialization
from qeff_framework.sessions import BaseSession, allocate, host_inputs, host_outputs, write_tokens
from qnn_backend import targets
from qnn_backend.htp import provider
from qnn_backend.htp.host_tables import HostTables
from qnn_backend.htp.loading import check_program
from qnn_backend.htp.notes import SIMULATOR_NOTE
from qnn_backend.htp.options import HtpRuntimeOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

POSITIONS = "position_ids"
#: Other positions, by the kind of state that is written at them.
_POSITIONS = {"cross": "encoder_position_ids"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One graph with its buffers, bound once: a step copies inputs in and runs."""

    session: Any
    binding: Any
    #: What the caller gives.
    inputs: Mapping[str, Array]
    #: Rows of the host's tables.
    rows: Mapping[str, Array]
    #: All outputs, those of retained states as well.
    outputs: Mapping[str, Array]


class HtpSession(BaseSession):
    """Runs the steps of a program.

    A graph returns the new part of a cache, and the session writes it into its buffer, which the graph reads: nothing else of the
    cache is copied. A state that no such update makes comes back whole.
    """

    def __init__(self, compiled: CompiledModel, options: HtpRuntimeOptions) -> None:
        """Checks the program against this machine and loads it.

        Raises:
            ExecutionError: the program was made by another version, for another chip, or cannot be loaded.
        """
        super().__init__(compiled)
        simulated = not provider.is_npu(provider.device())
        soc = check_program(compiled, options, simulated=simulated)
        self._updated = frozenset(compiled.program["updated_states"])
        self._host_outputs = tuple(spec.name for spec in host_outputs(compiled))
        self._tables = HostTables(compiled.directory, compiled.program["host_tables"])
        self._steps = {
            item.name: self._prepare(_load(compiled, item, soc, options), item) for item in self.specializations
        }
        self.info = {
            "device": f"{soc.name} ({soc.htp})" + (", simulated" if simulated else ""),
            "simulator": "yes" if simulated else "no",
            "runtime": f"onnxruntime-qnn {compiled.program['versions']['onnxruntime-qnn']}",
            **({"note": SIMULATOR_NOTE} if simulated else {}),
        }
        if simulated:
            _log.warning("%s runs in the %s", compiled.directory.name, SIMULATOR_NOTE)

    def run_step(self, specialization: Specialization, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Copies inputs and rows of the host's tables into the graph's buffers, runs it, and updates the states."""
        step = self._steps[specialization.name]
        self._tables.lookup_into(step.rows, inputs)
        for name, buffer in step.inputs.items():
            np.copyto(buffer, inputs[name])
        try:
            step.session.run_with_iobinding(step.binding)
        except Exception as error:
            raise ExecutionError(f"the program failed in a step: {provider.reason(error)}") from error
        for state in self.compiled.states:
            new = step.outputs[state.output]
            if state.input in self._updated:
                write_tokens(self.states[state.input], new, inputs[_POSITIONS.get(state.kind, POSITIONS)])
            else:
                np.copyto(self.states[state.input], new)
        return {name: step.outputs[name] for name in self._host_outputs}

    def release(self) -> None:
        """Releases the device, the weights and the tables."""
        self._steps = {}
        self._tables = HostTables(self.compiled.directory, ())

    def _prepare(self, session: Any, specialization: Specialization) -> _Step:
        inputs = allocate(host_inputs(self.compiled), specialization.dims)
        taken = {one.name: one for one in session.get_inputs()}
        rows = {
            name: np.zeros(one.shape, _dtype(one.type))
            for name, one in taken.items()
            if name not in inputs and name not in self.states
        }
        outputs = {one.name: np.zeros(one.shape, _dtype(one.type)) for one in session.get_outputs()}
        binding = session.io_binding()
        # The session owns the buffers and binds their addresses; the caches are read where they are.
        for name, buffer in (*inputs.items(), *rows.items(), *self.states.items()):
            if name in taken:  # Token ids whose only reader was a table are not.
                binding.bind_input(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        for name, buffer in outputs.items():
            binding.bind_output(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        return _Step(session=session, binding=binding, inputs=inputs, rows=rows, outputs=outputs)


def _load(compiled: CompiledModel, specialization: Specialization, soc: targets.Soc, options: HtpRuntimeOptions) -> Any:
    import onnxruntime as ort

    program = compiled.program
    path = compiled.path(program["graphs"][specialization.name]["file"])
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
