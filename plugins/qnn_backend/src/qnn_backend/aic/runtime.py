"""The execute stage of target ``aic``: the program is an ordinary one of the card, so the backend ``qaic`` runs it."""

from __future__ import annotations

import dataclasses

from qeff_framework.plugin_api import (
    BackendUnavailableError,
    CompiledModel,
    ExecutionSession,
    OptionError,
    RuntimeOptions,
)
from qnn_backend.aic.options import AicRuntimeOptions
from qnn_backend.aic.qaic import shared


def open_session(compiled: CompiledModel, options: RuntimeOptions) -> ExecutionSession:
    """Loads the program on its devices and activates it.

    Raises:
        BackendUnavailableError: no qaic distribution, no runtime of the card, or no usable device.
        ExecutionError: there is no program, or the device refuses it.
        OptionError: `device_ids` do not fit the program.
    """
    qaic = shared()
    chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(AicRuntimeOptions)}
    try:
        session: ExecutionSession = qaic.open_session(compiled, qaic.QaicRuntimeOptions(**chosen))
    except BackendUnavailableError as error:
        raise BackendUnavailableError(
            f"backend 'qnn', target aic, runs programs with the backend 'qaic': {error}"
        ) from error
    except ValueError as error:
        raise OptionError(f"backend 'qnn': {error}") from error
    return session
