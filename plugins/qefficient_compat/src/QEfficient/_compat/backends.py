"""Which backend a script runs on, and what that backend takes."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

import qeff_framework
from qeff_framework.plugin_api import Backend, BackendError, BackendUnavailableError, Capabilities, Probe
from QEfficient._compat.notices import say_once

#: Names the backend for every script of this process.
VARIABLE = "QEFF_COMPAT_BACKEND"
#: The core's own variable, which counts where the other one is not set.
CORE_VARIABLE = "QEFF_BACKEND"
#: What scripts for QEfficient were written for, and what compiles with ``enable_qnn``.
NATIVE, QNN = "qaic", "qnn"


def choose_backend(argument: str | None = None, *, enable_qnn: bool = False) -> str:
    """The name of the backend: an argument, ``enable_qnn``, the environment, the Cloud AI SDK, else a simulator.

    A simulator is taken where nothing was chosen and no part of the SDK works here; a warning names it. Whatever is chosen, a
    failure of it is a failure.

    Raises:
        BackendUnavailableError: nothing was chosen, there is no SDK, and no installed backend runs here.
    """
    if argument:
        return argument
    if enable_qnn:
        return QNN
    for variable in (VARIABLE, CORE_VARIABLE):
        if named := os.environ.get(variable, "").strip():
            return named
    if works(NATIVE):
        return NATIVE
    probes = {each.name: _probe(each.name) for each in qeff_framework.list_backends() if each.name != NATIVE}
    simulators = sorted(
        (-probe.rank, name)
        for name, probe in probes.items()
        if probe is not None and probe.can_compile and probe.can_execute and not probe.hardware
    )
    if not simulators:
        raise BackendUnavailableError(
            f"there is no Cloud AI SDK here (backend '{NATIVE}'), and no backend was named; set {VARIABLE}, for instance "
            f"`pip install qeff-ort-sim-backend` and {VARIABLE}=ort_sim for the simulator on the CPU"
        )
    say_once(
        f"there is no Cloud AI SDK here, so that QEfficient runs on backend '{simulators[0][1]}', a simulator; set {VARIABLE} to "
        "choose a backend and to silence this"
    )
    return simulators[0][1]


def works(name: str) -> bool:
    """Whether a part of what the backend needs is there: it is then the one that scripts mean, and may say what is missing."""
    probe = _probe(name)
    return probe is not None and (probe.can_compile or probe.can_execute)


def _probe(name: str) -> Probe | None:
    try:
        return descriptor(name).probe()
    except BackendError:
        return None


def descriptor(name: str) -> Backend:
    """What the backend says about itself."""
    return qeff_framework.get_backend(name).backend


def has_option(schema: type, name: str) -> bool:
    """Whether an options class has a field of this name."""
    return any(field.name == name for field in fields(schema))


def capabilities(backend: Backend, options: dict[str, Any]) -> Capabilities:
    """What the backend can do with those of its own options that are set, without its number formats."""
    formats = ("mxfp6_matmul", "mxint8_kv_cache", "num_devices")
    own = {name: value for name, value in options.items() if has_option(backend.options, name) and name not in formats}
    try:
        return backend.capabilities_for(backend.options(**own))
    except (TypeError, ValueError):
        # The core refuses these options by name when it compiles.
        return backend.capabilities
