"""What can be told about the backend without loading it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from qeff_framework.plugin_api import Backend, Capabilities, CompileOptions, Probe, RuntimeOptions
from qnn_backend.options import QnnOptions, QnnRuntimeOptions

_TEXT = frozenset({"causal-lm", "encoder", "sequence-classification", "token-classification", "question-answering"})
_NPU = Capabilities(
    tasks=_TEXT
    | {
        *("seq2seq-lm", "speech-seq2seq", "ctc", "audio-classification"),
        *("image-classification", "zero-shot-image-classification", "image-text-to-text", "text-to-image"),
    },
    dry_run=True,
)
#: Without pipelines; everything else, and more.
_AIC = dataclasses.replace(
    _NPU,
    tasks=_NPU.tasks - {"text-to-image"},
    continuous_batching=True,
    speculative_decoding=True,
    compute_contexts=True,
    multi_device=True,
    mxfp6_matmul=True,
    mxint8_kv_cache=True,
)


class QnnBackend(Backend):
    """Descriptor of ``qnn``. The options refuse what only the other kind of target can do."""

    name = "qnn"
    summary = "Qualcomm NPUs through the HTP compiler and simulator of onnxruntime-qnn; Cloud AI 100 through QAIRT"
    options = QnnOptions
    runtime_options = QnnRuntimeOptions
    capabilities = dataclasses.replace(_AIC, tasks=_NPU.tasks)
    implementation = "qnn_backend.hooks:QnnHooks"

    def probe(self) -> Probe:
        """Looks at both kinds of targets, native code in a process of its own."""
        from qnn_backend.probe import probe

        return probe()

    def capabilities_for(self, options: CompileOptions) -> Capabilities:
        """Those of the kind of target that the options name."""
        if not isinstance(options, QnnOptions):
            raise TypeError(f"these are no options of backend qnn: {options!r}")
        return dataclasses.replace(_AIC if options.is_aic else _NPU, scope=f"target {options.target}")

    def check_compiler(self, options: CompileOptions) -> None:
        """QAIRT for Cloud AI 100, onnxruntime-qnn for the other targets."""
        if isinstance(options, QnnOptions) and options.is_aic:
            from qnn_backend.aic.sdk import usable_sdk

            usable_sdk()
        else:
            from qnn_backend.htp.compiler import check_installed

            check_installed()

    def check_runtime(self, runtime: RuntimeOptions, compiled_with: Mapping[str, Any]) -> None:
        """Refuses options that only programs of the other kind of target have."""
        if isinstance(runtime, QnnRuntimeOptions):
            runtime.check_for(compiled_with["target"])

    def fingerprint(self) -> Mapping[str, str]:
        """Versions of this package, ONNX Runtime and the compiler; ``none`` for what is not installed."""
        from qnn_backend.versions import versions

        return versions()
