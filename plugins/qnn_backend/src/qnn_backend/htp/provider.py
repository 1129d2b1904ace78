"""ONNX Runtime with the QNN provider: registered once a process, and sessions that use it or nothing."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.plugin_api import BackendUnavailableError
from qnn_backend.versions import version_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The name under which the provider must be registered: sessions of compiled models look for it.
PROVIDER = "QNNExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
#: Where a compiled model says for which chip and with which version of the compiler it was made.
COMPATIBILITY = f"ep_compatibility_info.{PROVIDER}"

#: The input of a graph whose rotary frequencies depend on the length of the text.
PROMPT_LENGTHS = "prompt_lengths"

_WARNINGS, _ERRORS = 2, 3


def device() -> Any:
    """The provider's device: the NPU where there is one, else the CPU that the simulator runs on.

    Raises `BackendUnavailableError` when the provider is not installed or offers no device.
    """
    import onnxruntime as ort

    found = _devices(ort)
    if not found:
        ort.register_execution_provider_library(PROVIDER, _package().get_library_path())
        found = _devices(ort)
    if not found:
        raise BackendUnavailableError("onnxruntime-qnn was loaded, but offers no device; see `qeff doctor qnn`")
    return min(found, key=lambda one: not is_npu(one))


def is_npu(one: Any) -> bool:
    """The device is hardware, not the simulator."""
    return bool(one.device.type.name == "NPU")


def has_simulator() -> bool:
    """The wheel of this platform can run programs without an NPU."""
    return platform.machine().lower() in ("x86_64", "amd64")


def describe_devices() -> dict[str, Any]:
    """For the probe."""
    return {"version": version_of("onnxruntime-qnn"), "npu": is_npu(device()), "simulator": has_simulator()}


def session_options(
    soc_id: int,
    provider_options: Mapping[str, str],
    session_entries: Mapping[str, str],
    *,
    allow_cpu: bool = False,
    log_warnings: bool = False,
) -> Any:
    """Options of a session, or of a compilation, for one chip.

    The chip is always given: without it the compiler silently makes a program for another one, in another precision.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _WARNINGS if log_warnings else _ERRORS
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "0" if allow_cpu else "1")
    for name, value in session_entries.items():
        options.add_session_config_entry(name, value)
    chosen = {
        "backend_path": _package().get_qnn_htp_path(),
        "soc_model": str(soc_id),
        "enable_htp_fp16_precision": "1",
        **provider_options,
    }
    options.add_provider_for_devices([device()], chosen)
    return options


def library_folder() -> Path:
    """Where the compiler's libraries are."""
    return Path(_package().get_qnn_htp_path()).parent


def run_reference(
    session: Any, feeds: Mapping[str, NDArray[Any]], names: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """The outputs `names`, by default all, of a `cpu_session` of the portable graph, for the inputs of a program made of it.

    A program whose context holds no longer texts lacks ``prompt_lengths [B, 1]``; the portable graph then takes any.
    """
    given = dict(feeds)
    if PROMPT_LENGTHS not in given and PROMPT_LENGTHS in {one.name for one in session.get_inputs()}:
        given[PROMPT_LENGTHS] = np.zeros((len(feeds["input_ids"]), 1), np.int64)
    names = names or [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(list(names), given), strict=True))


def cpu_session(model: Path) -> Any:
    """A session in float32 on the CPU: the reference that the NPU is compared with."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS
    return ort.InferenceSession(str(model), options, providers=[CPU_PROVIDER])


def reason(error: Exception) -> str:
    """ONNX Runtime's own words, without the prefix that names its error class."""
    text = str(error).strip()
    return text.partition(" : ")[2].partition(" : ")[2] or text if text.startswith("[ONNXRuntimeError]") else text


def _devices(ort: Any) -> list[Any]:
    return [one for one in ort.get_ep_devices() if one.ep_name == PROVIDER]


def _package() -> Any:
    try:
        import onnxruntime_qnn
    except ImportError as error:
        raise BackendUnavailableError(
            f"backend 'qnn' needs onnxruntime-qnn for this target: {error}. Run `qeff doctor qnn` for what to install"
        ) from error
    return onnxruntime_qnn
