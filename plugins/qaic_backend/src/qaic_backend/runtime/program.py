"""A program on its devices: loading, activation, and one step at a time. Every status of the runtime is looked at."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
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
#: The name of the time limit differs between SDKs.
_TIMEOUT_NAMES = ("dataPathTimeoutMs", "SubmitRetryTimeoutMs")


class DeviceProgram:
    """A loaded and activated program. Its constructor leaves nothing activated when it fails."""

    def __init__(
        self, modules: RuntimeModules, folder: Path, *, device_ids: Sequence[int], cores: int, timeout_ms: int
    ) -> None:
        self._rt = modules.qaicrt
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
        self._check(self._program.activate(), f"activating the program, which needs {self._cores} cores on each device")
        try:
            self._exec_object = self._rt.ExecObj(self._context, self._program)
        except Exception as error:
            advice = f". {_ADVICE[7][0].upper()}{_ADVICE[7][1:]}" if _NO_CORES in str(error) else ""
            raise ExecutionError(
                f"qaic: activating the program, which needs {self._cores} cores on each device, failed: {error}{advice}"
            ) from error

    def step(self, shape: Sequence[Dims], contents: dict[int, bytes]) -> dict[int, np.ndarray[Any, np.dtype[Any]]]:
        """Runs one step and returns the outputs that `contents` has placeholders for.

        `contents` holds the bytes of inputs and placeholders of outputs by binding index; a binding without an entry is skipped:
        retained state then stays on the device. Raises `ExecutionError` when the device fails.
        """
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
        # The object that runs steps must be gone before the program is deactivated.
        self._exec_object = None
        program, self._program = self._program, None
        if program is not None:
            self._check(program.deactivate(), "deactivating the program")

    def _check(self, status: object, action: str) -> None:
        if status == self._rt.QStatus.QS_SUCCESS:
            return
        code = status_code(status)
        advice = _ADVICE.get(code or 0, "")
        text = f"qaic: {action} failed with {status_name(status)}" + (f": {advice}" if advice else "")
        raise BackendUnavailableError(text) if code in _UNAVAILABLE else ExecutionError(text)


def _devices(ids: Sequence[int]) -> str:
    return f"device {', '.join(map(str, ids))}" if ids else "a device"
