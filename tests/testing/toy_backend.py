"""A working backend of a page: its descriptor. The hooks are in `toy_hooks`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qeff_framework.plugin_api import (
    Backend,
    Capabilities,
    Check,
    LayerWindowOptions,
    Probe,
    RuntimeOptions,
    Status,
    option,
)


@dataclass(frozen=True, kw_only=True)
class ToyOptions(LayerWindowOptions):
    level: str = option("none", "how much ONNX Runtime rewrites the graph", choices=("none", "basic"))
    comment: str | None = option(None, "a text beside the program", changes_program=False)


@dataclass(frozen=True, kw_only=True)
class ToyRuntimeOptions(RuntimeOptions):
    num_threads: int = option(1, "threads that compute", minimum=1)


class ToyBackend(Backend):
    name = "toy"
    summary = "runs the portable graph in ONNX Runtime"
    options = ToyOptions
    runtime_options = ToyRuntimeOptions
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
        compute_contexts=True,
        on_device_sampling=True,
    )
    implementation = "tests.testing.toy_hooks:ToyHooks"

    def probe(self) -> Probe:
        check = Check(name="onnxruntime", status=Status.OK, detail="is installed")
        return Probe(can_compile=True, can_execute=True, hardware=False, rank=0, checks=(check,))

    def fingerprint(self) -> Mapping[str, str]:
        from importlib.metadata import version

        return {"toy": "1.2.3", "onnxruntime": version("onnxruntime")}
