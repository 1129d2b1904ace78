"""The SDK's own Python modules. They are not packages of an index: they lie in the SDK, built for one version of Python."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qaic_backend.sdk import find_sdk, install_hint
from qeff_framework.plugin_api import BackendUnavailableError


@dataclass(frozen=True, kw_only=True)
class RuntimeModules:
    """Both modules. `Any`: the SDK has no type information."""

    qaicrt: Any
    messages: Any


def load_modules() -> RuntimeModules:
    """Imports ``qaicrt`` and ``QAicApi_pb2``, from the SDK's folders where they are not on the path.

    Raises:
        BackendUnavailableError: one of them is not there or does not load in this interpreter.
    """
    sdk = find_sdk()
    return RuntimeModules(
        qaicrt=_load("qaicrt", sdk.runtime_folder, sdk.root),
        messages=_load("QAicApi_pb2", sdk.messages_folder, sdk.root),
    )


def _load(name: str, folder: Path | None, root: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason: ImportError = error
    if folder is not None:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        importlib.invalidate_caches()
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reason = error
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise BackendUnavailableError(
        f"backend 'qaic' cannot run programs: the module {name} does not load in Python {version} ({reason}). "
        f"To run on this machine, {install_hint(root, 'Platform')}. The SDK's modules fit one version of Python only"
    ) from reason


def status_name(status: object) -> str:
    """A status for people: its name and number."""
    name = getattr(status, "name", None)
    try:
        code = int(status)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return str(name or status)
    return f"{name} ({code})" if name else str(code)


def status_code(status: object) -> int | None:
    """The number of a status; its type differs between SDKs."""
    try:
        code = int(getattr(status, "value", status))  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return None
    return int(code)
