"""A session over an artifact, step by step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.plugin_api import CompiledModel, ExecutionError, InputError, TensorSpec
from QEfficient._compat.execution import load
from QEfficient._compat.notices import NotSupportedError, logger

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The output of a program of one pass has this name there.
_ENCODER_OUTPUT = "output"
#: Zeros where a step does not give it.
_SEGMENTS = "token_type_ids"


@dataclass(frozen=True)
class Binding:
    """An input or output of a program, with the sizes of its largest step."""

    name: str
    index: int
    dims: list[int]
    type: str
    dir: str
    size: int


class QAICInferenceSession:
    """A loaded program that is run step by step: ``run({"input_ids": ..., "position_ids": ...})`` returns the outputs by name.

    Retained states stay in the session and need not be skipped. Given as inputs, or with `set_buffers`, they are written before
    the next step; behind the last step they can be read by name (``outputs["past_key.0_RetainedState"]``). `activate` loads the
    program.

    Args:
        qpc_path: the artifact's directory.
        device_ids: devices, where the backend has some to choose among.
        activate: load the program at once.
        enable_debug_logs: no effect.
    """

    def __init__(
        self,
        qpc_path: str | os.PathLike[str],
        device_ids: Sequence[int] | None = None,
        activate: bool = True,
        enable_debug_logs: bool = False,
    ) -> None:
        del enable_debug_logs
        self._path = Path(qpc_path)
        self._device_ids = device_ids
        self._compiled = CompiledModel.load(self._path)
        if self._compiled.programs and not self._compiled.chained:
            raise NotSupportedError(
                f"QAICInferenceSession: {self._path} holds the programs {', '.join(self._compiled.programs)}; use the generate "
                "method of the model, or qeff_framework.load_compiled(...)"
            )
        states = self._compiled.states
        self._state_inputs = {state.input for state in states}
        self._names = self._outputs_by_name()
        largest = max(self._compiled.specializations, key=lambda each: _volume(each.dims)).dims
        specs = [*self._compiled.inputs, *self._compiled.outputs]
        inputs = len(self._compiled.inputs)
        #: Inputs, then outputs; retained states among them.
        self.bindings = [
            self._binding(spec, index, "in" if index < inputs else "out", largest) for index, spec in enumerate(specs)
        ]
        self.binding_index_map = {binding.name: binding.index for binding in self.bindings}
        #: Of each specialization: item size and dimensions of every binding, in their order. Empty for a single one.
        self.allowed_shapes = [
            [(_item_size(spec), self._shape(spec, entry.dims)) for spec in specs]
            for entry in self._compiled.specializations
        ]
        if len(self.allowed_shapes) == 1:
            self.allowed_shapes = []
        self._buffers: dict[str, NDArray[Any]] = {}
        #: States that are written before the next step.
        self._written: dict[str, NDArray[Any]] = {}
        self._last: _Outputs | None = None
        self._program: Any = None
        if activate:
            self.activate()

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def is_active(self) -> bool:
        """Whether the program is loaded."""
        return self._program is not None

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, retained states included."""
        return [binding.name for binding in self.bindings if binding.dir == "in"]

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, retained states included."""
        return [binding.name for binding in self.bindings if binding.dir == "out"]

    def _outputs_by_name(self) -> dict[str, str]:
        """What QEfficient calls each output: the first one of a program of one pass without logits is ``output``."""
        names = [spec.name for spec in self._compiled.outputs]
        renamed = {names[0]: _ENCODER_OUTPUT} if self._compiled.task == "encoder" else {}
        return {name: renamed.get(name, name) for name in names}

    def _shape(self, spec: TensorSpec, dims: Mapping[str, int]) -> list[int]:
        return [size if isinstance(size, int) else int(dims.get(size, 1)) for size in spec.shape]

    def _binding(self, spec: TensorSpec, index: int, direction: str, dims: Mapping[str, int]) -> Binding:
        shape = self._shape(spec, dims)
        size = _item_size(spec)
        for length in shape:
            size *= length
        return Binding(self._names.get(spec.name, spec.name), index, shape, spec.dtype, direction, size)

    # --- loading ------------------------------------------------------------------------------------------------------

    def activate(self) -> None:
        """Loads the program, with empty states."""
        if self._program is None:
            self._program = load(self._path, self._device_ids)

    def deactivate(self) -> None:
        """Releases the device; its states are forgotten."""
        if self._program is not None:
            self._program.close()
            self._program = None

    # --- running ------------------------------------------------------------------------------------------------------

    def set_buffers(self, buffers: Mapping[str, NDArray[Any]]) -> None:
        """Keeps inputs for the steps that follow, and states for the next one; buffers for outputs are not needed."""
        for name, value in buffers.items():
            if name not in self.binding_index_map:
                logger.warning("QAICInferenceSession: there is no input or output '%s'; it is left out", name)
            elif name in self._state_inputs:
                if getattr(value, "size", 0):
                    self._written[name] = value
                else:
                    self._written.pop(name, None)
            elif name in self.input_names:
                if getattr(value, "size", 0):
                    self._buffers[name] = value
                else:
                    self._buffers.pop(name, None)

    def skip_buffers(self, skipped_buffer_names: Iterable[str]) -> None:
        """Forgets inputs that were kept, and states that were not written yet. Retained states stay in the session anyway."""
        for name in skipped_buffer_names:
            self._buffers.pop(name, None)
            self._written.pop(name, None)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Runs one step and returns copies of its outputs. The states behind it can be read until the next step.

        Raises:
            InputError: an input is missing, or the shapes are those of no program, or not those of a state.
            ExecutionError: the session is not active.
        """
        import numpy as np

        if self._program is None:
            raise ExecutionError("QAICInferenceSession: the program is not loaded; call activate() first")
        self.set_buffers(inputs)
        wanted = {spec.name: spec for spec in self._compiled.inputs if spec.name not in self._state_inputs}
        given = dict(self._buffers)
        if _SEGMENTS in wanted and "input_ids" in given:
            # Programs of QEfficient do not have it.
            given.setdefault(_SEGMENTS, np.zeros_like(given["input_ids"]))
        missing = [name for name in wanted if name not in given]
        if missing:
            raise InputError(
                f"QAICInferenceSession.run: {', '.join(missing)} was not given, neither now nor with set_buffers"
            )
        arrays = {name: np.asarray(given[name]).astype(spec.dtype, copy=False) for name, spec in wanted.items()}
        session = self._program.session
        if self._written:
            specs = {spec.name: spec for spec in self._compiled.inputs}
            session.write_states(
                {name: np.asarray(value).astype(specs[name].dtype) for name, value in self._written.items()}
            )
            self._written = {}
        outputs = session.run(arrays)
        if self._last is not None:
            self._last.expire()
        states = {state.output: state.input for state in self._compiled.states}
        self._last = _Outputs({self._names[name]: np.array(value) for name, value in outputs.items()}, session, states)
        return self._last


class _Outputs(dict[str, Any]):
    """The outputs of a step; the states behind it are read when they are asked for, until the next step has run."""

    def __init__(self, outputs: Mapping[str, Any], session: Any, states: Mapping[str, str]) -> None:
        super().__init__(outputs)
        self._session = session
        #: The input of each state by the name of its output.
        self._states = states

    def expire(self) -> None:
        """Another step has run."""
        self._session = None

    def __missing__(self, name: str) -> Any:
        if name not in self._states:
            raise KeyError(name)
        if self._session is None:
            raise NotSupportedError(
                f"QAICInferenceSession: the state '{name}' has changed in a later step; read it before that, or from its outputs"
            )
        self[name] = self._session.read_states([self._states[name]])[self._states[name]]
        return self[name]


def _volume(dims: Mapping[str, int]) -> int:
    return dims.get("seq_len", 1) * dims.get("batch_size", 1)


def _item_size(spec: TensorSpec) -> int:
    import numpy as np

    return int(np.dtype(spec.dtype).itemsize)


def is_retained_state_name(name: str) -> bool:
    """Whether an input or output is a retained state, by its name."""
    return name.startswith("past_") or name.endswith("_RetainedState")
