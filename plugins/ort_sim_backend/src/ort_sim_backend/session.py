"""A session: a compiled model with its retained state, run by ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from ort_sim_backend.cache_rows import CacheRows
from ort_sim_backend.mapped_tables import MappedTables, RowReader
from ort_sim_backend.options import OrtSimRuntimeOptions
from ort_sim_backend.runtime import available_cpus, is_exact, open_session, reason, session_options
from qeff_framework.plugin_api import CompiledModel, ExecutionError, InputError, Specialization, StateSpec, TensorSpec
from qeff_framework.sessions import BaseSession, allocate, host_inputs, host_outputs, resolve_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


#: Inputs of at least this size, such as what one window of layers hands on to the next, are bound where the caller has them.
#: Measured: a binding takes 3 us, a copy of so many bytes 5 us.
READ_IN_PLACE_BYTES = 1 << 18


@dataclass(frozen=True, kw_only=True)
class _Behind:
    """The buffers of the small model behind a step, see `table_tail`."""

    binding: Any
    #: What the step has told it.
    values: Mapping[str, Array]
    #: For each reader of the small model, the rows that it takes.
    looked_up: Sequence[Array]


@dataclass(frozen=True, kw_only=True)
class _Step:
    """The buffers of one specialization, bound once. A step copies small inputs in and runs: nothing is allocated."""

    binding: Any
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    #: For each reader of `OrtSession`, the rows that the step takes.
    looked_up: Sequence[Array]
    #: Rows of mapped tables that it reads.
    rows: int
    #: What runs behind it.
    behind: _Behind | None
    #: Inputs that are bound to an array of the caller of the last step.
    elsewhere: set[str] = field(default_factory=set)
    #: Where the rows of the caches begin that are bound; empty until the first step.
    first_row: list[int] = field(default_factory=list)

    def feed(self, inputs: Mapping[str, Array]) -> None:
        """Makes the binding read `inputs`, which must stay as they are until the step has run."""
        for name, buffer in self.inputs.items():
            value = inputs[name]
            if value.nbytes >= READ_IN_PLACE_BYTES and value.flags.c_contiguous and value.flags.aligned:
                _bind_input(self.binding, name, value)
                self.elsewhere.add(name)
                continue
            if name in self.elsewhere:
                _bind_input(self.binding, name, buffer)
                self.elsewhere.remove(name)
            np.copyto(buffer, value)


class OrtSession(BaseSession):
    """Runs the steps of a program; its states lie in buffers that never move."""

    def __init__(self, compiled: CompiledModel, options: OrtSimRuntimeOptions) -> None:
        super().__init__(compiled)
        _check_exactness(compiled)
        threads = options.num_threads or min(int(compiled.options["num_cores"]), available_cpus())
        self._session: Any = _load(compiled, threads, compiled.program["model"], pack_weights=options.pack_weights)
        in_place = frozenset(compiled.program["in_place"])
        #: Caches of which a step is given the rows that `batch_index` names; programs of older versions have none.
        self._of_rows = frozenset(compiled.program.get("rows_of_step", ()))
        roomy = frozenset(compiled.program.get("roomy", ()))  # programs of older versions have none
        room = max((item.dims.get("seq_len", 1) for item in compiled.specializations), default=1) - 1
        #: What is bound for a state: the state itself, or a longer buffer of which it is the front part.
        self._buffers = {
            name: _with_room(state, room) if name in roomy else state for name, state in self.states.items()
        }
        self.states.update(
            {
                name: buffer[:, :, : self.states[name].shape[2]]
                for name, buffer in self._buffers.items()
                if name in roomy
            }
        )
        self._rows = CacheRows([self._buffers[name] for name in self._of_rows]) if self._of_rows else None
        self._in_place = [state for state in compiled.states if state.input in in_place]
        self._alternating = [state for state in compiled.states if state.input not in in_place]
        #: Second buffers of the states that cannot be overwritten while they are read; the two change places after each step.
        self._next_states = {state.input: self.states[state.input].copy() for state in self._alternating}
        #: Tokens of each row ``[B]``, where a state holds the last ones alone; `None` without such a state.
        self._lengths = _lengths(compiled)
        #: Programs of older versions have none, and leave theirs to ONNX Runtime.
        self._tables = _tables(compiled)
        self._readers = _readers(compiled, compiled.program.get("rows", ()))
        self._tail: Mapping[str, Any] = compiled.program.get("tail", {})
        self._tail_readers = _readers(compiled, self._tail.get("rows", ()))
        # It has little to compute; two groups of threads would be in each other's way.
        self._tail_session: Any = _load(compiled, 1, self._tail["model"]) if self._tail else None
        #: Memory of the outputs, which steps share: they are valid until the next one.
        self._results = _largest(host_outputs(compiled), self.specializations)
        self._steps = {item.name: self._prepare(item) for item in self.specializations}
        self.info = {
            "device": "CPU",
            "simulator": "yes",
            "runtime": f"onnxruntime {ort.__version__}",
            "threads": str(threads),
        }

    def run_step(self, specialization: Specialization, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Runs the step over the inputs: small ones are copied, large ones read where they lie."""
        step = self._steps[specialization.name]
        lengths = None if self._lengths is None else lengths_after(self._lengths, inputs["position_ids"])
        if self._rows is not None:
            self._place_rows(self._rows, step, inputs)
        step.feed(inputs)
        for reader, rows in zip(self._readers, step.looked_up, strict=True):
            reader.read(inputs[reader.numbers], rows)
        for state in self._alternating:
            _bind_input(step.binding, state.input, self.states[state.input])
            _bind_output(step.binding, state.output, self._next_states[state.input])
        try:
            with nullcontext() if self._tables is None else self._tables.reading(step.rows):
                self._session.run_with_iobinding(step.binding)
            if step.behind is not None:
                for reader, rows in zip(self._tail_readers, step.behind.looked_up, strict=True):
                    reader.read(step.behind.values[reader.numbers], rows)
                self._tail_session.run_with_iobinding(step.behind.binding)
        except ExecutionError:
            raise
        except Exception as error:
            raise ExecutionError(f"ONNX Runtime failed in a step: {reason(error)}") from error
        self._lengths = lengths
        for name in self._next_states:
            self.states[name], self._next_states[name] = self._next_states[name], self.states[name]
        return step.outputs

    def _place_rows(self, rows: CacheRows, step: _Step, inputs: Mapping[str, Array]) -> None:
        """Binds that part of the caches which holds the rows of the step."""
        index = inputs["batch_index"][:, 0].tolist()
        first = rows.arrange(index)
        rows.written(first, inputs["position_ids"])
        if step.first_row == [first]:
            return
        for state in self._in_place:
            if state.input in self._of_rows:
                _bind_state(step.binding, state, self._buffers[state.input][first : first + len(index)])
        step.first_row[:] = [first]

    def clear_states(self) -> None:
        """Makes every state zero, and every row empty."""
        super().clear_states()
        self._lengths = _lengths(self.compiled)
        if self._rows is not None:
            self._rows.clear()

    def fetch_states(self, names: Sequence[str]) -> dict[str, Array]:
        """Copies of retained states, the rows of their caches in order."""
        found = super().fetch_states([name for name in names if name not in self._of_rows])
        if self._rows is not None:
            places = self._rows.places
            found |= {name: self.states[name][places] for name in names if name in self._of_rows}
        return {name: found[name] for name in names}

    def replace_states(self, states: Mapping[str, Array]) -> None:
        """Takes over what another session has kept; how many tokens a row then has is for the caller to know."""
        if self._rows is not None:
            for name in self._of_rows & states.keys():
                self.states[name][self._rows.places] = states[name]
            self._rows.fill()
        super().replace_states({name: value for name, value in states.items() if name not in self._of_rows})
        if self._lengths is not None:
            self._lengths.fill(_UNKNOWN)

    def release(self) -> None:
        """Frees the weights and the buffers."""
        self._session, self._steps, self._next_states, self._buffers, self._results = None, {}, {}, {}, {}
        self._tables, self._tail_session = None, None
        for reader in (*self._readers, *self._tail_readers):
            reader.close()
        self._readers, self._tail_readers = [], []

    def _prepare(self, specialization: Specialization) -> _Step:
        inputs = allocate(host_inputs(self.compiled), specialization.dims)
        outputs = {
            spec.name: _front(self._results[spec.name], resolve_shape(spec, specialization.dims))
            for spec in host_outputs(self.compiled)
        }
        binding = self._session.io_binding()
        for name, buffer in inputs.items():
            _bind_input(binding, name, buffer)
        behind = self._prepare_behind(specialization, outputs) if self._tail else None
        # What the small model writes, the large one does not.
        of_large = outputs if behind is None else {**outputs, **behind.values}
        for name, buffer in of_large.items():
            if name not in self._tail.get("written_over", ()):
                _bind_output(binding, name, buffer)
        for state in self._in_place:
            if state.input not in self._of_rows:
                _bind_state(binding, state, self._buffers[state.input])
        looked_up = [reader.buffer(inputs[reader.numbers]) for reader in self._readers]
        for reader, buffer in zip(self._readers, looked_up, strict=True):
            _bind_input(binding, reader.rows, buffer)
        if self._tables is not None:
            for name, table in self._tables.arrays.items():
                _bind_input(binding, name, table)
        rows = _rows_of_tables(self.compiled, specialization)
        return _Step(binding=binding, inputs=inputs, outputs=outputs, looked_up=looked_up, rows=rows, behind=behind)

    def _prepare_behind(self, specialization: Specialization, outputs: Mapping[str, Array]) -> _Behind:
        specs = [TensorSpec(**{**value, "shape": tuple(value["shape"])}) for value in self._tail["values"]]
        values = {
            **allocate(specs, specialization.dims),
            **{value: outputs[result] for result, value in self._tail["written_over"].items()},
        }
        binding = self._tail_session.io_binding()
        read = [value.name for value in self._tail_session.get_inputs()]
        for name in values.keys() & set(read):
            _bind_input(binding, name, values[name])
        looked_up = [reader.buffer(values[reader.numbers]) for reader in self._tail_readers]
        for reader, buffer in zip(self._tail_readers, looked_up, strict=True):
            _bind_input(binding, reader.rows, buffer)
        for result in self._tail["written_over"]:
            _bind_output(binding, result, outputs[result])
        return _Behind(binding=binding, values=values, looked_up=looked_up)


