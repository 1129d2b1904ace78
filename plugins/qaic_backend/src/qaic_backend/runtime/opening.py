"""From a compiled model to a session: is there a program, and on which devices does it run?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qaic_backend.devices import choose_group, query_devices
from qaic_backend.options import QaicRuntimeOptions
from qaic_backend.sdk import PROGRAM_FILE, find_sdk
from qaic_backend.windows import room_of_windows, window_of
from qeff_framework.plugin_api import BackendUnavailableError, CompiledModel, ExecutionError, OptionError
from qeff_framework.toolchains import ProbeError

if TYPE_CHECKING:
    from qaic_backend.runtime.session import QaicSession


def open_session(compiled: CompiledModel, options: QaicRuntimeOptions) -> QaicSession:
    """Loads the program on its devices and activates it.

    Raises:
        BackendUnavailableError: no runtime, or no usable device.
        ExecutionError: there is no program, or the device refuses it.
        OptionError: `device_ids` do not fit the program.
    """
    from qaic_backend.runtime.modules import load_modules
    from qaic_backend.runtime.program import NO_ROOM
    from qaic_backend.runtime.session import QaicSession

    folder = compiled.path(compiled.program["folder"])
    if not (folder / PROGRAM_FILE).is_file():
        raise ExecutionError(
            f"{compiled.directory} holds no program: it is the bundle of a dry run. Run its compile.sh on a machine with the "
            "Apps SDK, or compile without dry_run"
        )
    modules = load_modules()
    number, windows = window_of(compiled.metadata)
    try:
        return QaicSession(
            compiled,
            modules,
            folder,
            device_ids=_devices(options.device_ids, compiled.options, number, windows),
            timeout_ms=options.timeout_ms,
        )
    except ExecutionError as error:
        if windows == 1 or NO_ROOM not in str(error):
            raise
        raise ExecutionError(f"{error}. {room_of_windows(windows, compiled.options)}") from error


def _devices(asked: tuple[int, ...], compiled: Mapping[str, object], number: int, windows: int) -> tuple[int, ...]:
    """QIDs in the order of the program's logical devices; empty when the runtime may choose the only one.

    Of a model that is cut into `windows` programs this is number `number`.
    """
    count, cores = int(str(compiled["num_devices"])), int(str(compiled["num_cores"]))
    if windows > 1 and len(asked) == count * windows:
        asked = asked[number * count : (number + 1) * count]
    if asked and len(asked) != count:
        each = f" and cut into {windows} programs: name {count} for all of them, or {count * windows}, {count} for each in order"
        raise OptionError(
            f"backend 'qaic': device_ids names {len(asked)} devices, the program was compiled for num_devices={count}"
            + (each if windows > 1 else "")
        )
    if asked or count == 1:
        return asked
    util = find_sdk().util
    if util is None:
        raise BackendUnavailableError(
            f"backend 'qaic': without qaic-util the {count} devices of the program cannot be chosen; name them with device_ids"
        )
    try:
        group = choose_group(query_devices(util), count=count, cores=cores)
    except ProbeError as error:
        raise BackendUnavailableError(
            f"backend 'qaic' cannot choose devices: {error}; name them with device_ids"
        ) from error
    if group is None:
        raise BackendUnavailableError(
            f"backend 'qaic': no board has {count} devices that are ready, allow multi-device programs (HybridBoot+, MDP+) and "
            f"have {cores} free cores each; see qaic-util -q, or name devices with device_ids"
        )
    return group
