"""A session: a program on the card with its retained state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qaic_backend.runtime.bindings import Dims
from qaic_backend.runtime.modules import RuntimeModules
from qaic_backend.runtime.program import DeviceProgram
from qeff_framework.plugin_api import CompiledModel, ExecutionError, Specialization, TensorSpec
from qeff_framework.sessions import BaseSession, HostGraph, host_inputs, host_outputs, padding_inputs, resolve_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One specialization: the dims of every binding, and empty space for the outputs that the host reads."""

    shape: tuple[Dims, ...]
    placeholders: Mapping[int, bytes]


class QaicSession(BaseSession):
    """Runs the steps of a program on the card; its states stay there."""

    def __init__(
        self,
        compiled: CompiledModel,
        modules: RuntimeModules,
        folder: Path,
        *,
        device_ids: tuple[int, ...],
        timeout_ms: int,
    ) -> None:
        super().__init__(compiled)
        cores = int(compiled.options["num_cores"])
        #: What a step has not written, the host can send again.
        self._takes_turns = all(state.kind == "adapter" for state in compiled.states)
        self._program = DeviceProgram(
            modules,
            folder,
            device_ids=device_ids,
            cores=cores,
            timeout_ms=timeout_ms,
            takes_turns=self._takes_turns,
        )
        try:
            self._bind()
        except BaseException:
            self._program.close()
            raise
        #: A fresh activation has zeros; later the state of the last generation has to be overwritten first.
        self._state_is_fresh, self._overwrite_state = True, False
        #: Contents of states that the next step takes to the device, by binding.
        self._written: dict[int, bytes] = {}
        #: Contents of the states of a program that takes turns, by binding; an activation has zeros for those that are not here.
        self._retained: dict[int, bytes] = {}
        self.info = {
            "device": "Cloud AI " + (", ".join(f"QID {qid}" for qid in device_ids) or "chosen by the runtime"),
            "simulator": "no",
            "runtime": "qaicrt",
            "cores": str(cores),
        }

    def run_step(self, specialization: Specialization, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Sends the inputs, and zeros for the states after `reset`, and waits for the outputs."""
        results = self._run(specialization, inputs, {})
        return {
            name: results[binding.index].astype(self._dtypes[name], copy=False)
            for name, binding in self._outputs.items()
        }

    def _run(
        self, specialization: Specialization, inputs: Mapping[str, Array], more: Mapping[int, bytes]
    ) -> Mapping[int, Array]:
        """The outputs of a step by binding: those that the host reads, and those that `more` has placeholders for."""
        step = self._steps[specialization.name]
        contents = {**step.placeholders, **more}
        for name, binding in self._inputs.items():
            contents[binding.index] = np.ascontiguousarray(inputs[name], dtype=binding.dtype).tobytes()
        for binding, compute in self._computed:
            contents[binding.index] = np.ascontiguousarray(compute(inputs), dtype=binding.dtype).tobytes()
        if self._overwrite_state:
            sizes = self._program.description
            contents.update(
                {
                    one.index: bytes(sizes.bytes_of(one.index, step.shape))
                    for name, one in self._state_inputs.items()
                    if name not in self._adapters
                }
            )
        contents.update(self._written)
        self._state_is_fresh = False
        results = self._program.step(step.shape, contents, self._retained)
        self._overwrite_state = False
        self._written = {}
        return results

    def clear_states(self) -> None:
        """The next step writes zeros over the states before it runs."""
        self._overwrite_state = not self._state_is_fresh
        kept = {self._state_inputs[name].index for name in self._adapters}
        self._written = {index: content for index, content in self._written.items() if index in kept}

    def fetch_states(self, names: Sequence[str]) -> dict[str, Array]:
        """Reads the states beside the outputs of a step of padding, which leaves them as they are."""
        self._check_readable(names)
        specialization = self.specializations[-1]
        step, description = self._steps[specialization.name], self._program.description
        asked = {name: self._state_outputs[name] for name in names}
        space = {one.index: bytes(description.bytes_of(one.index, step.shape)) for one in asked.values()}
        results = self._run(specialization, padding_inputs(self.compiled, specialization.dims), space)
        dtypes = {spec.name: np.dtype(spec.dtype) for spec in self.compiled.inputs}
        return {name: results[one.index].astype(dtypes[name]) for name, one in asked.items()}

    def replace_states(self, states: Mapping[str, Array]) -> None:
        """The next step takes them to the device."""
        self._check_readable(states)
        for name, value in states.items():
            binding = self._state_inputs[name]
            self._written[binding.index] = np.ascontiguousarray(value, dtype=binding.dtype).tobytes()
        if self._takes_turns:
            self._retained |= self._written

    def _check_readable(self, names: Iterable[str]) -> None:
        declared = {spec.name: np.dtype(spec.dtype) for spec in self.compiled.inputs}
        packed = [name for name in names if declared[name].kind == "f" and self._state_inputs[name].dtype.kind != "f"]
        if packed:
            raise ExecutionError(
                f"qaic: the program keeps {packed[0]} as MXINT8, which has no form on the host; compile without mxint8_kv_cache"
            )

    def release(self) -> None:
        """Gives the device back."""
        self._program.close()

    def _bind(self) -> None:
        """Finds the tensors and the shapes of the artifact in the program's own description."""
        bindings = {binding.name: binding for binding in self._program.description.bindings}
        inputs, outputs = host_inputs(self.compiled), host_outputs(self.compiled)
        states = self.compiled.states
        graphs = {str(one["input"]): str(one["file"]) for one in self.compiled.program.get("host_graphs", ())}
        missing = {*(spec.name for spec in outputs), *(state.input for state in states), *graphs} - bindings.keys()
        if missing:
            raise _other_program(f"lacks {', '.join(sorted(missing))}")
        #: As the model declares them: a program may store its outputs in FP16.
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in outputs}
        # A compiler may drop an input that nothing reads.
        self._inputs = {spec.name: bindings[spec.name] for spec in inputs if spec.name in bindings}
        #: Inputs that the host computes from those of the caller.
        self._computed = [(bindings[name], HostGraph(self.compiled.path(file))) for name, file in graphs.items()]
        self._outputs = {spec.name: bindings[spec.name] for spec in outputs}
        self._state_inputs = {state.input: bindings[state.input] for state in states}
        #: States that a reset keeps.
        self._adapters = {state.input for state in states if state.kind == "adapter"}
        self._state_outputs = {state.input: bindings[state.output] for state in states if state.output in bindings}
        specs = [spec for spec in inputs if spec.name in bindings]
        self._steps = {item.name: self._step(item, specs) for item in self.specializations}

    def _step(self, specialization: Specialization, specs: Sequence[TensorSpec]) -> _Step:
        description = self._program.description
        # The device describes scalars as one element.
        wanted = {self._inputs[spec.name].index: resolve_shape(spec, specialization.dims) or (1,) for spec in specs}
        for shape in description.shapes:
            if all(shape[index] == dims for index, dims in wanted.items()):
                sizes = {one.index: description.bytes_of(one.index, shape) for one in self._outputs.values()}
                return _Step(shape=shape, placeholders={index: bytes(size) for index, size in sizes.items()})
        raise _other_program(f"has no shapes for the specialization '{specialization.name}'")


def _other_program(problem: str) -> ExecutionError:
    return ExecutionError(
        f"qaic: the program {problem}, so it is not the one of this artifact; compile the model again"
    )