def _largest(specs: Sequence[TensorSpec], specializations: Sequence[Specialization]) -> dict[str, Array]:
    """For each of `specs`, room for the largest of the specializations."""
    sizes = {spec.name: max(math.prod(resolve_shape(spec, item.dims)) for item in specializations) for spec in specs}
    return {spec.name: np.zeros(sizes[spec.name], spec.dtype) for spec in specs}


def _front(room: Array, shape: tuple[int, ...]) -> Array:
    front: Array = room[: math.prod(shape)].reshape(shape)
    return front


def _load(compiled: CompiledModel, threads: int, name: str, *, pack_weights: bool = True) -> ort.InferenceSession:
    model = compiled.path(name)
    # Programs of older versions do not tell.
    level = "layout" if compiled.program.get("layout_of_cpu") else "none"
    options = session_options(optimization_level=level, threads=threads, pack_weights=pack_weights)
    try:
        return open_session(model, options)
    except Exception as error:
        raise ExecutionError(f"ONNX Runtime cannot load {model}: {reason(error)}") from error


def _check_exactness(compiled: CompiledModel) -> None:
    """Refuses a program whose products this CPU would compute wrongly, without a word."""
    # Programs without such products have no probe.
    probe = compiled.program.get("probe")
    if probe and not is_exact(compiled.path(probe)):
        raise ExecutionError(
            "this CPU's products of 8-bit numbers do not hold the sums of this program: compile the model again on this machine, "
            "with rebuild=True where the store is shared; if it is refused again, with precision='fp32'"
        )


