"""ONNX Runtime with the QNN provider: registered once a process, sessions that use it or nothing."""

from __future__ import annotations

from typing import Any

from qeff_framework.plugin_api import BackendUnavailableError
from qnn_backend.versions import version_of

#: The name under which the provider must be registered: sessions of compiled models look for it.
PROVIDER = "QNNExecutionProvider"


def device() -> Any:
    """The provider's device: the NPU where there is one, else the CPU that the simulator runs on.

    Raises `BackendUnavailableError` when the provider is not installed or offers no device.
    """
    import onnxruntime as ort

    found = _devices(ort)
    if not found:
        ort.register_execution_provider_library(PROVIDER, _library())
        found = _devices(ort)
    if not found:
        raise BackendUnavailableError("onnxruntime-qnn was loaded, but offers no device; see `qeff doctor qnn`")
    return min(found, key=lambda one: not is_npu(one))


def is_npu(one: Any) -> bool:
    """The device is hardware, not the simulator."""
    return bool(one.device.type.name == "NPU")


def describe_devices() -> dict[str, Any]:
    """For the probe."""
    return {"version": version_of("onnxruntime-qnn"), "npu": is_npu(device())}


def _devices(ort: Any) -> list[Any]:
    return [one for one in ort.get_ep_devices() if one.ep_name == PROVIDER]


def _library() -> str:
    try:
        import onnxruntime_qnn
    except ImportError as error:
        raise BackendUnavailableError(
            f"backend 'qnn' needs onnxruntime-qnn for this target: {error}. Run `qeff doctor qnn` for what to install"
        ) from error
    return str(onnxruntime_qnn.get_library_path())
