"""`Program`: a QPC on its devices (rows R3, R4, R5)."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Sequence
from enum import Enum

from ..device_state import NspAllocationError, allocate, release
from ..layout import installed
from .activation import Activation
from .call_faults import injected_status
from .context import Context, Qpc
from .executor import Executor
from .machine import log_event, usable_device
from .properties import ProgramProperties
from .status import QStatus
from .strict_types import require

NSP_ALLOCATION_FAILED = "QAIC_ERROR_NSP_ALLOC_FAILED: Failed to allocate NSP resources"


class _State(Enum):
    INIT = "init"
    LOADED = "loaded"
    ACTIVE = "active"
    # Deactivation was asked for while an ExecObj was alive: nothing runs any more, the NSPs are still taken.
    CLOSING = "closing"


class Program:
    """A program for one device (`dev`, or the context's first) or several (`devMapping` in the properties).

    Both call forms of the real bindings work: `Program(context, dev, qpc, properties)`, and
    `Program(context, qpcObj=qpc)` followed by `initProperties(properties)`.
    """

    def __init__(
        self,
        context: Context,
        dev: int | None = None,
        qpcObj: Qpc | None = None,
        properties: ProgramProperties | None = None,
    ) -> None:
        self._context = require(context, Context, "Program")
        self._dev = None if dev is None else require(dev, int, "Program")
        self._qpc = require(qpcObj, Qpc, "Program")
        self._properties = ProgramProperties()
        self._state = _State.INIT
        self._qids: tuple[int, ...] = ()
        self._executor: Executor | None = None
        self._activation: Activation | None = None
        self._exec_objects: weakref.WeakSet[object] = weakref.WeakSet()
        self._flights = 0
        self._flights_lock = threading.Lock()
        if properties is not None:
            self.initProperties(properties)

    def initProperties(self, properties: ProgramProperties) -> QStatus:
        """Set the properties; only before `load`."""
        require(properties, ProgramProperties, "initProperties")
        if self._state is not _State.INIT:
            return QStatus.QS_INVAL
        self._properties = properties
        return QStatus.QS_SUCCESS

    def load(self) -> QStatus:
        """Choose the devices and load the program."""
        status = injected_status("Program.load")
        if status is not None:
            return status
        if self._state is not _State.INIT:
            return QStatus.QS_INVAL
        try:
            self._qids = self._chosen_devices()
        except RuntimeError as error:
            sys.stderr.write(f"[standin][error] Failed to load program: {error}\n")
            return QStatus.QS_INVAL
        description = self._qpc._description
        if description.is_encrypted:
            sys.stderr.write("[standin][error] Failed to load program: encrypted IO is not supported\n")
            return QStatus.QS_UNSUPPORTED
        try:
            self._executor = Executor(self._qpc._file, description)
        except Exception as error:  # noqa: BLE001 -- whatever the graph runtime refuses is a failed load
            sys.stderr.write(f"[standin][error] Failed to load program: {error}\n")
            return QStatus.QS_ERROR
        self._state = _State.LOADED
        log_event("Program.load", qids=list(self._qids))
        return QStatus.QS_SUCCESS

    def activate(self) -> QStatus:
        """Take NSPs on every device; the retained state of the new activation is zero."""
        status = injected_status("Program.activate")
        if status is not None:
            return status
        if self._state is not _State.LOADED or self._executor is None:
            return QStatus.QS_INVAL
        description = self._qpc._description
        cores = dict(zip(self._qids, description.cores_per_device, strict=True))
        try:
            handle = allocate(installed(), cores)
        except NspAllocationError as error:
            sys.stderr.write(f"[standin][error] Failed to activate program: {error}\n")
            return QStatus.QS_NOSPC
        self._activation = Activation(description, self._executor, handle, self._qids)
        self._state = _State.ACTIVE
        log_event("Program.activate", qids=list(self._qids))
        return QStatus.QS_SUCCESS

    def deactivate(self) -> QStatus:
        """Give the NSPs back. Fails with QS_BUSY while an ExecObj lives or work is in flight; a second call is tolerated.

        After a QS_BUSY the program runs nothing any more, and its NSPs stay taken until a later call succeeds.
        """
        status = injected_status("Program.deactivate")
        if status is not None:
            return status
        if self._activation is None:
            return QStatus.QS_SUCCESS
        if len(self._exec_objects) or self._flights:
            self._state = _State.CLOSING
            sys.stderr.write("[standin][error] Program deactivated while an ExecObj is alive\n")
            return QStatus.QS_BUSY
        release(installed(), self._activation.handle)
        self._activation = None
        self._state = _State.LOADED
        log_event("Program.deactivate", qids=list(self._qids))
        return QStatus.QS_SUCCESS

    def unload(self) -> QStatus:
        """Undo `load`; only while not activated."""
        status = injected_status("Program.unload")
        if status is not None:
            return status
        if self._activation is not None:
            return QStatus.QS_BUSY
        self._executor = None
        self._state = _State.INIT
        return QStatus.QS_SUCCESS

    def _running(self) -> Activation | None:
        """The activation, if calls are accepted."""
        return self._activation if self._state is _State.ACTIVE else None

    def _adopt(self, exec_object: object) -> None:
        """Register an ExecObj; loads and activates a program that was not.

        Raises:
            RuntimeError: the program cannot be loaded or activated.
        """
        if self._state is _State.INIT and self.load() is not QStatus.QS_SUCCESS:
            raise RuntimeError("Failed to load program")
        if self._state is _State.LOADED:
            status = self.activate()
            if status is QStatus.QS_NOSPC:
                raise RuntimeError(NSP_ALLOCATION_FAILED)
            if status is not QStatus.QS_SUCCESS:
                raise RuntimeError(f"Failed to activate program: {status.name}")
        if self._state is not _State.ACTIVE:
            raise RuntimeError("Program is being deactivated")
        self._exec_objects.add(exec_object)

    def _take_off(self) -> None:
        with self._flights_lock:
            self._flights += 1

    def _land(self) -> None:
        with self._flights_lock:
            self._flights -= 1

    def _chosen_devices(self) -> tuple[int, ...]:
        count = self._qpc._description.device_count
        mapping = self._properties.devMapping
        if mapping:
            qids = _mapped_devices(mapping)
            if count == 1:
                raise RuntimeError(f"devMapping '{mapping}' given for a program of one device")
            if len(qids) != count:
                raise RuntimeError(f"devMapping '{mapping}' names {len(qids)} devices, the program needs {count}")
            if self._dev is not None:
                raise RuntimeError("A device id was given together with devMapping")
        elif count > 1:
            raise RuntimeError(f"The program needs {count} devices and no devMapping was given")
        else:
            qids = [self._context._qids[0] if self._dev is None else self._dev]
        self._check_devices(qids)
        return tuple(qids)

    def _check_devices(self, qids: Sequence[int]) -> None:
        target = self._qpc._description.target
        for qid in qids:
            if qid not in self._context._qids:
                raise RuntimeError(f"Device {qid} is not in the context {list(self._context._qids)}")
            generation = usable_device(qid).generation
            if generation != target:
                raise RuntimeError(f"Program for {target}, but device {qid} is {generation}")
        if len(set(qids)) != len(qids):
            raise RuntimeError(f"devMapping names a device twice: {list(qids)}")


def _mapped_devices(mapping: str) -> list[int]:
    parts = mapping.split(":")
    if not all(part.isdecimal() for part in parts):
        raise RuntimeError(f"devMapping '{mapping}' is not of the form '0:1:2'")
    return [int(part) for part in parts]
