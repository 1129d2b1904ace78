"""What can be told about the backend without loading it."""

from __future__ import annotations

from collections.abc import Mapping

from qaic_backend.options import QaicOptions, QaicRuntimeOptions
from qeff_framework.plugin_api import Backend, Capabilities, CompileOptions, Probe


class QaicBackend(Backend):
    """Descriptor of ``qaic``."""

    name = "qaic"
    summary = "Qualcomm Cloud AI 100 through the QAIC SDK (qaic-compile, qaicrt)"
    options = QaicOptions
    runtime_options = QaicRuntimeOptions
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
        compute_contexts=True,
        on_device_sampling=True,
        multi_device=True,
        mxfp6_matmul=True,
        mxint8_kv_cache=True,
        dry_run=True,
    )
    implementation = "qaic_backend.hooks:QaicHooks"

    def probe(self) -> Probe:
        """Reads the SDK's files; loads its runtime and asks for devices in processes of their own."""
        from qaic_backend.probe import probe

        return probe()

    def check_compiler(self, options: CompileOptions) -> None:
        """The apps SDK has the compiler."""
        from qaic_backend.compiler.stage import required_compiler
        from qaic_backend.sdk import find_sdk

        del options  # for all of them
        required_compiler(find_sdk())

    def check_weights(self, options: CompileOptions, numbers: int) -> None:
        """The devices' memory."""
        from qaic_backend.options import QaicCompileOptions

        # Each of several programs has some of the layers.
        if isinstance(options, QaicCompileOptions) and options.num_layers_per_program is None:
            from qaic_backend.compiler.memory import check_least
            from qaic_backend.sdk import find_sdk

            check_least(numbers, options, find_sdk())

    def fingerprint(self) -> Mapping[str, str]:
        """Versions of this package and of both SDKs; ``none`` for an SDK that is not there or does not say its version.

        A compiler without a version is known by its file: after an upgrade it must not find the programs of the old one.
        """
        import hashlib
        from importlib.metadata import version

        from qaic_backend.sdk import find_sdk

        sdk = find_sdk()
        unnamed = {}
        if sdk.apps_version is None and sdk.compiler is not None:
            with sdk.compiler.open("rb") as file:
                unnamed["qaic_compiler_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        return {
            **unnamed,
            "qeff-qaic-backend": version("qeff-qaic-backend"),
            "qaic_apps_version": sdk.apps_version or "none",
            "qaic_platform_version": sdk.platform_version or "none",
        }
