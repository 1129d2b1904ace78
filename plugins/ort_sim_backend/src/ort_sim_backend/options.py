"""What users can choose."""

from __future__ import annotations

from dataclasses import dataclass

from qeff_framework.plugin_api import CompileOptions, RuntimeOptions, option


@dataclass(frozen=True, kw_only=True)
class OrtSimOptions(CompileOptions):
    """Options of `compile`."""

    # ONNX Runtime's "all" also picks a data layout for the CPU at hand; a saved program would then be tied to that CPU.
    optimization_level: str = option(
        "extended", "how much ONNX Runtime rewrites the graph at compile time", choices=("none", "basic", "extended")
    )


@dataclass(frozen=True, kw_only=True)
class OrtSimRuntimeOptions(RuntimeOptions):
    """Options of `execute`."""

    num_threads: int | None = option(
        None,
        "threads that compute; by default num_cores of the compiled model, at most the CPUs this process may use",
        minimum=1,
    )
    # Measured on Gemma 3 270M in float32, CPU time: 141 instead of 201 ms for a chunk of 32 tokens, 64 instead of 71 ms for one
    # token; loading takes 1.3 instead of 0.05 s, and 1.05 GB of private memory instead of pages of the file that processes share.
    pack_weights: bool = option(
        True, "rearrange weights for faster products when loading; off: load at once and share memory between processes"
    )