def _tables(compiled: CompiledModel) -> MappedTables | None:
    places = compiled.program.get("tables")
    if not places:
        return None
    file = compiled.path(compiled.program["tables_file"])
    rows = min(_rows_of_tables(compiled, item) for item in compiled.specializations)
    try:
        return MappedTables(file, places, rows)
    except OSError as error:
        raise ExecutionError(f"{file} cannot be mapped: {error}") from error


def _readers(compiled: CompiledModel, places: Sequence[Mapping[str, Any]]) -> list[RowReader]:
    if not places:
        return []
    file = compiled.path(compiled.program["tables_file"])
    try:
        return [RowReader(file, place) for place in places]
    except OSError as error:
        raise ExecutionError(f"{file} cannot be read: {error}") from error


def _rows_of_tables(compiled: CompiledModel, specialization: Specialization) -> int:
    """Those of the best tokens that a ranked product looks up; in programs of older versions those of the tokens as well."""
    dims = specialization.dims
    best: int = compiled.program.get("ranked_tokens", 0) * dims.get("num_logits_to_keep", 1)
    tokens = 0 if "rows" in compiled.program else dims.get("seq_len", 1)
    return dims.get("batch_size", 1) * (tokens + best)


#: Stands for the number of tokens of a row whose states were written from outside.
_UNKNOWN = -1


def _lengths(compiled: CompiledModel) -> NDArray[np.int64] | None:
    if all(state.kind != "window" for state in compiled.states):
        return None
    return np.zeros(compiled.specializations[0].dims["batch_size"], np.int64)


def lengths_after(lengths: NDArray[np.int64], position_ids: NDArray[Any]) -> NDArray[np.int64]:
    """Tokens of each row ``[B]`` after a step of the tokens ``[B, S]``; any may follow where `lengths` is unknown.

    Raises `InputError` for tokens that neither begin a text nor follow those that the row has: a cache of a window holds its
    last tokens, wherever the next ones stand.
    """
    first, count = position_ids[:, 0], (position_ids >= 0).sum(axis=1)
    wrong = (count > 0) & (first > 0) & (first != lengths) & (lengths != _UNKNOWN)
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"row {row} of position_ids begins at {int(first[row])}, and the row has {int(lengths[row])} tokens: the program "
            "keeps a window of the last tokens in some of its caches, so tokens are appended to a row, or it begins anew at 0"
        )
    return np.where(count > 0, first + count, lengths)


def _with_room(state: Array, room: int) -> Array:
    """Zeros like the cache ``[B, H, C, D]`` with more slots: a chunk may begin in the last one, see `states_with_room`."""
    batch, heads, slots, dim = state.shape
    return np.zeros((batch, heads, slots + room, dim), state.dtype)


# The session owns the buffers and binds their addresses. An OrtValue made from an array would share its memory without keeping it
# alive.
def _bind_input(binding: Any, name: str, buffer: Array) -> None:
    binding.bind_input(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)


def _bind_state(binding: Any, state: StateSpec, buffer: Array) -> None:
    """One buffer for the old and the new value."""
    _bind_input(binding, state.input, buffer)
    _bind_output(binding, state.output, buffer)


def _bind_output(binding: Any, name: str, buffer: Array) -> None:
    binding.bind_output(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
