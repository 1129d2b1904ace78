"""What can be told about the backend without loading ONNX Runtime."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ort_sim_backend.options import OrtSimOptions, OrtSimRuntimeOptions
from qeff_framework.plugin_api import (
    Backend,
    Capabilities,
    Check,
    CompileOptions,
    OptionError,
    Probe,
    RuntimeOptions,
    Status,
)
from qeff_framework.toolchains import ProbeError, ask_python

PROVIDER = "CPUExecutionProvider"
#: First release whose GroupQueryAttention knows how many tokens of a chunk are padding.
OLDEST_ONNXRUNTIME = (1, 32)

#: What the message about a format of the device says beside its name.
_WITHOUT_DEVICE = "a program in the CPU's own formats (simulate='ai100' has those of the device)"

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
                "image-text-to-text",
                "speech-seq2seq",
                "ctc",
                "audio-classification",
                "image-classification",
                "zero-shot-image-classification",
                "text-to-image",
            }
        ),
        continuous_batching=True,
        speculative_decoding=True,
        on_device_sampling=True,
        compute_contexts=True,
        mxfp6_matmul=True,
        mxint8_kv_cache=True,
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

    def capabilities_for(self, options: CompileOptions) -> Capabilities:
        """The block formats belong to the simulated device; a CPU has none of them."""
        if isinstance(options, OrtSimOptions) and options.simulate is not None:
            return self.capabilities
        return replace(self.capabilities, mxfp6_matmul=False, mxint8_kv_cache=False, scope=_WITHOUT_DEVICE)

    def check_runtime(self, runtime: RuntimeOptions, compiled_with: Mapping[str, Any]) -> None:
        """Refuses compressed weights unpacked: the kernels for them would first write every weight as float32, in each step."""
        precision = compiled_with.get("precision", "fp32")
        if precision != "fp32" and isinstance(runtime, OrtSimRuntimeOptions) and not runtime.pack_weights:
            raise OptionError(
                f"pack_weights=False does not go with a program of precision '{precision}': compressed weights are multiplied "
                "fast only when they are packed; leave pack_weights at True, or compile with precision='fp32'"
            )

    def fingerprint(self) -> Mapping[str, str]:
        """Versions of this package and of ONNX Runtime, and what this package's files say.

        The passes have versions, which the core puts into the key; the compile stage has none: how weights are calibrated, or
        what it writes, may change between two states of the package that bear the same version.
        """
        from importlib.metadata import version

        return {
            "qeff-ort-sim-backend": version("qeff-ort-sim-backend"),
            "onnxruntime": version("onnxruntime"),
            "files": _digest_of_package(),
        }


@functools.cache
def _digest_of_package() -> str:
    """Of all that is read to compile: code and calibration texts. Takes about 2 ms."""
    folder, digest = Path(__file__).parent, hashlib.sha256()
    for file in sorted(each for suffix in ("py", "txt") for each in folder.rglob(f"*.{suffix}")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder).as_posix()}|{len(content)}|".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _check_onnxruntime() -> Check:
    oldest = ".".join(map(str, OLDEST_ONNXRUNTIME))
    status, remedy = Status.FAILED, f"pip install 'onnxruntime>={oldest}'"
    try:
        found = ask_python(_ASK_ONNXRUNTIME, subject="importing onnxruntime", time_limit_seconds=_TIME_LIMIT_SECONDS)
    except ProbeError as error:
        detail = str(error)
    else:
        detail = f"version {found['version']}"
        if tuple(int(part) for part in found["version"].split(".")[:2]) < OLDEST_ONNXRUNTIME:
            detail += f" is older than {oldest}"
        elif PROVIDER not in found["providers"]:
            detail += f" has no {PROVIDER}"
        else:
            status, detail, remedy = Status.OK, f"{detail}, {PROVIDER}", ""
    return Check(name="onnxruntime", status=status, detail=detail, remedy=remedy)
