"""A program on its devices: loading, activation, and one step at a time. Every status of the runtime is looked at.

Programs of one process that retain nothing which a generation has written take turns on the cores of a device: where one finds
too few, others that wait for their next step are deactivated, the one that waits longest first, and activated again for that
step.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from qaic_backend.runtime.bindings import Dims, ProgramDescription, read_description
from qaic_backend.runtime.modules import RuntimeModules, status_code, status_name
from qeff_framework.plugin_api import BackendUnavailableError, ExecutionError

#: What the advice begins with where a device has no cores left.
NO_ROOM = "the device has not enough free cores or memory"
#: Status numbers of the runtime and what to do about them.
_ADVICE = {
    1: "the user must be root or in the group qaic",
    3: "the device has not enough free memory: end other programs on it, see qaic-util -q",
    5: "no such device: see qaic-util -q, QAIC_VISIBLE_DEVICES and the group qaic",
    7: f"{NO_ROOM}: end other programs on it, see 'Nsp Free' in qaic-util -q",
    9: "the step took longer than the runtime option timeout_ms allows",
    300: "the device reported an error, see the lines that the runtime has printed",
}
_UNAVAILABLE = (1, 5)
_NO_CORES = "NSP_ALLOC_FAILED"
_NO_SPACE = (3, 7)
#: The name of the time limit differs between SDKs.
_TIMEOUT_NAMES = ("dataPathTimeoutMs", "SubmitRetryTimeoutMs")


#: The activated programs of this process, the one first that waits longest. The lock is for activating.
_active: list[DeviceProgram] = []
_activating = threading.RLock()
_log = logging.getLogger(__name__)


class _NoSpaceError(ExecutionError):
    """The device has too few cores, or too little memory, that are free."""


class DeviceProgram:
    """A loaded and activated program. Its constructor leaves nothing activated when it fails.

    `takes_turns`: nothing stays on the device between two steps that `step` is not given again, so that it may be deactivated for
    another such program.
    """

    def __init__(
        self,
        modules: RuntimeModules,
        folder: Path,
        *,
        device_ids: Sequence[int],
        cores: int,
        timeout_ms: int,
        takes_turns: bool = False,
    ) -> None:
        self._rt = modules.qaicrt
        self._name = folder.parent.name
        self._takes_turns = takes_turns
        #: Held during a step.
        self._in_use = threading.RLock()
        self._cores, self._timeout_ms = cores, timeout_ms
        self._program: Any = None
        self._exec_object: Any = None
        ids = list(device_ids)
        try:
            self._context = self._rt.Context(self._rt.QIDList(ids)) if ids else self._rt.Context()
            # Without ids the runtime chooses the device, and the queue takes number 0.
            self._queue = self._rt.Queue(self._context, ids[0] if ids else 0)
        except Exception as error:
            raise BackendUnavailableError(
                f"backend 'qaic' cannot open {_devices(ids)}: {error}. {_ADVICE[5][0].upper()}{_ADVICE[5][1:]}"
            ) from error
        try:
            self._load(modules, folder, ids)
            self._activate()
        except BaseException:
            # The first failure is the one to report.
            with contextlib.suppress(Exception):
                self.close()
            raise

    def __repr__(self) -> str:
        return self._name

    def _load(self, modules: RuntimeModules, folder: Path, ids: Sequence[int]) -> None:
        try:
            qpc = self._rt.Qpc(str(folder))
        except Exception as error:
            raise ExecutionError(f"qaic: {folder} holds no program that the runtime can read: {error}") from error
        status, data = qpc.getIoDescriptor()
        self._check(status, "reading the program's description")
        self.description: ProgramDescription = read_description(modules, bytes(data))
        properties = self._rt.QAicProgramProperties()
        self._set_timeout(properties)
        device: int | None = None
        if len(ids) > 1:
            properties.devMapping = ":".join(map(str, ids))
        elif ids:
            device = ids[0]
        try:
            self._program = self._rt.Program(self._context, device, qpc, properties)
        except Exception as error:
            raise ExecutionError(f"qaic: the runtime refuses the program: {error}") from error
        self._check(self._program.load(), f"loading the program on {_devices(ids)}")

    def _set_timeout(self, properties: Any) -> None:
        for name in _TIMEOUT_NAMES:
            if hasattr(properties, name):
                setattr(properties, name, self._timeout_ms)
                return

    def _activate(self) -> None:
        """Takes cores; raises `ExecutionError` where no program that waits can give some."""
        with _activating:
            while True:
                try:
                    self._take_cores()
                except _NoSpaceError:
                    if not self._takes_turns or not _make_space(self):
                        raise
                else:
                    _active.append(self)
                    return

    def _take_cores(self) -> None:
        self._check(self._program.activate(), f"activating the program, which needs {self._cores} cores on each device")
        try:
            self._exec_object = self._rt.ExecObj(self._context, self._program)
        except Exception as error:
            no_space = _NO_CORES in str(error)
            advice = f". {_ADVICE[7][0].upper()}{_ADVICE[7][1:]}" if no_space else ""
            kind = _NoSpaceError if no_space else ExecutionError
            with contextlib.suppress(Exception):
                self._program.deactivate()
            raise kind(
                f"qaic: activating the program, which needs {self._cores} cores on each device, failed: {error}{advice}"
            ) from error

    def give_cores(self) -> bool:
        """Deactivates the program until its next step, unless a step is running or it takes no turns; says whether it did."""
        if not self._takes_turns or not self._in_use.acquire(blocking=False):
            return False
        try:
            self._deactivate()
        finally:
            self._in_use.release()
        return True

    def step(
        self, shape: Sequence[Dims], contents: Mapping[int, bytes], retained: Mapping[int, bytes] = MappingProxyType({})
    ) -> dict[int, np.ndarray[Any, np.dtype[Any]]]:
        """Runs one step and returns the outputs that `contents` has placeholders for.

        `contents` holds the bytes of inputs and placeholders of outputs by binding index; a binding without an entry is skipped:
        retained state then stays on the device. `retained` holds what a program that takes turns has there, which is gone when
        it was deactivated since its last step. Raises `ExecutionError` when the device fails.
        """
        with self._in_use:
            if self._exec_object is None:
                self._activate()
                contents = {**retained, **contents}
            results = self._step(shape, contents)
            with _activating:
                _active.remove(self)
                _active.append(self)
            return results

    def _step(self, shape: Sequence[Dims], contents: Mapping[int, bytes]) -> dict[int, np.ndarray[Any, np.dtype[Any]]]:
        rt, bindings = self._rt, self.description.bindings
        buffers = [rt.QBuffer(contents.get(binding.index, b"")) for binding in bindings]
        dims = rt.BufferDimensionsVecRef(
            [
                (binding.dtype.itemsize, list(shape[binding.index]) if binding.index in contents else [0])
                for binding in bindings
            ]
        )
        self._check(self._exec_object.setData(buffers, dims), "handing over the buffers of a step")
        self._check(self._queue.enqueue(self._exec_object), "starting a step")
        self._check(self._exec_object.waitForCompletion(), "running a step")
        status, blocks = self._exec_object.getData()
        self._check(status, "reading the results of a step")
        return {
            binding.index: np.frombuffer(bytes(blocks[binding.index]), binding.dtype).reshape(shape[binding.index])
            for binding in bindings
            if not binding.is_input and binding.index in contents
        }

    def close(self) -> None:
        """Gives the cores back. Idempotent.

        Raises:
            ExecutionError: the runtime does not let go of the device.
        """
        self._deactivate()
        self._program = None

    def _deactivate(self) -> None:
        with _activating:
            if self in _active:
                _active.remove(self)
        # The object that runs steps must be gone before the program is deactivated.
        self._exec_object = None
        if self._program is not None:
            self._check(self._program.deactivate(), "deactivating the program")

    def _check(self, status: object, action: str) -> None:
        if status == self._rt.QStatus.QS_SUCCESS:
            return
        code = status_code(status)
        advice = _ADVICE.get(code or 0, "")
        text = f"qaic: {action} failed with {status_name(status)}" + (f": {advice}" if advice else "")
        if code in _UNAVAILABLE:
            raise BackendUnavailableError(text)
        raise _NoSpaceError(text) if code in _NO_SPACE else ExecutionError(text)


def _make_space(wanting: DeviceProgram) -> bool:
    """Deactivates one program that waits; says whether there was one."""
    for program in _active:
        if program is not wanting and program.give_cores():
            _log.info("%s gives its cores to %s; with a smaller num_cores both stay on the device", program, wanting)
            return True
    return False


def _devices(ids: Sequence[int]) -> str:
    return f"device {', '.join(map(str, ids))}" if ids else "a device"
