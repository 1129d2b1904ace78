"""`Context` and `Qpc`: the devices in use and an opened program file."""

from __future__ import annotations

from pathlib import Path

from ..program_description import ProgramDescription
from ..qpc_file import IO_DESCRIPTION, NETWORK_DESCRIPTION, PROGRAM_FILE, QpcError, open_qpc
from .buffers import QIDList
from .call_faults import injected_status, raise_injected
from .machine import usable_device, visible_devices
from .status import QLogLevel, QStatus
from .strict_types import require


class Context:
    """The devices that a session uses.

    Args:
        qids: device ids; without them the runtime picks among the ready devices.

    Raises:
        RuntimeError: a device is unknown, hidden, not ready or named twice; or there is none to pick.
    """

    def __init__(self, qids: QIDList | None = None) -> None:
        raise_injected("Context")
        if qids is None:
            ids = [qid for qid, device in visible_devices().items() if device.is_ready]
        else:
            ids = list(require(qids, QIDList, "Context"))
            for qid in ids:
                usable_device(qid)
        if not ids or len(set(ids)) != len(ids):
            raise RuntimeError(f"Failed to create a context for devices {ids}")
        self._qids = tuple(ids)
        self._is_automatic = qids is None

    def setLogLevel(self, level: QLogLevel) -> QStatus:
        """Accepts a level; the stand-in has nothing more to log."""
        require(level, QLogLevel, "setLogLevel")
        return injected_status("Context.setLogLevel") or QStatus.QS_SUCCESS


class Qpc:
    """An opened QPC directory. Immutable; several programs may share it.

    Raises:
        TypeError: `path` is not a `str`.
        RuntimeError: the directory has no complete program.
    """

    def __init__(self, path: str) -> None:
        raise_injected("Qpc")
        folder = Path(require(path, str, "Qpc"))
        if not folder.is_dir():
            raise RuntimeError(f"Failed to open QPC: '{folder}' is not a directory")
        try:
            self._file = open_qpc(folder / PROGRAM_FILE)
        except QpcError as error:
            raise RuntimeError(f"Failed to open QPC: {error}") from error
        self._description = ProgramDescription.from_json(self._file.read(NETWORK_DESCRIPTION))

    def getIoDescriptor(self) -> tuple[QStatus, memoryview]:
        """Status and the serialized IO descriptor."""
        status = injected_status("Qpc.getIoDescriptor")
        if status is not None:
            return status, memoryview(b"")
        return QStatus.QS_SUCCESS, memoryview(self._file.read(IO_DESCRIPTION))
