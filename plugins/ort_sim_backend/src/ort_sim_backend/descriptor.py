"""What can be told about the backend without loading ONNX Runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from ort_sim_backend.options import OrtSimOptions, OrtSimRuntimeOptions
from qeff_framework.plugin_api import Backend, Capabilities, Check, Probe, Status

PROVIDER = "CPUExecutionProvider"
#: First release whose GroupQueryAttention knows how many tokens of a chunk are padding.
OLDEST_ONNXRUNTIME = (1, 32)

_ASK_ONNXRUNTIME = """
import json, onnxruntime
print(json.dumps({"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}))
"""
_TIME_LIMIT_SECONDS = 30


class OrtSimBackend(Backend):
    """Descriptor of ``ort_sim``."""

    name = "ort_sim"
    summary = "CPU simulator on ONNX Runtime: static shapes and retained state, no hardware needed"
    options = OrtSimOptions
    runtime_options = OrtSimRuntimeOptions
    capabilities = Capabilities(
        tasks=frozenset(
            {
                "causal-lm",
                "encoder",
                "sequence-classification",
                "token-classification",
                "question-answering",
                "seq2seq-lm",
            }
        ),
        continuous_batching=True,
        speculative_decoding=True,
        on_device_sampling=True,
        compute_contexts=True,
    )
    implementation = "ort_sim_backend.hooks:OrtSimHooks"

    def probe(self) -> Probe:
        """Asks ONNX Runtime for its version and providers.

        It is asked in a process of its own (about 0.3 s): a broken native library cannot take this process down, and listing
        backends does not load ONNX Runtime. Package metadata alone would not do, several distributions provide the module.
        """
        check = _check_onnxruntime()
        usable = check.status is Status.OK
        return Probe(can_compile=usable, can_execute=usable, hardware=False, rank=100, checks=(check,))

    def fingerprint(self) -> Mapping[str, str]:
        """Versions of this package and of ONNX Runtime. The passes have their own, which the core puts into the key."""
        from importlib.metadata import version

        return {
            "qeff-ort-sim-backend": version("qeff-ort-sim-backend"),
            "onnxruntime": version("onnxruntime"),
        }


def _check_onnxruntime() -> Check:
    oldest = ".".join(map(str, OLDEST_ONNXRUNTIME))
    remedy = f"pip install 'onnxruntime>={oldest}'"
    try:
        found = _ask_onnxruntime()
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        return Check(name="onnxruntime", status=Status.FAILED, detail=_reason(error), remedy=remedy)
    detail = f"version {found['version']}"
    if tuple(int(part) for part in found["version"].split(".")[:2]) < OLDEST_ONNXRUNTIME:
        return Check(name="onnxruntime", status=Status.FAILED, detail=f"{detail} is older than {oldest}", remedy=remedy)
    if PROVIDER not in found["providers"]:
        return Check(name="onnxruntime", status=Status.FAILED, detail=f"{detail} has no {PROVIDER}", remedy=remedy)
    return Check(name="onnxruntime", status=Status.OK, detail=f"{detail}, {PROVIDER}")


def _ask_onnxruntime() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _ASK_ONNXRUNTIME],
        capture_output=True,
        text=True,
        timeout=_TIME_LIMIT_SECONDS,
        check=True,
    )
    # ONNX Runtime may print notices of its own before the answer.
    *_, last_line = "", *done.stdout.strip().splitlines()
    answer: dict[str, Any] = json.loads(last_line)
    return answer


def _reason(error: Exception) -> str:
    """The last line that the child wrote is the Python error; everything else is traceback."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"importing onnxruntime did not end within {_TIME_LIMIT_SECONDS} s"
    if isinstance(error, subprocess.CalledProcessError):
        lines = str(error.stderr).strip().splitlines()
        return lines[-1] if lines else f"importing onnxruntime ended with exit code {error.returncode}"
    return f"importing onnxruntime gave no answer: {error}"
