"""What can be told about the backend without loading it."""

from __future__ import annotations

from collections.abc import Mapping

from qeff_framework.plugin_api import Backend, Capabilities, Probe
from qnn_backend.options import QnnOptions, QnnRuntimeOptions


class QnnBackend(Backend):
    """Descriptor of ``qnn``. The options refuse what only the other kind of target can do."""

    name = "qnn"
    summary = "Qualcomm NPUs through the HTP compiler and simulator of onnxruntime-qnn; Cloud AI 100 through QAIRT"
    options = QnnOptions
    runtime_options = QnnRuntimeOptions
    capabilities = Capabilities(
        tasks=frozenset({"causal-lm", "encoder", "sequence-classification"}),
        multi_device=True,
        mxfp6_matmul=True,
        mxint8_kv_cache=True,
        dry_run=True,
    )
    implementation = "qnn_backend.hooks:QnnHooks"

    def probe(self) -> Probe:
        """Looks at both kinds of targets, native code in a process of its own."""
        from qnn_backend.probe import probe

        return probe()

    def fingerprint(self) -> Mapping[str, str]:
        """Versions of this package, ONNX Runtime and the compiler; ``none`` for what is not installed."""
        from qnn_backend.versions import versions

        return versions()
