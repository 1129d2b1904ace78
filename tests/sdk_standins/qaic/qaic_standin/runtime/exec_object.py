"""`ExecObj` and `Queue`: arming, running and reading back (rows R7, R8, R12, R13, R14)."""

from __future__ import annotations

import math
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..program_description import MXINT8, Binding
from .activation import Activation
from .buffers import BufferDimensionsVecRef, QBuffer
from .call_faults import injected_status, raise_injected
from .context import Context
from .program import Program
from .properties import QueueProperties
from .shape_match import HostBuffer
from .status import QStatus
from .strict_types import require


@dataclass(eq=False)
class _Flight:
    """One submitted run. Holds no ExecObj, so that dropping the ExecObj is enough to end its life."""

    activation: Activation
    buffers: list[HostBuffer]
    landed: Callable[[], None]
    status: QStatus = QStatus.QS_ERROR
    outputs: list[bytes] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def fly(self) -> None:
        try:
            status = injected_status("execute")
            if status is None:
                self.status, self.outputs = self.activation.execute(self.buffers)
            else:
                self.status = status
        except RuntimeError:
            self.status = QStatus.QS_DEV_ERROR
        finally:
            self.landed()
            self.done.set()


class ExecObj:
    """One set of buffers of a program. Creating it activates a program that is not active.

    Raises:
        RuntimeError: the program cannot be activated, for example `QAIC_ERROR_NSP_ALLOC_FAILED`.
    """

    def __init__(self, context: Context, program: Program) -> None:
        require(context, Context, "ExecObj")
        self._program = require(program, Program, "ExecObj")
        raise_injected("ExecObj")
        self._buffers: list[HostBuffer] | None = None
        self._flight: _Flight | None = None
        self._result: _Flight | None = None
        program._adopt(self)

    def setData(self, buffers: list[QBuffer], dims: BufferDimensionsVecRef) -> QStatus:
        """Give one buffer per binding, with its dims. Shapes are looked at later, by `waitForCompletion`.

        QS_INVAL when the number of buffers is wrong, a buffer's length does not agree with its own dims, or the program does
        not run; QS_BUSY for an ExecObj that was not waited for.
        """
        require(dims, BufferDimensionsVecRef, "setData")
        for buffer in require(buffers, list, "setData"):
            require(buffer, QBuffer, "setData")
        if len(buffers) != len(self._bindings) or len(dims) != len(self._bindings):
            return self._arm(None)
        return self._arm(
            [
                HostBuffer(data=bytes(buffer), element_size=size, dims=tuple(shape))
                for buffer, (size, shape) in zip(buffers, dims, strict=True)
            ]
        )

    def waitForCompletion(self) -> QStatus:
        """Wait for the enqueued run. QS_INVAL without one; QS_TIMEDOUT leaves the run in flight."""
        if self._program._running() is None or self._flight is None:
            return QStatus.QS_INVAL
        if not self._flight.done.wait(self._program._properties._timeout_seconds()):
            return QStatus.QS_TIMEDOUT
        finished, self._flight = self._flight, None
        status = injected_status("ExecObj.waitForCompletion") or finished.status
        self._result = finished if status is QStatus.QS_SUCCESS else None
        return status

    def getData(self) -> tuple[QStatus, list[QBuffer]]:
        """One buffer per binding after a completed run; inputs and skipped outputs are empty."""
        status = injected_status("ExecObj.getData")
        if status is not None:
            return status, []
        if self._program._running() is None or self._flight is not None or self._result is None:
            return QStatus.QS_INVAL, []
        return QStatus.QS_SUCCESS, [QBuffer(block) for block in self._result.outputs]

    @property
    def _bindings(self) -> Sequence[Binding]:
        return self._program._qpc._description.bindings

    def _submit(self) -> _Flight | QStatus:
        activation = self._program._running()
        if activation is None or self._buffers is None:
            return QStatus.QS_INVAL
        if self._flight is not None:
            return QStatus.QS_BUSY
        self._result = None
        self._program._take_off()
        self._flight = _Flight(activation=activation, buffers=self._buffers, landed=self._program._land)
        return self._flight

    def _arm(self, given: list[HostBuffer] | None) -> QStatus:
        status = injected_status("ExecObj.setData")
        if status is not None:
            return status
        if self._program._running() is None:
            return QStatus.QS_INVAL
        if self._flight is not None:
            return QStatus.QS_BUSY
        if given is None or not self._fits(given):
            return QStatus.QS_INVAL
        self._buffers = given
        return QStatus.QS_SUCCESS

    def _fits(self, given: Sequence[HostBuffer]) -> bool:
        """Whether each buffer's length agrees with its own dims; mxint8 tensors take nothing but single bytes."""
        return all(
            len(buffer.data) == buffer.element_size * math.prod(buffer.dims)
            and (buffer.is_skipped or binding.precision != MXINT8 or buffer.element_size == 1)
            for buffer, binding in zip(given, self._bindings, strict=True)
            if buffer.dims  # dims [] are for waitForCompletion to refuse
        )


class Queue:
    """Runs submitted ExecObj in the order of submission, on a thread of its own.

    Args:
        context: the devices.
        device_id: one of the context's ids; 0 is accepted for a context that the runtime filled.
    """

    def __init__(self, context: Context, device_id: int) -> None:
        require(context, Context, "Queue")
        require(device_id, int, "Queue")
        if device_id not in context._qids and not (context._is_automatic and device_id == 0):
            raise RuntimeError(f"Device {device_id} is not in the context {list(context._qids)}")
        self._jobs: queue.SimpleQueue[_Flight | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None
        weakref.finalize(self, self._jobs.put, None)

    def initProperties(self, properties: QueueProperties) -> QStatus:
        """Accepts `numThreadsPerQueue`; order stays that of submission, so one thread does the work of any number."""
        require(properties, QueueProperties, "initProperties")
        return QStatus.QS_SUCCESS if properties.numThreadsPerQueue > 0 else QStatus.QS_INVAL

    def enqueue(self, execObj: ExecObj) -> QStatus:
        """Submit; returns before the work is done. QS_BUSY for an ExecObj that was not waited for."""
        require(execObj, ExecObj, "enqueue")
        status = injected_status("Queue.enqueue")
        if status is not None:
            return status
        flight = execObj._submit()
        if isinstance(flight, QStatus):
            return flight
        if self._worker is None:
            self._worker = threading.Thread(target=_work, args=(self._jobs,), daemon=True, name="standin-queue")
            self._worker.start()
        self._jobs.put(flight)
        return QStatus.QS_SUCCESS


def _work(jobs: queue.SimpleQueue[_Flight | None]) -> None:
    while (flight := jobs.get()) is not None:
        flight.fly()
        del flight
